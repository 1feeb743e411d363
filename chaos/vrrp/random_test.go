package vrrp_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/lab/routers"
	"holdfast/lab/wire"
)

// TestRandomFaultsNeverMakeTwoActives: one Holdfast among two keepaliveds, and
// one keepalived among two Holdfasts, while members are killed, stopped,
// paused and unplugged. Whoever is Active is alone, but for a partition and for
// what a daemon that did not run left behind; and there is always somebody.
// VRRP_CHAOS says for how long (two minutes), CHAOS_SEED repeats a run.
func TestRandomFaultsNeverMakeTwoActives(t *testing.T) {
	duration := 2 * time.Minute
	if text := os.Getenv("VRRP_CHAOS"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatalf("VRRP_CHAOS: %v", err)
		}
	}
	const k, h = routers.Keepalived, routers.Holdfast
	for _, kinds := range [][]routers.Kind{{k, h, k}, {h, k, h}} {
		t.Run(fmt.Sprint(kinds), func(t *testing.T) {
			t.Parallel()
			o := settings{version: 3, interval: 200 * time.Millisecond}.options(kinds...)
			b := newBench(t, o)
			r := &rampage{bench: b, rand: chaos.Seeded(t)}
			b.start()
			r.run(duration)
			r.judge()
		})
	}
}

// rampage is what happened to a site.
type rampage struct {
	*bench
	rand    *rand.Rand
	excused []wire.Window // two may be Active: they can't hear each other
	history []string
	count   map[string]int
}

func (r *rampage) run(d time.Duration) {
	r.t.Helper()
	r.count = map[string]int{}
	for end := time.Now().Add(d); time.Now().Before(end); {
		m := r.Members[r.rand.IntN(len(r.Members))]
		if r.rand.IntN(2) == 0 { // rather the one that matters
			m = r.active()
		}
		kind := []string{"kill", "term", "pause", "unplug"}[r.rand.IntN(4)]
		began := time.Now()
		r.history = append(r.history, fmt.Sprintf("%s %s %s", began.Format("05.000"), kind, m))
		r.count[kind]++
		r.fault(kind, m)
		r.settled(began)
	}
}

// active is who advertised last.
func (r *rampage) active() *routers.Member {
	events := r.Watch.Events()
	for i := len(events) - 1; i >= 0; i-- {
		for _, m := range r.Members {
			if r.Router(0).Is(events[i]) && events[i].From == m.MAC {
				return m
			}
		}
	}
	return r.Members[0]
}

// fault makes one, waits for a takeover or not, and ends it.
func (r *rampage) fault(kind string, m *routers.Member) {
	r.t.Helper()
	pause := time.Duration(r.rand.Int64N(int64(3 * time.Second)))
	began := time.Now()
	ctx, cancel := r.context()
	defer cancel()
	switch kind {
	case "kill":
		r.must(m.Kill())
		r.wait(pause)
		if m.Kind == routers.Keepalived {
			r.must(m.Sweep())
		}
		r.must(m.Start())
	case "term":
		r.must(m.End(ctx))
		r.wait(pause)
		r.must(m.Start())
	case "pause":
		r.must(m.Pause())
		r.wait(pause)
		r.must(m.Continue())
	case "unplug":
		r.must(m.Unplug())
		r.wait(pause)
		r.must(m.Plug())
		// It hears the others within an interval of the cable's return.
		r.excused = append(r.excused, wire.Window{From: began, To: time.Now().Add(r.Options.Interval)})
	}
}

// wait lets time pass for the fault to have its effect.
func (r *rampage) wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.t.Context().Done():
	}
}

// settled waits until the best member alone is Active: all of them run again.
func (r *rampage) settled(began time.Time) {
	r.t.Helper()
	ctx, cancel := r.context()
	defer cancel()
	if _, err := r.AwaitSole(ctx, r.Members[0], 0, time.Now()); err != nil {
		r.t.Fatalf("after what began at %s: %v\n%s", began.Format("05.000"), err, strings.Join(r.history, "\n"))
	}
}

func (r *rampage) judge() {
	r.t.Helper()
	r.neverTwo(r.excused...)
	for kind, n := range r.count {
		r.t.Logf("%s: %d times", kind, n)
	}
	r.silences()
	if r.t.Failed() {
		r.t.Log(strings.Join(r.history, "\n"))
	}
}

// silences says how long nobody advertised, and fails where that is longer than
// a stall forgiven, a takeover and a return need, without the time that the
// machine stood still.
func (r *rampage) silences() {
	r.t.Helper()
	var last time.Time
	longest := time.Duration(0)
	for _, e := range r.Watch.Events() {
		if !r.Router(0).Is(e) || e.Priority == 0 {
			continue
		}
		if !last.IsZero() && e.At.Sub(last) > longest {
			longest = max(longest, r.machine.Took(last, e.At))
		}
		last = e.At
	}
	r.t.Logf("longest time without an advert: %v", longest)
	if limit := 10 * r.Options.Interval; longest > limit {
		r.t.Errorf("nobody advertised for %v, more than %v", longest, limit)
	}
}
