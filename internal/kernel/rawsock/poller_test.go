package rawsock

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

func TestPollerWakesAtItsDeadlineNotBefore(t *testing.T) {
	p := poller(t)
	for range 20 {
		deadline := time.Now().Add(3 * time.Millisecond)
		ready, err := p.Wait(deadline)
		must(t, err)
		if early := time.Until(deadline); early > 0 || len(ready) > 0 {
			t.Errorf("%v too early, with %v", early, ready)
		}
	}
}

func TestPollerIsWokenBeforeAndDuringItsWait(t *testing.T) {
	p := poller(t)
	// A timer that rang earlier must not ring on in a wait without a deadline.
	_, err := p.Wait(time.Now().Add(time.Millisecond))
	must(t, err)
	for range 100 {
		done := make(chan error, 1)
		go func() { _, err := p.Wait(time.Time{}); done <- err }()
		select {
		case err := <-done:
			t.Fatalf("it returned without being woken: %v", err)
		case <-time.After(time.Millisecond):
		}
		p.Wake()
		p.Wake()
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(time.Minute):
			t.Fatal("it sleeps on")
		}
		// Both calls are one.
		started := time.Now()
		_, err := p.Wait(started.Add(time.Millisecond))
		must(t, err)
	}
}

func TestFloodOfOthersWakesNobody(t *testing.T) {
	node, peer := wire(t)
	ours, theirs := neighbors(t, node), neighbors(t, peer)
	a := netip.MustParseAddr("10.1.0.101")
	must(t, ours.Watch([]netip.Addr{a, netip.MustParseAddr("fd00::101")}))
	p := poller(t, ours)
	for i := range 2000 {
		must(t, theirs.Announce(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})))
		must(t, theirs.Announce(netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: 7})))
	}
	must(t, theirs.Announce(a))
	wakes := 0
	for claims := 0; claims < 2; { // a request and a reply
		ready, err := p.Wait(time.Now().Add(time.Minute))
		must(t, err)
		if len(ready) == 0 {
			t.Fatal("the claim was lost in the flood")
		}
		wakes++
		for {
			c, err := ours.Receive()
			if errors.Is(err, ErrEmpty) {
				break
			}
			must(t, err)
			if c.Addr != a {
				t.Fatalf("not asked for: %v", c)
			}
			claims++
		}
	}
	if wakes > 2 {
		t.Errorf("woken %d times by 6000 packets of which 2 are claims", wakes)
	}
}

func TestRemovedSocketDoesNotWake(t *testing.T) {
	node, peer := wire(t)
	from, to := socket(t, node, false), socket(t, peer, false)
	p := poller(t, to)
	must(t, p.Remove(to))
	must(t, from.Send([]byte("x"), netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")))
	if ready, err := p.Wait(time.Now().Add(50 * time.Millisecond)); err != nil || len(ready) > 0 {
		t.Errorf("%v, %v", ready, err)
	}
}

func TestAdvertsAndWaitsCostNoAllocation(t *testing.T) {
	node, peer := wire(t)
	for _, c := range [][2]string{{"10.1.0.1", "10.1.0.2"}, {"fd00::1", "fd00::2"}} {
		src, dst := netip.MustParseAddr(c[0]), netip.MustParseAddr(c[1])
		from, to := socket(t, node, src.Is6()), socket(t, peer, src.Is6())
		must(t, from.Send([]byte("first"), src, dst)) // resolves the neighbour
		receive(t, to)
		p, quiet := poller(t, to), neighbors(t, peer)
		payload, buf := make([]byte, 40), make([]byte, 1500)
		failed := 0
		n := testing.AllocsPerRun(200, func() {
			if from.Send(payload, src, dst) != nil {
				failed++
			}
			ready, err := p.Wait(time.Now().Add(time.Minute))
			if err != nil || len(ready) != 1 {
				failed++
			}
			if _, err := to.Receive(buf); err != nil {
				failed++
			}
			if _, err := to.Receive(buf); err != ErrEmpty {
				failed++
			}
			if _, err := quiet.Receive(); err != ErrEmpty {
				failed++
			}
		})
		if n != 0 || failed != 0 {
			t.Errorf("%s: %v allocations, %d failures", c[0], n, failed)
		}
	}
}

func BenchmarkSend(b *testing.B) {
	for _, c := range [][2]string{{"10.1.0.1", "224.0.0.18"}, {"fd00::1", "ff02::12"}} {
		b.Run(c[1], func(b *testing.B) {
			node, _ := wire(b)
			src, dst := netip.MustParseAddr(c[0]), netip.MustParseAddr(c[1])
			s := socket(b, node, src.Is6())
			payload := make([]byte, 40)
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Send(payload, src, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
