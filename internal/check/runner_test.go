package check

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/state"
)

// probeFunc is a probe made of a function.
type probeFunc func(context.Context) Result

func (f probeFunc) Probe(ctx context.Context) Result { return f(ctx) }

// bench is a Runner whose probes are functions, with what it reported.
type bench struct {
	*Runner
	probes map[string]probeFunc

	mu      sync.Mutex
	reports []string
	began   time.Time
}

func newBench(probes map[string]probeFunc) *bench {
	b := &bench{probes: probes, began: time.Now()}
	b.Runner = NewRunner(Deps{
		Report: func(r Report) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.reports = append(b.reports, fmt.Sprintf("%s %s %s", r.ID, r.Status, r.Output))
		},
		NewProbe: func(d Definition, _ Commander) (Probe, error) { return b.probes[d.ID], nil },
	})
	return b
}

// run starts the Runner and returns what stops it.
func (b *bench) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.Run(ctx) }()
	return func() { cancel(); <-done }
}

func (b *bench) reported() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string{}, b.reports...)
}

func always(r Result) probeFunc { return func(context.Context) Result { return r } }

func tcpCheck(id string) Definition { return Definition{ID: id, TCP: "192.0.2.1:1"} }

func TestFirstProbeIsAtOnceAndThenEveryInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var times []time.Duration
		began := time.Now()
		b := newBench(map[string]probeFunc{"a": func(context.Context) Result {
			times = append(times, time.Since(began))
			return passing("ok")
		}})
		if err := b.Set([]Definition{tcpCheck("a")}); err != nil {
			t.Fatal(err)
		}
		stop := b.run(t)
		time.Sleep(95 * time.Second) // virtual
		stop()
		if len(times) < 9 || len(times) > 10 {
			t.Fatalf("%d probes in 95 s, want 9 or 10: %v", len(times), times)
		}
		if times[0] >= firstDelay {
			t.Errorf("the first probe came after %s, want less than %s", times[0], firstDelay)
		}
		distinct := map[time.Duration]bool{}
		for i := 1; i < len(times); i++ {
			gap := times[i] - times[i-1]
			distinct[gap] = true
			if gap < 9500*time.Millisecond || gap > 10500*time.Millisecond {
				t.Errorf("probe %d came %s after the one before", i, gap)
			}
		}
		if len(distinct) < 2 {
			t.Error("the interval has no jitter")
		}
		if diff := cmp.Diff([]string{"a passing ok"}, b.reported()); diff != "" {
			t.Errorf("reports (-want +got):\n%s", diff)
		}
	})
}

func TestAHungProbeIsCriticalAndBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		calls := 0
		b := newBench(map[string]probeFunc{
			"hung": func(context.Context) Result { calls++; <-release; return passing("late") },
			"fine": always(passing("ok")),
		})
		hung := tcpCheck("hung")
		hung.Timeout = time.Second
		if err := b.Set([]Definition{hung, tcpCheck("fine")}); err != nil {
			t.Fatal(err)
		}
		stop := b.run(t)
		time.Sleep(60 * time.Second)
		want := []string{"fine passing ok", "hung critical the probe hangs: limit 1s, not back 1s later"}
		if diff := cmp.Diff(want, b.reported()); diff != "" {
			t.Errorf("reports (-want +got):\n%s", diff)
		}
		synctest.Wait()
		if calls != 1 {
			t.Errorf("%d probes were started while the first hung", calls)
		}
		close(release)
		synctest.Wait()
		if got := b.reported(); len(got) != 3 || got[2] != "hung passing late" {
			t.Errorf("after its return: %v", got)
		}
		stop()
	})
}

func TestAHungProbeFailsAgainWithEveryInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang, release := make(chan struct{}), make(chan struct{})
		b := newBench(map[string]probeFunc{"disk": func(context.Context) Result {
			select {
			case <-hang:
				<-release
			default:
			}
			return passing("ok")
		}})
		disk := tcpCheck("disk")
		disk.Timeout, disk.Fall = time.Second, 3
		if err := b.Set([]Definition{disk}); err != nil {
			t.Fatal(err)
		}
		stop := b.run(t)
		defer stop()
		defer close(release)
		time.Sleep(time.Second)
		close(hang) // the next probe, 10 s later, does not return
		time.Sleep(25 * time.Second)
		if diff := cmp.Diff([]string{"disk passing ok"}, b.reported()); diff != "" {
			t.Errorf("before the third failure (-want +got):\n%s", diff)
		}
		time.Sleep(10 * time.Second)
		want := []string{"disk passing ok", "disk critical the probe hangs: limit 1s, not back 1s later"}
		if diff := cmp.Diff(want, b.reported()); diff != "" {
			t.Errorf("after it (-want +got):\n%s", diff)
		}
	})
}

func TestTheTimeLimitEndsAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(map[string]probeFunc{"slow": func(ctx context.Context) Result {
			began := time.Now()
			<-ctx.Done()
			return critical("gave up after %s", time.Since(began))
		}})
		slow := tcpCheck("slow")
		slow.Timeout = 2 * time.Second
		if err := b.Set([]Definition{slow}); err != nil {
			t.Fatal(err)
		}
		stop := b.run(t)
		time.Sleep(5 * time.Second)
		stop()
		if diff := cmp.Diff([]string{"slow critical gave up after 2s"}, b.reported()); diff != "" {
			t.Errorf("reports (-want +got):\n%s", diff)
		}
	})
}

func TestEndOfRunEndsEveryProbeAndReportsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(map[string]probeFunc{"slow": func(ctx context.Context) Result {
			<-ctx.Done()
			return critical("broken off")
		}})
		if err := b.Set([]Definition{tcpCheck("slow")}); err != nil {
			t.Fatal(err)
		}
		stop := b.run(t)
		time.Sleep(time.Second)
		began := time.Now()
		stop()
		if took := time.Since(began); took > 0 {
			t.Errorf("the end took %s", took)
		}
		if got := b.reported(); len(got) != 0 {
			t.Errorf("reported %v", got)
		}
		// synctest fails the test if a goroutine is left.
	})
}

func TestEndOfRunDoesNotWaitForAHungProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		b := newBench(map[string]probeFunc{"hung": func(context.Context) Result { <-release; return passing("") }})
		if err := b.Set([]Definition{tcpCheck("hung")}); err != nil {
			t.Fatal(err)
		}
		stop := b.run(t)
		time.Sleep(time.Second)
		began := time.Now()
		stop()
		if took := time.Since(began); took > overdue {
			t.Errorf("the end took %s", took)
		}
	})
}

func TestSetKeepsWhatDidNotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := map[string]int{}
		var mu sync.Mutex
		counting := func(id string) probeFunc {
			return func(context.Context) Result {
				mu.Lock()
				defer mu.Unlock()
				count[id]++
				return passing("ok")
			}
		}
		b := newBench(map[string]probeFunc{"kept": counting("kept"), "changed": counting("changed"), "gone": counting("gone"), "new": counting("new")})
		stop := b.run(t)
		defer stop()
		kept, changed, gone := tcpCheck("kept"), tcpCheck("changed"), tcpCheck("gone")
		if err := b.Set([]Definition{kept, changed, gone}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		changed.Fall = 3
		if err := b.Set([]Definition{changed, kept, tcpCheck("new")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		want := map[string]int{"kept": 1, "changed": 2, "gone": 1, "new": 1}
		if diff := cmp.Diff(want, count); diff != "" {
			t.Errorf("probes (-want +got):\n%s", diff)
		}
	})
}

func TestARemovedCheckReportsNothingMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(map[string]probeFunc{"a": func(ctx context.Context) Result {
			<-ctx.Done()
			return critical("removed")
		}})
		stop := b.run(t)
		defer stop()
		if err := b.Set([]Definition{tcpCheck("a")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := b.Set(nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := b.reported(); len(got) != 0 {
			t.Errorf("reported %v", got)
		}
	})
}

func TestSetRefusesAllWhenOneIsWrong(t *testing.T) {
	b := newBench(nil)
	for _, bad := range [][]Definition{
		{tcpCheck("a"), tcpCheck("a")},
		{tcpCheck("a"), {ID: "b"}},
	} {
		if err := b.Set(bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
		if len(b.checks) != 0 {
			t.Errorf("%d checks are there after an error", len(b.checks))
		}
	}
}

func TestTTLExpiresAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil)
		if err := b.Set([]Definition{{ID: "ttl", TTL: 10 * time.Second}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // the TTL counts from the start of Run
		stop := b.run(t)
		defer stop()
		time.Sleep(9 * time.Second)
		for range 5 { // updated in time, five times
			if err := b.Update("ttl", state.Passing, "fine"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(9 * time.Second)
		}
		if diff := cmp.Diff([]string{"ttl passing fine"}, b.reported()); diff != "" {
			t.Errorf("reports (-want +got):\n%s", diff)
		}
		time.Sleep(1001 * time.Millisecond)
		if got := b.reported(); len(got) != 2 || got[1][:12] != "ttl critical" {
			t.Errorf("after the TTL: %v", got)
		}
		time.Sleep(time.Hour)
		if err := b.Update("ttl", state.Warning, "back"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		if got := b.reported(); len(got) != 4 || got[2] != "ttl warning back" {
			t.Errorf("after its return: %v", got)
		}
	})
}

func TestATTLCountsOverARestart(t *testing.T) {
	for _, test := range []struct {
		name    string
		ttl     time.Duration
		ago     time.Duration // of the last update, at the start
		expires time.Duration // after the start
	}{
		{"not known", time.Hour, 0, time.Hour},
		{"in time", time.Hour, 20 * time.Minute, 40 * time.Minute},
		{"nearly over: its owner gets a moment", time.Hour, time.Hour - time.Second, time.Minute},
		{"long over", time.Hour, 72 * time.Hour, time.Minute},
		{"short: starts again", 30 * time.Second, 20 * time.Second, 30 * time.Second},
		{"the clock was set back", time.Hour, -50 * 365 * 24 * time.Hour, time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(nil)
				var last time.Time
				b.deps.LastUpdate = func(string) time.Time { return last }
				if test.ago != 0 {
					last = time.Now().Add(-test.ago)
				}
				if err := b.Set([]Definition{{ID: "ttl", TTL: test.ttl}}); err != nil {
					t.Fatal(err)
				}
				stop := b.run(t)
				defer stop()
				time.Sleep(test.expires - time.Millisecond)
				if got := b.reported(); len(got) != 0 {
					t.Errorf("too early: %v", got)
				}
				time.Sleep(2 * time.Millisecond)
				got := b.reported()
				if len(got) != 1 || !strings.HasPrefix(got[0], "ttl critical TTL of") {
					t.Fatalf("after the TTL: %v", got)
				}
				if since := last.UTC().Format(time.RFC3339); test.ago > time.Minute && !strings.Contains(got[0], since) {
					t.Errorf("%q does not say since when: %s", got[0], since)
				}
			})
		})
	}
}

func TestUpdateSaysWhatIsWrong(t *testing.T) {
	b := newBench(map[string]probeFunc{"tcp": always(passing(""))})
	if err := b.Set([]Definition{tcpCheck("tcp"), {ID: "ttl", TTL: time.Second}}); err != nil {
		t.Fatal(err)
	}
	if err := b.Update("absent", state.Passing, ""); !errors.Is(err, ErrUnknown) {
		t.Errorf("absent: %v, want ErrUnknown", err)
	}
	if err := b.Update("tcp", state.Passing, ""); err == nil || errors.Is(err, ErrUnknown) {
		t.Errorf("a TCP check was updated: %v", err)
	}
	if err := b.Update("ttl", "fine", ""); err == nil {
		t.Error("an unknown status was accepted")
	}
}

func TestRunCanBeCalledAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		b := newBench(map[string]probeFunc{"a": func(context.Context) Result { n++; return passing("ok") }})
		if err := b.Set([]Definition{tcpCheck("a")}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			stop := b.run(t)
			time.Sleep(time.Second)
			stop()
		}
		if n != 2 {
			t.Errorf("%d probes in two runs, want 2", n)
		}
		if diff := cmp.Diff([]string{"a passing ok"}, b.reported()); diff != "" {
			t.Errorf("reports (-want +got):\n%s", diff)
		}
	})
}
