package rawsock

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
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
			for got, sent := 0, 0; got < 3*batchSize; {
				for ; sent < 3*batchSize; sent++ {
					must(t, out.Send([]byte{byte(sent), 1, 2, 3, 4, 5, 6, 7}, c.src, c.dst))
				}
				ready, err := p.Wait(time.Now().Add(10 * time.Second))
				must(t, err)
				if len(ready) == 0 {
					t.Fatalf("%d of %d came", got, sent)
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
				_, _ = p.Wait(time.Now().Add(time.Second))
				for _, err := in.Next(); err == nil; _, err = in.Next() {
				}
			}); n > 0 {
				t.Errorf("a packet makes %v allocations", n)
			}
		})
	}
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
	if took := time.Since(began); took < 5*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}
