package discipline

import (
	"math"
	"testing"
	"time"
)

// off is a machine whose clock is off, and that may not be stepped.
func off(t testing.TB, seed uint64, clock float64, config Config) *world {
	w := newWorld(t, seed, lan(), lan(), lan())
	w.clock, w.wander = clock, 1e-10
	w.start(config)
	w.core.HoldSteps(true)
	return w
}

// slowly is how long the kernel's own way alone takes for an offset, in seconds.
func slowly(clock float64) float64 { return math.Abs(clock) / slowSlew }

func TestAnOffsetIsSlewedAwayWithinSeconds(t *testing.T) {
	for name, test := range map[string]struct {
		clock  float64
		slew   float64 // 0: the default
		within float64 // seconds from the start until it is below a millisecond for good
	}{
		// The first word of the sources comes after 4 s.
		"20 ms":                  {20e-3, 0, 4 + 6},
		"20 ms behind":           {-20e-3, 0, 4 + 6},
		"200 ms":                 {200e-3, 0, 4 + 26},
		"2 s":                    {2, 0, 4 + 208},
		"2 s, as fast as can be": {2, MaxSlew, 4 + 28},
		"20 ms, as before":       {20e-3, MinSlew, 4 + 40},
	} {
		t.Run(name, func(t *testing.T) {
			worst := 0.0
			for seed := range uint64(20) {
				w, last := off(t, seed, test.clock, Config{Slew: test.slew}), 0.0
				w.each = func() {
					if math.Abs(w.clock) > 1e-3 {
						last = w.now
					}
				}
				w.run(20 + 2*slowly(test.clock))
				worst = max(worst, last)
				if len(w.steps) > 0 {
					t.Errorf("seed %d: stepped by %v", seed, w.steps)
				}
				if most := w.core.config.Slew; w.rate > most*1.001 {
					t.Errorf("seed %d: %.0f ppm faster, want %.0f at most", seed, w.rate*1e6, most*1e6)
				}
			}
			t.Logf("within 1 ms for good after %.0f s, at 500 ppm it takes %.0f", worst, 4+slowly(test.clock))
			if worst > test.within {
				t.Errorf("within 1 ms for good after %.0f s, want %.0f", worst, test.within)
			}
		})
	}
}

// The process dies, hangs, or is killed: nobody takes the slew back.
func TestAClockWhoseKeeperDiesEndsNoFurtherOffThanItWas(t *testing.T) {
	for _, clock := range []float64{20e-3, -45e-3, 300e-3} {
		for _, dead := range []float64{4.2, 4.6, 5.1, 5.5, 5.7, 6.3, 7.7, 9, 20} {
			for _, orderly := range []bool{false, true} {
				w := off(t, 1, clock, Config{Frequency: -20e-6, Skew: 1e-9})
				w.run(dead)
				was := w.clock
				if orderly {
					if a := w.core.Release(w.reading()); a != nil {
						w.tell(*a)
					}
				}
				w.wake = math.Inf(1)
				w.servers = nil
				w.run(w.now + 60)
				wander := 200e-6
				if math.Abs(w.clock) > math.Abs(clock)+wander || math.Abs(w.running) > 1e-6 {
					t.Errorf("off by %v s, dead at %v s with %v: ends with %v, still slewing at %.1f ppm", clock, dead, was, w.clock, w.running*1e6)
				}
				if orderly && math.Abs(was) < 30e-3 && math.Abs(w.clock) > 2*wander {
					t.Errorf("off by %v s, ended at %v s with %v: what was left was not handed over, off by %v", clock, dead, was, w.clock)
				}
			}
		}
	}
}

// What is only noise is left to the slow way, as it always was.
func TestNoiseIsNotChasedFast(t *testing.T) {
	far := func() *server { return &server{way: 20e-3, jitter: 20e-3, dispersion: 5 * time.Millisecond} }
	kept := func(slew float64) (f figures, fast int) {
		w := newWorld(t, 5, far(), far(), far())
		w.start(Config{Slew: slew})
		w.run(2 * hour)
		w.rate = 0
		f = w.watch(30 * hour)
		return f, int(w.rate * 1e6)
	}
	slow, _ := kept(MinSlew)
	f, fast := kept(0)
	t.Logf("offset rms %.2f ms, most %.1f ms, at most %d ppm faster; at 500 ppm rms %.2f ms", f.rms()*1e3, f.most*1e3, fast, slow.rms()*1e3)
	if f.rms() > 1.01*slow.rms() {
		t.Errorf("offset rms %v, %v when it is slewed at 500 ppm alone", f.rms(), slow.rms())
	}
	if fast > 0 {
		t.Errorf("the clock ran up to %d ppm faster after noise", fast)
	}
}

// The core reckons what the kernel is about; the simulator's kernel does it.
func TestWhatTheKernelIsAboutIsKnown(t *testing.T) {
	w := off(t, 3, 150e-3, Config{})
	w.each = func() {
		k := w.core.Tracking(w.reading())
		if d := math.Abs(k.Slew - w.running); d > 1e-6 {
			t.Errorf("at %v s: %v is said, the kernel slews at %v", w.now, k.Slew, w.running)
		}
	}
	w.run(60)
	if w.each = nil; w.rate < 9e-3 {
		t.Errorf("at most %v was slewed", w.rate)
	}
}

func TestAFastSlewEndsWhenTheClockIsSetByAnother(t *testing.T) {
	w := off(t, 1, 300e-3, Config{})
	w.run(10)
	w.clock += 5000
	w.run(200)
	if len(w.errs) == 0 || w.clock < 4999 || math.Abs(w.running) > 1e-9 {
		t.Errorf("off by %v s, slewing at %v, errors %v: want it left alone, and said", w.clock, w.running, w.errs)
	}
}
