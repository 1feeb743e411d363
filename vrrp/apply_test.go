package vrrp

import (
	"fmt"
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
