package ntpproxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/internal/state"
)

// countedSource is a source that counts its requests; it answers with the right time.
func countedSource(t *testing.T) (at string, asked *atomic.Int64) {
	t.Helper()
	conn, at := listenLocal(t)
	asked = &atomic.Int64{}
	go countRequests(conn, asked)
	return at, asked
}

func countRequests(conn net.PacketConn, asked *atomic.Int64) {
	buf := make([]byte, 100)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return // the test is over
		}
		asked.Add(1)
		p, _ := ntp.Parse(buf[:n])
		now := ntp.FromTime(time.Now())
		reply := ntp.Packet{Version: 4, Mode: ntp.ModeServer, Stratum: 1, Origin: p.Transmit, Receive: now, Transmit: now}
		var out [ntp.Size]byte
		reply.Put(&out)
		_, _ = conn.WriteTo(out[:], from)
	}
}

// pauses records how long a server waits between attempts, and waits no longer
// than a moment; after each is called before it goes on.
type pauses struct {
	mu    sync.Mutex
	took  []time.Duration
	after func(n int)
}

func (p *pauses) pause(ctx context.Context, d time.Duration) bool {
	p.mu.Lock()
	p.took = append(p.took, d)
	n := len(p.took)
	p.mu.Unlock()
	if p.after != nil {
		p.after(n)
	}
	return pause(ctx, time.Millisecond)
}

// retries are the waits but for those of nothing to do.
func (p *pauses) retries() (list []time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.took), func(d time.Duration) bool { return d == 0 })
}

func TestNobodyIsAskedWithoutThePrivilegeToSteer(t *testing.T) {
	for _, keep := range []string{keepAuto, keepDiscipline} {
		source, asked := countedSource(t)
		f := keeping(t, newFakeClock(t, 0, 0), keep, source)
		f.server.permitted = func() error { return syscall.EPERM }
		p := &pauses{}
		f.server.pause = p.pause
		f.serve(t)
		eventually(t, "it was tried ten times", func() bool { return len(p.retries()) >= 11 })
		if n := asked.Load(); n != 0 {
			t.Errorf("keep: %s: %d requests", keep, n)
		}
		want := []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300}
		for i, d := range p.retries()[:11] {
			if d != want[i]*time.Second {
				t.Errorf("keep: %s: waited %v, want %v s", keep, p.retries()[:11], want)
				break
			}
		}
		if !raised(f.board, conditionRefused) {
			t.Errorf("keep: %s: no condition says so", keep)
		}
	}
}

// refusing is a clock that can be read and not be steered.
type refusing struct{ *fakeClock }

func (refusing) Steer(clock.Steering) error { return syscall.EPERM }

// Each attempt asks the sources in a burst: the more fail, the rarer they are.
func TestSourcesAreAskedMoreRarelyWhileTheKernelRefuses(t *testing.T) {
	source, _ := countedSource(t)
	c := newFakeClock(t, 0, 0)
	f := keeping(t, c, keepAuto, source)
	var lines atomic.Int64 // of the log
	f.board = health.NewBoard(time.Now, func(c health.Condition) {
		if c.Name == conditionRefused {
			lines.Add(1)
		}
	}, nil)
	f.server.board = f.board
	f.server.clock = refusing{c}
	p := &pauses{}
	f.server.pause = p.pause
	f.serve(t)
	eventually(t, "it was tried three times", func() bool { return len(p.retries()) >= 3 })
	if got := p.retries()[:3]; !slices.Equal(got, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}) {
		t.Errorf("waited %v", got)
	}
	if n := lines.Load(); n != 1 || !raised(f.board, conditionRefused) {
		t.Errorf("the condition was said %d times, and stands %v: want once, and that it stands", n, raised(f.board, conditionRefused))
	}
}

func TestAttemptsBeginAnewAfterItWentWell(t *testing.T) {
	var r retry
	for range 20 {
		r.after(time.Second)
	}
	if d := r.after(time.Second); d != retryLast {
		t.Errorf("after many: %v, want %v", d, retryLast)
	}
	if d := r.after(retrySteady); d != retryFirst {
		t.Errorf("after it went well: %v, want %v", d, retryFirst)
	}
}

// What lives here is not known while the replica is empty, and the first
// corrections step.
func TestClockIsNotSteppedBeforeTheCatalogIsKnown(t *testing.T) {
	source, asked := countedSource(t)
	c := newFakeClock(t, -3*time.Second, 0)
	f := keeping(t, c, keepDiscipline, source)
	store := state.New()
	f.server.config.Node, f.server.state, f.server.catalogWait = "fbservice1", store, time.Hour
	p := &pauses{after: func(n int) {
		if n != 5 {
			return
		}
		if asked.Load() > 0 || f.server.Kept() != nil {
			t.Error("steering began without a catalog")
		}
		err := store.Apply(1, state.Register{
			Node:     state.Node{Name: "fbservice1", ID: "fbservice1", Address: netip.MustParseAddr("10.1.0.1")},
			Services: []state.Service{{ID: "slurmctld", Name: "slurmctld"}},
		})
		if err != nil {
			t.Error(err)
		}
	}}
	f.server.pause = p.pause
	f.serve(t)
	eventually(t, "we steer", func() bool { k := f.server.Kept(); return k != nil && k.Updates > 3 })
	if steps := c.stepped(); len(steps) > 0 {
		t.Errorf("stepped by %v under slurmctld", steps)
	}
	forming := &Server{state: state.New(), started: time.Now().Add(-catalogWait), catalogWait: catalogWait}
	if !forming.catalogKnown() {
		t.Error("a cluster that is being formed never has its time")
	}
}

// brokenClock is a clock that breaks when a test says so.
type brokenClock struct {
	*fakeClock
	panics, fails atomic.Bool
}

func (c *brokenClock) Now() (clock.Reading, error) {
	if c.panics.Load() {
		panic("a bug")
	}
	if c.fails.Load() {
		return clock.Reading{}, errors.New("no clock")
	}
	return c.fakeClock.Now()
}

// Who asks a source ends with the keeper, also when that ends by an error.
func TestNothingIsLeftBehindWhenSteeringEnds(t *testing.T) {
	f := keeping(t, newFakeClock(t, 0, 0), keepDiscipline, "slow.example.org")
	c := &brokenClock{fakeClock: newFakeClock(t, 0, 0)}
	f.server.clock = c
	var under atomic.Int64
	f.server.resolve = func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
		under.Add(1)
		defer under.Add(-1)
		c.fails.Store(true)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if why := f.server.keep(t.Context(), f.server.settings.Load()); why != "no clock" {
		t.Errorf("ended: %q", why)
	}
	if n := under.Load(); n != 0 || f.server.Kept() != nil {
		t.Errorf("%d look-ups are left behind", n)
	}
}

// A panic beside the workers would end the agent, and all its services.
func TestBugInSteeringEndsTheServerAloneAndOneInAskingNothing(t *testing.T) {
	source, _ := countedSource(t)
	f := keeping(t, newFakeClock(t, 0, 0), keepDiscipline, "bug.example.org", source)
	c := &brokenClock{fakeClock: newFakeClock(t, 0, 0)}
	f.server.clock = c
	f.server.resolve = func(context.Context, string, string) ([]netip.Addr, error) { panic("a bug") }
	ctx, cancel := context.WithTimeout(t.Context(), 2*atMost)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f.server.Run(ctx, func() {}) }()
	eventually(t, "the other source is heard", func() bool { k := f.server.Kept(); return k != nil && k.Updates > 3 })
	c.panics.Store(true)
	if err := <-done; !errors.Is(err, errBug) {
		t.Errorf("Run ended with %v", err)
	}
}
