package vrrp_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/lab/routers"
	"holdfast/lab/wire"
)

// pair is two members of Holdfast whose address a client asks for and pings.
func pair(t *testing.T, interval time.Duration) *bench {
	t.Helper()
	o := settings{version: 3, interval: interval}.options(routers.Holdfast, routers.Holdfast)
	o.Ping = 5 * time.Millisecond
	return newBench(t, o)
}

// TestAKilledAgentAnswersForNothing: the guard takes the addresses away before
// a peer has them, so that no two hardware addresses answer for one.
func TestAKilledAgentAnswersForNothing(t *testing.T) {
	for _, interval := range []time.Duration{time.Second, 100 * time.Millisecond} {
		t.Run(interval.String(), func(t *testing.T) {
			b := pair(t, interval)
			// One after the other: two that start at once may time out within
			// the same millisecond, before either has heard the other.
			first, began := b.Members[0], time.Now()
			b.must(first.Start())
			b.awaitSole(0, began)
			began = time.Now()
			b.must(b.Members[1].Start())
			b.awaitListening(b.Members[1], 0)
			b.awaitSole(0, began)
			killed := time.Now()
			b.must(first.Kill())
			e := b.awaitSole(1, killed)
			down := 3*interval + interval
			gone := b.lastAnswer(first).Sub(killed)
			t.Logf("killed: its last ARP answer after %v, the other Active after %v", gone, e.At.Sub(killed)-interval)
			b.machine.Judge(t, "until the dead node answered ARP no more (Active_Down_Interval)", down, killed, killed.Add(gone))
			answering := wire.Answering(b.Watch.Events(), b.Options.VIP(0), interval)
			for _, o := range wire.Overlaps(answering, 0, b.stalls(killed)...) { // the guard, too, may have stood still
				t.Errorf("two answered ARP %v", o)
			}
			b.neverTwo()
		})
	}
}

// lastAnswer is when a member last said that it has the address.
func (b *bench) lastAnswer(m *routers.Member) time.Time {
	var last time.Time
	for _, e := range b.Watch.Events() {
		if e.Kind == wire.Answer && e.From == m.MAC && e.Addr == b.Options.VIP(0) {
			last = e.At
		}
	}
	return last
}

// TestARestartIsNotNoticed: holdfast restart, and the successor that adopts:
// no ping is lost, nobody else becomes Active, the address never leaves.
func TestARestartIsNotNoticed(t *testing.T) {
	for _, interval := range []time.Duration{time.Second, 100 * time.Millisecond} {
		t.Run(interval.String(), func(t *testing.T) {
			b := pair(t, interval)
			b.start()
			first := b.Members[0]
			ctx, cancel := b.context()
			defer cancel()
			monitor, stop := b.monitorAddresses(first)
			defer stop()
			began := time.Now()
			for range 3 {
				before, skip := time.Now(), len(first.Log())
				_, err := first.Host.Run(ctx, binary, "restart", "--run-dir", "/run/holdfast")
				b.must(err)
				select { // it ends by itself; the caller starts the next
				case <-first.Proc().Done():
				case <-ctx.Done():
					t.Fatal("the agent did not end")
				}
				b.must(first.Start())
				b.awaitLog(first, skip, "adopted from a predecessor")
				b.awaitSole(0, before)
			}
			ended := time.Now()
			_, err := b.AwaitReply(ctx, first, ended.Add(100*time.Millisecond))
			b.must(err)
			w := wire.Window{From: began, To: ended}
			tell := t.Errorf
			for _, s := range b.actives() {
				if s.By != first.MAC && s.End.After(began) {
					if b.excused(s.Start) {
						tell = t.Logf // all that follows from it, too
					}
					tell("another became Active %v; the machine stood still for %v", s, b.machine.Within(began, ended))
				}
			}
			if n := wire.Lost(b.Ping.Since(began), w); n > 0 {
				tell("%d pings were lost, 5 ms apart", n)
			}
			if text := monitor(); strings.Contains(text, b.Options.VIP(0).String()) {
				tell("the address was touched:\n%s", text)
			}
		})
	}
}

// monitorAddresses runs ip monitor on a member, and returns what it said.
func (b *bench) monitorAddresses(m *routers.Member) (said func() string, stop func()) {
	b.t.Helper()
	p, err := m.Host.Start(labCmd("ip", "monitor", "address"))
	b.must(err)
	return func() string { return readFile(b.t, p.StdoutPath()) }, func() { _ = p.Kill() }
}

// TestAPlannedMoveLosesNothing: there and back, and pings 5 ms apart.
func TestAPlannedMoveLosesNothing(t *testing.T) {
	b := pair(t, 100*time.Millisecond)
	b.start()
	ctx, cancel := b.context()
	defer cancel()
	// Who stands still in the middle of a move for longer than three adverts is
	// taken for dead.
	b.machine.Repeat(t, "six moves", 3, 3*b.Options.Interval, func() (began, ended time.Time, missed error) {
		began = time.Now()
		for i := range 6 {
			from, to := b.Members[i%2], 1-i%2
			before := time.Now()
			if i%2 == 0 {
				b.must(from.Yield(ctx, 0))
			} else {
				b.must(b.Members[to].Return(ctx, 0))
			}
			b.awaitSole(to, before)
		}
		ended = time.Now()
		_, err := b.AwaitReply(ctx, b.Members[0], ended.Add(100*time.Millisecond))
		b.must(err)
		if n := wire.Lost(b.Ping.Since(began), wire.Window{From: began, To: ended}); n > 0 {
			missed = fmt.Errorf("%d pings were lost", n)
		}
		return began, ended, missed
	})
	b.neverTwo()
}

// TestWhatIsTakenAwayIsPutBack: the address by hand, and the whole interface.
func TestWhatIsTakenAwayIsPutBack(t *testing.T) {
	b := pair(t, 100*time.Millisecond)
	b.start()
	first := b.Members[0]
	ctx, cancel := b.context()
	defer cancel()
	vip := b.Options.VIP(0)
	began := time.Now()
	_, err := first.Host.Run(ctx, "ip", "address", "del", vip.String()+"/32", "dev", routers.Device)
	b.must(err)
	b.awaitLog(first, 0, "put back")
	b.holds(first, true)
	t.Logf("back after %v, with what it took to ask", time.Since(began))
	if got := metric(b.metrics(first), "holdfast_vrrp_addresses_returned_total"); got != 1 {
		t.Errorf("%v addresses were put back, want 1", got)
	}

	// The interface goes away: the other takes over; it comes back: so do we.
	gone := time.Now()
	_, err = first.Host.Run(ctx, "ip", "link", "set", routers.Device, "down")
	b.must(err)
	b.awaitSole(1, gone)
	back := time.Now()
	_, err = first.Host.Run(ctx, "ip", "link", "set", routers.Device, "up")
	b.must(err)
	b.awaitSole(0, back)
	b.holds(b.Members[1], false)
}

// metric is the sum of a metric's series.
func metric(text, name string) float64 {
	sum := 0.0
	for line := range strings.Lines(text) {
		var value float64
		rest, ok := strings.CutPrefix(line, name)
		if ok && (rest[0] == '{' || rest[0] == ' ') {
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &value); err == nil {
				sum += value
			}
		}
	}
	return sum
}
