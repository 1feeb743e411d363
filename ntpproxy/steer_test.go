package ntpproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

// fakeClock is a clock over the machine's oscillator that a test may steer.
type fakeClock struct {
	mu        sync.Mutex
	at        clock.Reading
	frequency float64       // ppm
	slow      time.Duration // to be slewed by adjtime
	fast      time.Duration // likewise, by the phase-locked loop
	running   time.Duration // is slewed in this second of the clock
	steps     []time.Duration
	told      []clock.Steering
	state     clock.State
}

func newFakeClock(t *testing.T, off time.Duration, ppm float64) *fakeClock {
	t.Helper()
	now, err := clock.Now()
	if err != nil {
		t.Fatal(err)
	}
	now.Clock = now.Clock.Add(off)
	return &fakeClock{at: now, frequency: ppm, state: clock.State{Frequency: ppm}}
}

func (c *fakeClock) Now() (clock.Reading, error) {
	now, err := clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.at.Raw < now.Raw {
		second := c.at.Clock.Truncate(time.Second)
		rate := 1 + c.frequency*1e-6 + c.running.Seconds()
		d := min(now.Raw-c.at.Raw, time.Duration(float64(second.Add(time.Second).Sub(c.at.Clock))/rate)+1)
		c.at = clock.Reading{Clock: c.at.Clock.Add(time.Duration(rate * float64(d))), Raw: c.at.Raw + d}
		if !c.at.Clock.Truncate(time.Second).Equal(second) { // the kernel's second_overflow()
			slow := max(-500*time.Microsecond, min(500*time.Microsecond, c.slow))
			c.slow, c.fast, c.running = c.slow-slow, c.fast-c.fast/4, slow+c.fast/4
		}
	}
	return c.at, err
}

func (c *fakeClock) Steer(s clock.Steering) error {
	_, err := c.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frequency, c.slow, c.fast = s.Frequency, s.Slew, s.Fast
	c.told = append(c.told, s)
	if s.Step != 0 {
		c.at.Clock, c.slow, c.fast, c.running = c.at.Clock.Add(s.Step), 0, 0, 0
		c.steps = append(c.steps, s.Step)
	}
	c.state.Frequency, c.state.Synchronised = s.Frequency, !s.Unsynchronised
	if c.state.Tick != 0 {
		c.state.Tick = clock.NominalTick
	}
	return err
}

func (c *fakeClock) State() (clock.State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, nil
}

// interfere is what another daemon does, once.
func (c *fakeClock) interfere(change func(*clock.State)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.state)
}

// stepped is what it was stepped by.
func (c *fakeClock) stepped() []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.steps)
}

// off is how far the clock is ahead of the machine's.
func (c *fakeClock) off(t *testing.T) time.Duration {
	t.Helper()
	real, err := clock.Now()
	if err != nil {
		t.Fatal(err)
	}
	fake, _ := c.Now()
	return fake.Clock.Sub(real.Clock) - (fake.Raw - real.Raw)
}

// keeping is a server that disciplines a fake clock.
func keeping(t *testing.T, c *fakeClock, keep string, sources ...string) *fixture {
	t.Helper()
	text := fmt.Sprintf("ntp:\n  keep: %s\n  poll: {min: -4, max: -2}\n  sources: [%q]\n", keep, strings.Join(sources, `", "`))
	text = strings.ReplaceAll(text, `\"`, `"`)
	file := testCluster(t, "ntp:\n", text)
	f := &fixture{registry: prometheus.NewRegistry(), board: health.NewBoard(time.Now, nil, nil)}
	config := Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, StateDir: t.TempDir(), RunDir: t.TempDir()}
	var err error
	f.server, err = New(config, Deps{
		File: file, Log: slog.New(slog.DiscardHandler), Metrics: f.registry, Board: f.board, Chrony: nobody,
		Kernel: c.State, Clock: c, Now: func() time.Time { now, _ := c.Now(); return now.Clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// liar serves a time that is off.
func liar(t *testing.T, off time.Duration) string {
	t.Helper()
	conn, at := listenLocal(t)
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return // the test is over
			}
			p, _ := ntp.Parse(buf[:n])
			now := ntp.FromTime(time.Now().Add(off))
			reply := ntp.Packet{Version: 4, Mode: ntp.ModeServer, Stratum: 1, Origin: p.Transmit, Receive: now, Transmit: now}
			var out [ntp.Size]byte
			reply.Put(&out)
			_, _ = conn.WriteTo(out[:], from)
		}
	}()
	return at
}

// chronyServer starts a chronyd that serves the machine's clock and leaves it
// alone.
func chronyServer(t *testing.T, root string, port int) string {
	t.Helper()
	dir := t.TempDir()
	config := fmt.Sprintf("local stratum 3\nallow 127.0.0.0/8\nport %d\ncmdport 0\nbindcmdaddress /\nbindaddress 127.0.0.1\npidfile %s/pid\n", port, dir)
	path := filepath.Join(dir, "chrony.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(root, "usr/sbin/chronyd"), "-x", "-d", "-u", "root", "-f", path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func TestClockIsBroughtToChronydsAndALiarIsNamed(t *testing.T) {
	root := peers(t)
	c := newFakeClock(t, -3*time.Second, 40)
	f := keeping(t, c, keepDiscipline, chronyServer(t, root, 21231), liar(t, 24*time.Hour), chronyServer(t, root, 21232))
	t.Run("serving", func(t *testing.T) {
		at := f.serve(t)
		eventually(t, "the clock is kept", func() bool {
			k := f.server.Kept()
			return k != nil && k.Synchronised && k.Updates > 40 && c.off(t).Abs() < time.Millisecond
		})
		if steps := c.stepped(); len(steps) != 1 {
			t.Errorf("steps %v, want the first alone", steps)
		}
		eventually(t, "the source that is a day ahead is called a falseticker", func() bool {
			return f.server.Kept().Sources[1].State == discipline.Falseticker
		})
		eventually(t, "the falseticker is a condition", func() bool { return raised(f.board, conditionFalseticker) })
		eventually(t, "clients are told", func() bool { return f.server.Standing().Stratum == 4 })
		a := f.ask(t, at)
		if a.Stratum != 4 || a.ReferenceID != (ntp.Reference{127, 0, 0, 1}) || a.RootDispersion == 0 {
			t.Errorf("clients see %+v", a.Packet)
		}
		if err := f.server.StepNow(false); err != nil {
			t.Error(err)
		}
	})
	d, err := readDrift(filepath.Join(f.server.config.StateDir, driftFile))
	if err != nil || d.skew == 0 {
		t.Errorf("the drift is not remembered: %+v, %v", d, err)
	}
}

// raised tells whether a condition stands.
func raised(b *health.Board, name string) bool {
	for _, c := range b.Conditions() {
		if c.Name == name {
			return true
		}
	}
	return false
}

// givesWayTo waits until the server says that another daemon steers the clock, and
// stops. That daemon does so once. Where we look and then steer, it may come in
// between and be overwritten: after an update of ours it does it again, three
// times in all at most. Who sees it only when it is done without end does not pass.
func (f *fixture) givesWayTo(t *testing.T, c *fakeClock, change func(*clock.State)) {
	t.Helper()
	updates, times := -1, 0
	eventually(t, "it is said", func() bool {
		k := f.server.Kept()
		if k != nil && k.Updates != updates && times < 3 {
			updates = k.Updates
			times++
			c.interfere(change)
		}
		return k == nil && raised(f.board, conditionRefused)
	})
}

func TestClockThatAnotherSteersIsLeftAlone(t *testing.T) {
	source := newFixture(t, testCluster(t), "127.0.0.1:0").serve(t).String()
	t.Run("before we start", func(t *testing.T) {
		c := newFakeClock(t, -time.Second, 0)
		c.state.Synchronised = true
		f := keeping(t, c, keepDiscipline, source)
		f.serve(t)
		eventually(t, "it is said", func() bool { return raised(f.board, conditionRefused) })
		if steps := c.stepped(); len(steps) > 0 || f.server.StepNow(false) == nil {
			t.Errorf("steps %v of a clock that is another's", steps)
		}
	})
	t.Run("while we steer", func(t *testing.T) {
		c := newFakeClock(t, 0, 0)
		f := keeping(t, c, keepDiscipline, source)
		f.serve(t)
		eventually(t, "we steer", func() bool { k := f.server.Kept(); return k != nil && k.Updates > 3 })
		f.givesWayTo(t, c, func(s *clock.State) { s.Frequency = -77 })
	})
}

func TestForgedRepliesAreNotHeard(t *testing.T) {
	conn, at := listenLocal(t)
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return // the test is over
			}
			p, _ := ntp.Parse(buf[:n])
			for i, origin := range []ntp.Timestamp{0, p.Transmit + 1, p.Transmit} {
				at := ntp.FromTime(time.Now().Add(time.Duration(2-i) * time.Hour))
				reply := ntp.Packet{Version: 4, Mode: ntp.ModeServer, Stratum: 1, Origin: origin, Receive: at, Transmit: at}
				var out [ntp.Size]byte
				reply.Put(&out)
				_, _ = conn.WriteTo(out[:], from)
			}
		}
	}()
	before, _ := clock.Now()
	s, _, _, err := exchange(t.Context(), at)
	for try := 0; try < 5 && errors.Is(err, context.DeadlineExceeded); try++ { // the machine stood still
		s, _, _, err = exchange(t.Context(), at)
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := s.Server.Sub(before.Clock); d.Abs() > 30*time.Minute { // forged ones are an hour ahead, at least
		t.Errorf("the source is believed to be %v ahead: that was a forged reply", d)
	}
}

func TestSilentSourceEndsInTime(t *testing.T) {
	_, at := listenLocal(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, _, err := exchange(ctx, at); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
