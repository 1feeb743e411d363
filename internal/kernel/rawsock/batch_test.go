package rawsock

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNextGivesAllThatIsQueuedInOrder(t *testing.T) {
	node, peer := wire(t)
	for _, c := range []struct {
		ipv6     bool
		src, dst netip.Addr
	}{
		{false, netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.1")},
		{true, netip.MustParseAddr("fd00::2"), netip.MustParseAddr("fd00::1")},
	} {
		t.Run(fmt.Sprintf("ipv6=%v", c.ipv6), func(t *testing.T) {
			in, out := socket(t, node, c.ipv6), socket(t, peer, c.ipv6)
			p := poller(t, in)
			// Who is at the other address is found out before: what waits for that
			// is sent while others go past it.
			must(t, out.Send([]byte{0}, c.src, c.dst))
			receiveNext(t, in, p)
			onOneProcessor(t, func() {
				for i := range 3 * batchSize {
					must(t, out.Send([]byte{byte(i), 1, 2, 3, 4, 5, 6, 7}, c.src, c.dst))
				}
			})
			for got := 0; got < 3*batchSize; {
				ready, err := p.Wait(time.Now().Add(time.Minute))
				must(t, err)
				if len(ready) == 0 {
					t.Fatalf("%d of %d came", got, 3*batchSize)
				}
				for {
					packet, err := in.Next()
					if errors.Is(err, ErrEmpty) {
						break
					}
					must(t, err)
					if len(packet.Payload) != 8 || packet.Payload[0] != byte(got) || packet.Src != c.src || packet.Dst != c.dst || packet.TTL != 255 {
						t.Fatalf("packet %d is %+v", got, packet)
					}
					got++
				}
			}
			if n := testing.AllocsPerRun(100, func() {
				_ = out.Send([]byte{1, 1, 2, 3, 4, 5, 6, 7}, c.src, c.dst)
				_, _ = p.Wait(time.Now().Add(time.Minute))
				for _, err := in.Next(); err == nil; _, err = in.Next() {
				}
			}); n > 0 {
				t.Errorf("a packet makes %v allocations", n)
			}
		})
	}
}

// receiveNext waits for one packet of a socket. There is none behind it.
func receiveNext(t *testing.T, s *Socket, p *Poller) {
	t.Helper()
	ready, err := p.Wait(time.Now().Add(time.Minute))
	must(t, err)
	if len(ready) == 0 {
		t.Fatal("nothing came")
	}
	_, err = s.Next()
	must(t, err)
	if packet, err := s.Next(); !errors.Is(err, ErrEmpty) {
		t.Fatalf("behind it: %+v, %v", packet, err)
	}
}

// onOneProcessor runs f on one processor. What is sent over a wire of the lab waits
// in a queue of the processor that it was sent on: where a sender goes from one to
// another, what it sends later may arrive earlier.
func onOneProcessor(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	var all, one unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &all))
	for cpu := range len(all) * 64 {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	must(t, unix.SchedSetaffinity(0, &one))
	f() // where it ends the test, the thread ends with it
	must(t, unix.SchedSetaffinity(0, &all))
	runtime.UnlockOSThread()
}

// TestDeadlineThatIsPutOffAgainAndAgainIsMet: a Backup's deadline moves with
// every packet, and the timer is not set for each.
func TestDeadlineThatIsPutOffAgainAndAgainIsMet(t *testing.T) {
	p := poller(t)
	deadline := time.Now().Add(5 * time.Millisecond)
	for range 3 {
		p.Wake()
		_, err := p.Wait(deadline)
		must(t, err)
		deadline = deadline.Add(5 * time.Millisecond)
	}
	_, err := p.Wait(deadline)
	must(t, err)
	if early := time.Until(deadline); early > 0 {
		t.Errorf("%v too early: the timer of an earlier deadline rang", early)
	}
	// One that comes nearer is met as well.
	p.Wake()
	_, err = p.Wait(time.Now().Add(time.Hour))
	must(t, err)
	began := time.Now()
	_, err = p.Wait(began.Add(5 * time.Millisecond))
	must(t, err)
	if took := time.Since(began); took < 5*time.Millisecond || took > time.Minute { // the earlier deadline is an hour away
		t.Errorf("it took %v", took)
	}
}
