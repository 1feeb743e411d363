package ntpproxy

import (
	"context"
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

// One address of a name denies us, and the other is dead: the latter is asked as
// any silent source is, nobody waits for it, and the former is left in peace.
func TestNameThatIsDeniedAndDeadKeepsNobodyWaiting(t *testing.T) {
	k := twoSources(t)
	k.core = discipline.New(discipline.Config{Sources: []discipline.SourceConfig{
		{Name: "a", MinPoll: 6, MaxPoll: 10, Burst: true}, {Name: "b", MinPoll: 6, MaxPoll: 10, Burst: true},
	}}, discipline.Reading{Clock: start, Raw: raw5})
	denies, requests, kept := netip.MustParseAddrPort("192.0.2.1:123"), 0, time.Duration(0)
	var asked []time.Duration // when the one that denies us was
	for raw := raw5; raw < raw5+40*time.Minute; raw += time.Second {
		now := discipline.Reading{Clock: start.Add(raw - raw5), Raw: raw}
		for _, i := range k.core.Step(now).Ask {
			if i == 1 { // it answers, and is right
				k.core.Sample(1, discipline.Sample{Raw: raw, Server: now.Clock, Precision: 1, Stratum: 2, Delay: time.Millisecond})
				continue
			}
			if !k.where(0, raw).IsValid() {
				k.found(t, raw, "192.0.2.1", "192.0.2.2")
			}
			h := heard{at: k.addrs[0], raw: raw, err: context.DeadlineExceeded}
			if requests++; h.at == denies {
				asked = append(asked, raw-raw5)
				h.from, h.err = h.at.Addr(), &ntp.KissError{Code: ntp.KissDeny}
			}
			if h.at.IsValid() {
				k.take(ended(t), h)
			}
		}
		if kept == 0 && k.core.Tracking(now).Synchronised {
			kept = raw - raw5
		}
	}
	if kept == 0 || kept > time.Minute {
		t.Errorf("the clock is kept by the other source after %v, want it within a minute", kept)
	}
	// A burst of six after each denial, one in 17 minutes, and one every 64 s.
	if len(asked) > 3 || requests > 60 {
		t.Errorf("%d requests, to the address that denies us after %v", requests, asked)
	}
}
