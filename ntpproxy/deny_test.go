package ntpproxy

import (
	"net/netip"
	"testing"
	"time"

	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

// The first address of the only name denies us: the second is asked at once, and
// the name rarely only when all its addresses did.
func TestAnotherAddressIsAskedAtOnceWhenOneDeniesUs(t *testing.T) {
	first, second := netip.MustParseAddrPort("192.0.2.1:123"), netip.MustParseAddrPort("192.0.2.2:123")
	k := twoSources(t)
	k.lead(0).found = []netip.AddrPort{first, second}
	k.addrs[0] = first
	now := discipline.Reading{Clock: start, Raw: time.Hour}
	k.core.Step(now)
	for _, test := range []struct {
		at, next netip.AddrPort
		poll     int
	}{{first, second, 6}, {second, netip.AddrPort{}, 10}} {
		k.take(t.Context(), heard{source: 0, at: test.at, from: test.at.Addr(), err: &ntp.KissError{Code: ntp.KissDeny}})
		if got := k.core.Sources(now)[0].Poll; k.addrs[0] != test.next || got != test.poll {
			t.Errorf("denied by %v: next is %v every 2^%d s, want %v, 2^%d", test.at, k.addrs[0], got, test.next, test.poll)
		}
	}
}
