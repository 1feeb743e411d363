package vrrp

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// crowd is a machine of n routers on one interface that are all Active, and
// when.
func crowd(n int) (*Machine, time.Time) {
	routers := make([]Router, n)
	for i := range routers {
		routers[i] = Router{
			Name: fmt.Sprintf("vip%d", i), Interface: "eth0", Version: 3, VRID: uint8(i + 1), Priority: 100, Interval: 100 * time.Millisecond,
			Source: node1, Advertised: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 1, byte(i)})}, Preempt: true,
		}
	}
	m := NewMachine(routers)
	now := epoch
	m.Step(Event{Kind: Start, At: now})
	for end := now.Add(time.Second); ; {
		at, _ := m.Next()
		if at.After(end) {
			return m, now
		}
		now = at
		m.Step(Event{Kind: Tick, At: now})
	}
}

func TestAnActivesDayCostsNoMemory(t *testing.T) {
	m, _ := crowd(255)
	sent := 0
	if n := testing.AllocsPerRun(1000, func() {
		at, _ := m.Next()
		sent += len(m.Step(Event{Kind: Tick, At: at}))
	}); n > 0 {
		t.Errorf("a Tick makes %v allocations", n)
	}
	if sent == 0 {
		t.Error("nothing was sent")
	}
}

func TestAdvertsOfManyRoutersGoOutTogether(t *testing.T) {
	const interval = 100 * time.Millisecond
	m, now := NewMachine(nil), epoch
	m.Step(Event{Kind: Start, At: now})
	for i := range 255 { // each begins at a moment of its own
		now = now.Add(137 * time.Microsecond)
		routers := append(m.Routers(), Router{
			Name: fmt.Sprintf("vip%d", i), Interface: "eth0", Version: 3, VRID: uint8(i + 1), Priority: 255, Interval: interval,
			Source: node1, Advertised: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 1, byte(i)})},
		})
		m.Reconfigure(routers, now)
	}
	// A node wakes a little late, each time.
	const late = 80 * time.Microsecond
	last := make([]time.Time, 255)
	wakes := 0
	for end := now.Add(10 * interval); ; {
		at, _ := m.Next()
		if now = at.Add(late); now.After(end) {
			break
		}
		wakes++
		for _, a := range m.Step(Event{Kind: Tick, At: now}) {
			if a.Kind != Send {
				t.Fatalf("%v", a)
			}
			since := now.Sub(last[a.Router])
			if !last[a.Router].IsZero() && (since > interval+late || since < interval-interval/earlyShare-late) {
				t.Errorf("router %d waited %v", a.Router, since)
			}
			last[a.Router] = now
		}
	}
	for i := range last {
		if now.Sub(last[i]) > interval+2*late {
			t.Errorf("router %d was forgotten %v ago", i, now.Sub(last[i]))
		}
	}
	if most := 10*earlyShare + earlyShare; wakes > most {
		t.Errorf("woken %d times in 10 intervals; want %d at most", wakes, most)
	}
}

func TestABackupsDayCostsNoMemory(t *testing.T) {
	m, now := crowd(255)
	advert := Advert{Version: 3, Priority: 200, Interval: 100 * time.Millisecond}
	hear := func(i int) {
		advert.VRID, advert.Addresses = uint8(i+1), m.routers[i].Advertised
		m.Step(Event{Kind: Received, At: now, Router: i, From: node2, Advert: &advert})
	}
	for i := range 255 {
		hear(i)
	}
	i := 0
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(100 * time.Microsecond)
		hear(i % 255)
		i++
	}); n > 0 {
		t.Errorf("an advert makes %v allocations", n)
	}
	if s := m.Status(0); s.State != Backup {
		t.Errorf("the router is %v", s.State)
	}
}

func BenchmarkTick(b *testing.B) {
	m, _ := crowd(255)
	b.ReportAllocs()
	for b.Loop() {
		at, _ := m.Next()
		m.Step(Event{Kind: Tick, At: at})
	}
}

func BenchmarkReceive(b *testing.B) {
	m, now := crowd(255)
	advert := Advert{Version: 3, Priority: 200, Interval: 100 * time.Millisecond}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		n := i % 255
		advert.VRID, advert.Addresses = uint8(n+1), m.routers[n].Advertised
		now = now.Add(time.Microsecond)
		m.Step(Event{Kind: Received, At: now, Router: n, From: node2, Advert: &advert})
	}
}
