package vrrp

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestALateAnnouncementDoesNotMisleadAboutWhoTookOver(t *testing.T) {
	names := map[errandKind]string{errandHold: "hold", errandWithdraw: "withdraw", errandAnnounce: "announce", errandConflict: "conflict", errandReopen: "reopen"}
	order := func(kind errandKind, router string) errand { return errand{kind: kind, router: router} }
	for _, test := range []struct{ given, want []errand }{
		{
			[]errand{order(errandHold, "a"), order(errandAnnounce, "a"), order(errandWithdraw, "a")},
			[]errand{order(errandWithdraw, "a")},
		}, {
			[]errand{order(errandHold, "a"), order(errandAnnounce, "a"), order(errandWithdraw, "b")},
			[]errand{order(errandHold, "a"), order(errandAnnounce, "a"), order(errandWithdraw, "b")},
		}, {
			[]errand{order(errandWithdraw, "a"), order(errandHold, "a"), order(errandAnnounce, "a"), order(errandReopen, "")},
			[]errand{order(errandWithdraw, "a"), order(errandHold, "a"), order(errandAnnounce, "a"), order(errandReopen, "")},
		}, {
			[]errand{order(errandAnnounce, "a"), order(errandConflict, "a")},
			[]errand{order(errandAnnounce, "a"), order(errandConflict, "a")},
		},
	} {
		words := func(orders []errand) []string {
			var list []string
			for _, o := range orders {
				list = append(list, fmt.Sprint(names[o.kind], " ", o.router))
			}
			return list
		}
		if diff := cmp.Diff(words(test.want), words(current(test.given))); diff != "" {
			t.Errorf("%v (-want +got):\n%s", words(test.given), diff)
		}
	}
}

// The interface of a router vanished and another is there: the applier of the
// old one is slower than that of the new.
func TestWhatTheOldInterfacesApplierSaysLateIsNotBelieved(t *testing.T) {
	vip := netip.MustParsePrefix("10.1.1.51/32")
	s := newApplied()
	s.add(5, vip)
	s.add(7, vip)
	s.fail(5, vip, errors.New("no such device"))
	s.gone(5, vip)
	if !s.isThere(7, vip) || s.isThere(5, vip) {
		t.Errorf("the address is said to be on interface %d", s.present[vip])
	}
	if err := s.errs[vip]; err != "" {
		t.Errorf("the old interface's error is told of the new one: %s", err)
	}
	s.gone(7, vip)
	if s.isThere(7, vip) {
		t.Error("it is gone, and said to be there")
	}
}
