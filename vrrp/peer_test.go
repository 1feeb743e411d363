package vrrp

import (
	"net/netip"
	"testing"
	"time"
)

// A peer that was put right and is Backup says nothing: what it said before
// must not stand against it for ever.
var stranger = netip.MustParseAddr("10.1.0.66")

func TestWhatAPeerSaidLongAgoIsNotHeldAgainstIt(t *testing.T) {
	const interval = time.Second
	for _, c := range []struct {
		name     string
		priority uint8 // of this router; the peer that goes on has 150
	}{{"while Active", 200}, {"while Backup", 100}} {
		m := NewMachine([]Router{{
			Name: "web", Interface: "eth0", Version: 3, VRID: 51, Priority: c.priority, Interval: interval,
			Source: node1, Advertised: []netip.Addr{netip.MustParseAddr("10.1.0.101")}, Preempt: true,
		}})
		ended := time.Time{}
		take := func(actions []Action, at time.Time) {
			for _, a := range actions {
				if a.Kind == Disagree && len(a.Fields) == 0 {
					if a.Reason == "" {
						t.Errorf("%s: it is said to agree", c.name)
					}
					ended = at
				}
			}
		}
		m.Step(Event{Kind: Start, At: epoch})
		stale := Advert{Version: 3, VRID: 51, Priority: 50, Interval: interval, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.99")}}
		for range insistence {
			m.Step(Event{Kind: Received, At: epoch, From: stranger, Advert: &stale})
		}
		if d := m.Status(0).Peers[0].Disagrees; len(d) != 1 {
			t.Fatalf("%s: %v", c.name, d)
		}
		other := Advert{Version: 3, VRID: 51, Priority: 150, Interval: interval, Addresses: m.routers[0].Advertised}
		for now := epoch; now.Before(epoch.Add(staleAfter + time.Minute)); {
			now = now.Add(interval)
			for at, ok := m.Next(); ok && !at.After(now); at, ok = m.Next() {
				take(m.Step(Event{Kind: Tick, At: at}), at)
			}
			if c.priority < other.Priority {
				take(m.Step(Event{Kind: Received, At: now, From: node2, Advert: &other}), now)
			}
		}
		if after := ended.Sub(epoch); after < staleAfter || after > staleAfter+2*interval {
			t.Errorf("%s: it ended after %v, want %v", c.name, after, staleAfter)
		}
		for _, p := range m.Status(0).Peers {
			if p.Address == stranger && (len(p.Disagrees) > 0 || p.Advert.Priority != 50) {
				t.Errorf("%s: what it last said is shown as %+v", c.name, p)
			}
		}
	}
}
