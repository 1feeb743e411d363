package vrrp

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

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

// A real server of the address takes its packets as before when it has left the
// interface: it need not go on answering for it.
func TestOnlyAnAddressThatTheNodeTakesPacketsForElsewhereLeavesAtOnce(t *testing.T) {
	balanced, other := netip.MustParsePrefix("10.1.0.100/32"), netip.MustParsePrefix("10.1.0.101/32")
	keeps := func(a netip.Addr) bool { return a == balanced.Addr() }
	for _, test := range []struct {
		what  string
		keeps func(netip.Addr) bool
		held  []netip.Prefix
		want  time.Duration
	}{
		{"nobody balances", nil, []netip.Prefix{balanced}, maxLinger},
		{"it is balanced", keeps, []netip.Prefix{balanced}, 0},
		{"one of two is", keeps, []netip.Prefix{balanced, other}, maxLinger},
	} {
		in := instanceOf(Router{Name: "front", Held: test.held})
		in.applier = &applier{wake: make(chan struct{}, 1)}
		l := &loop{keeps: test.keeps}
		l.withdraw(in, maxLinger)
		if got := in.applier.queue[0].linger; got != test.want || in.lingers != (test.want > 0) {
			t.Errorf("%s: the address stays for %v and waits for the next one's word: %v; want %v", test.what, got, in.lingers, test.want)
		}
	}
}
