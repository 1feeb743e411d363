package discipline

import (
	"errors"
	"math"
	"testing"
)

// An orphan cluster is 30 s off, its source comes back, and an admin brings it
// home at once: what was left to be walked is left no more.
func TestStepDuringTheWalkHomeEndsIt(t *testing.T) {
	s := lan()
	s.cut = func(now float64) bool { return now < hour }
	w := newWorld(t, 1, s)
	w.clock = 30
	w.start(Config{Orphan: 10})
	w.core.Lead(Self)
	w.run(2 * hour)
	if !w.core.healing || w.clock < 29 {
		t.Fatalf("off by %v s, healing: %v; this test is of a walk", w.clock, w.core.healing)
	}
	w.core.AllowStep(false)
	w.wake = w.now
	w.run(w.now + 10)
	if len(w.steps) != 1 || math.Abs(w.clock) > 1e-3 {
		t.Fatalf("steps %v, off by %v s", w.steps, w.clock)
	}
	if f := w.watch(6 * hour); f.most > 1e-3 || len(w.steps) != 1 {
		t.Errorf("after the step it went away again, by up to %v s; steps %v", f.most, w.steps)
	}
}

func TestPermissionToStepLapses(t *testing.T) {
	for name, test := range map[string]struct {
		silent float64 // for so long after the admin spoke
		steps  int
	}{"the source answers a little later": {60, 1}, "it answers days later": {48 * hour, 0}} {
		t.Run(name, func(t *testing.T) {
			const gone, said = 2 * hour, 5 * hour
			back := said + test.silent
			s := lan()
			s.cut = func(now float64) bool { return now > gone && now < back }
			s.wrong = func(now float64) float64 {
				if now > gone {
					return 5
				}
				return 0
			}
			w := newWorld(t, 1, s)
			w.start(Config{})
			w.run(said)
			w.core.AllowStep(false)
			w.wake = w.now
			w.run(back + 1100)
			if len(w.steps) != test.steps {
				t.Errorf("steps %v, want %d", w.steps, test.steps)
			}
		})
	}
}

// What is too far to be slewed is stepped at the start, however large ntp.step
// is, and by an admin's word; later it is left alone.
func TestLargeStepDoesNotKeepAClockThatIsFarOff(t *testing.T) {
	config := Config{StepOver: 30 * 60e9}
	w := newWorld(t, 1, lan(), lan(), lan())
	w.clock = -1200
	w.start(config)
	w.run(60)
	if len(w.steps) != 1 || math.Abs(w.clock) > 1e-3 || len(w.errs) > 0 {
		t.Fatalf("20 minutes off at the start: steps %v, off by %v s, errors %v", w.steps, w.clock, w.errs)
	}
	w.run(3 * hour)
	w.clock -= 1200
	w.run(4 * hour)
	if len(w.steps) != 1 || len(w.errs) == 0 || !errors.Is(w.errs[0], ErrPanic) {
		t.Fatalf("20 minutes off later: steps %v, errors %v", w.steps, w.errs)
	}
	w.core.AllowStep(false)
	w.wake = w.now
	w.run(w.now + 10)
	if len(w.steps) != 2 || math.Abs(w.clock) > 1e-3 {
		t.Errorf("an admin's word: steps %v, off by %v s", w.steps, w.clock)
	}
	w = newWorld(t, 1, lan(), lan(), lan())
	w.clock = -600
	w.start(config)
	w.run(60)
	if k := w.core.Tracking(w.reading()); len(w.steps) > 0 || len(w.errs) > 0 || k.Updates == 0 || w.clock < -600 || w.clock > -590 {
		t.Errorf("ten minutes off, less than ntp.step: steps %v, errors %v, off by %v s after %d corrections, want it slewed", w.steps, w.errs, w.clock, k.Updates)
	}
}

// Whoever stepped the clock of a node that has no source can have it back.
func TestClockOfALeaderWithoutSourceIsBroughtBackByCommandAlone(t *testing.T) {
	w := newWorld(t, 1)
	w.start(Config{Orphan: 10})
	w.core.Lead(Self)
	w.run(hour)
	if k := w.core.Tracking(w.reading()); k.Phase != OrphanLeader || k.Stratum != 10 || !k.Synchronised {
		t.Fatalf("a cluster that is to have no source at all: %+v", k)
	}
	w.clock += 7200
	off := w.clock
	w.run(2 * hour)
	if len(w.errs) == 0 || len(w.steps) > 0 || math.Abs(w.clock-off) > 0.1 {
		t.Fatalf("two hours off: errors %d, steps %v, moved by %v s", len(w.errs), w.steps, w.clock-off)
	}
	w.core.AllowStep(false)
	w.wake = w.now
	w.run(w.now + 10)
	if len(w.steps) != 1 || math.Abs(w.clock) > 1 {
		t.Errorf("steps %v, off by %v s", w.steps, w.clock)
	}
}
