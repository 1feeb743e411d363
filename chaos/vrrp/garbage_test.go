package vrrp_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/routers"
	"holdfast/lab/site"
	"holdfast/lab/wire"
)

func labCmd(args ...string) lab.Cmd { return lab.Cmd{Args: args} }

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestGarbageChangesNothing: whatever a stranger sends, states stay what they
// are, each kind is counted, and logged once.
func TestGarbageChangesNothing(t *testing.T) {
	o := settings{version: 3, interval: 100 * time.Millisecond, unicast: true}.options(routers.Holdfast, routers.Holdfast)
	b := newBench(t, o)
	b.start()
	stranger := b.Asker
	src, first := netip.MustParseAddr("10.1.0.3"), o.Addr(0)
	vip := o.VIP(0)
	good := func(vrid, priority uint8) []byte {
		packet, err := wire.VRRP(3, vrid, priority, 100*time.Millisecond, src, first, "", vip)
		b.must(err)
		return packet
	}
	vrid := b.Router(0).VRID
	flipped := good(vrid, 255)
	flipped[6] ^= 0xff
	to := b.Members[0].MAC
	const times = 200
	kinds := []struct {
		reason string
		frame  []byte
	}{
		{"short", wire.IPv4(src, first, 112, 255, good(vrid, 255)[:7])},
		{"ttl", wire.IPv4(src, first, 112, 254, good(vrid, 255))},
		{"checksum", wire.IPv4(src, first, 112, 255, flipped)},
		{"no_router", wire.IPv4(src, first, 112, 255, good(vrid+1, 255))},
		{"unlisted", wire.IPv4(src, first, 112, 255, good(vrid, 255))},
	}
	before := b.metrics(b.Members[0])
	began := time.Now() // which of the two was there first is of no interest
	name := func(reason string) string { return fmt.Sprintf(`holdfast_vrrp_dropped_total{reason="%s"}`, reason) }
	// Some at a time, each after those before are counted: the kernel's queues drop
	// what comes on top while nobody runs who takes it.
	const together = 20
	send := func(frame []byte) {
		b.must(site.Poll(t.Context(), func(context.Context) error {
			err := stranger.Send(frame)
			if errors.Is(err, syscall.ENOBUFS) { // it was dropped, and is sent again
				return err
			}
			b.must(err)
			return nil
		}))
	}
	for sent := together; sent <= times; sent += together {
		for range together {
			for _, k := range kinds {
				send(stranger.Frame(to, 0x0800, k.frame))
			}
		}
		ctx, cancel := b.context()
		err := site.Poll(ctx, func(context.Context) error {
			now := b.metrics(b.Members[0])
			for _, k := range kinds {
				if got := series(now, name(k.reason)) - series(before, name(k.reason)); got < float64(sent) {
					return fmt.Errorf("%s: %v of %d are counted", k.reason, got, sent)
				}
			}
			return nil
		})
		cancel()
		b.must(err)
	}
	// An ARP storm of others, and some that claim the address.
	for i := range 20_000 {
		who := netip.AddrFrom4([4]byte{10, 1, 5, byte(i)})
		send(stranger.Frame(wire.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0x0806, wire.ARP(1, wire.MAC{2, 0, 0, 0, 9, byte(i)}, who, wire.MAC{}, who)))
	}
	b.awaitSole(0, time.Now())
	after := b.metrics(b.Members[0])
	log := b.Members[0].Log()
	for _, k := range kinds {
		if got := series(after, name(k.reason)) - series(before, name(k.reason)); got != times {
			t.Errorf("%s: %v were counted, %d sent", k.reason, got, times)
		}
		if n := strings.Count(log, "reason="+k.reason+" "); n != 1 {
			t.Errorf("%s: %d lines in the log, want 1", k.reason, n)
		}
	}
	tell := t.Errorf
	for _, s := range b.actives() {
		if s.By == b.Members[1].MAC && s.End.After(began) {
			if b.excused(s.Start) {
				tell = t.Logf // the transitions, too
			}
			tell("the other became Active %v; the machine stood still for %v", s, b.machine.Within(began, s.Start))
		}
	}
	if got := metric(after, "holdfast_vrrp_transitions_total"); got != metric(before, "holdfast_vrrp_transitions_total") {
		tell("%v transitions", got)
	}

	// Somebody claims the address again and again: named, and answered by
	// announcements until he is quiet.
	began = time.Now()
	thief := wire.MAC{2, 0, 0, 0, 0, 0x66}
	everybody := wire.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	ctx, cancel := b.context()
	defer cancel()
	b.must(site.Poll(ctx, func(context.Context) error {
		b.must(stranger.Send(stranger.Frame(everybody, 0x0806, wire.ARP(2, thief, vip, everybody, vip))))
		if lineWith(b.Members[0].Log(), "condition", "duplicate", thief.String()) == "" {
			return errors.New("the duplicate owner is not named")
		}
		return nil
	}))
	_, err := b.Watch.Await(ctx, began, "an announcement", func(e wire.Event) bool {
		return e.Kind == wire.Announce && e.From == b.Members[0].MAC && e.Addr == vip
	})
	b.must(err)
	b.awaitLog(b.Members[0], 0, "condition ended", "duplicate")
}

// series is one series of the metrics.
func series(text, name string) float64 {
	for line := range strings.Lines(text) {
		var value float64
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &value); err == nil {
				return value
			}
		}
	}
	return 0
}
