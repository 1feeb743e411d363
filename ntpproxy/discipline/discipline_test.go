package discipline

import (
	"errors"
	"math"
	"os"
	"slices"
	"strconv"
	"testing"
)

// runs is how often what is random is repeated, from different seeds:
// NTP_SIM_RUNS times. Nothing here runs beside anything, so that once is enough
// for the race detector.
func runs(t *testing.T) float64 {
	t.Helper()
	text := os.Getenv("NTP_SIM_RUNS")
	switch {
	case text == "" && raceEnabled:
		return 1
	case text == "":
		return 3
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		t.Fatalf("NTP_SIM_RUNS=%q is no number above 0", text)
	}
	return float64(n)
}

func TestClockIsKeptThroughHundredsOfHours(t *testing.T) {
	for name, test := range map[string]struct {
		server        func() *server
		wander        float64
		rms, most, ff float64 // bounds: seconds, seconds, ratio
	}{
		"LAN, good crystal": {lan, 1e-10, 5e-6, 50e-6, 20e-9},
		"LAN":               {lan, 1e-9, 10e-6, 100e-6, 100e-9},
		"WAN":               {wan, 1e-9, 400e-6, 4e-3, 200e-9},
	} {
		t.Run(name, func(t *testing.T) {
			var rms, frequency, most float64
			const length = 100 * hour
			seeds := runs(t)
			asked := 0
			for seed := range uint64(seeds) {
				w := newWorld(t, seed, test.server(), test.server(), test.server())
				w.wander, w.clock = test.wander, 30e-3
				w.start(Config{})
				w.run(2 * hour)
				w.asked = 0
				f := w.watch(length)
				asked += w.asked
				rms, frequency, most = rms+f.rms()/seeds, frequency+f.frequency()/seeds, max(most, f.most)
			}
			t.Logf("offset rms %.2f µs, most %.1f µs; frequency error rms %.4f ppm; a source is asked every %.0f s", rms*1e6, most*1e6, frequency*1e6, 3*(length-2*hour)*seeds/float64(asked))
			if rms > test.rms || most > test.most || frequency > test.ff {
				t.Errorf("offset rms %.2e (bound %.0e), most %.2e (%.0e), frequency %.2e (%.0e)", rms, test.rms, most, test.most, frequency, test.ff)
			}
		})
	}
}

func TestClockConvergesAfterStart(t *testing.T) {
	for name, test := range map[string]struct {
		server       func() *server
		clock, bound float64
		within       float64
		steps        int
	}{
		"LAN, off by 30 ms":  {lan, 30e-3, 100e-6, 180, 0},
		"LAN, off by a year": {lan, -365 * 24 * hour, 100e-6, 180, 1},
		"WAN, off by 30 ms":  {wan, 30e-3, 5e-3, 300, 0},
	} {
		t.Run(name, func(t *testing.T) {
			worst := 0.0
			for seed := range uint64(20) {
				w := newWorld(t, seed, test.server(), test.server(), test.server())
				w.clock, w.drift = test.clock, 100e-6
				w.start(Config{})
				last := 0.0
				w.each = func() {
					if math.Abs(w.clock) > test.bound {
						last = w.now
					}
				}
				w.run(2 * hour)
				worst = max(worst, last)
				if len(w.steps) != test.steps {
					t.Errorf("seed %d: steps %v, want %d", seed, w.steps, test.steps)
				}
			}
			t.Logf("within %.0f µs for good after %.0f s at most", test.bound*1e6, worst)
			if worst > test.within {
				t.Errorf("not within %v s for good before %.0f s, want %v", test.bound, worst, test.within)
			}
		})
	}
}

func TestClockFollowsATemperatureStep(t *testing.T) {
	var most []float64
	for seed := range uint64(10) {
		w := newWorld(t, seed+1, lan(), lan(), lan())
		// The air conditioning fails: 0.5 ppm within 20 minutes.
		w.heat = func(now float64) float64 { return 0.5e-6 * max(0, min(1, (now-10*hour)/1200)) }
		w.start(Config{})
		w.run(9 * hour)
		f := w.watch(12 * hour)
		if most = append(most, f.most); f.most > 500e-6 {
			t.Errorf("seed %d: off by up to %.2e s, want 500 µs at most", seed+1, f.most)
		}
		if f = w.watch(20 * hour); f.rms() > 20e-6 {
			t.Errorf("seed %d: rms %.2e s when it is over, want 20 µs at most", seed+1, f.rms())
		}
	}
	slices.Sort(most)
	t.Logf("most %.1f µs in the median of %d, %.1f to %.1f", most[len(most)/2]*1e6, len(most), most[0]*1e6, most[len(most)-1]*1e6)
}

func TestHoldoverOfADayStaysWithinItsDispersion(t *testing.T) {
	var sum, most float64
	seeds := 3 * runs(t)
	for seed := range uint64(seeds) {
		dark := func(now float64) bool { return now > 48*hour }
		a, b, c := lan(), lan(), lan()
		a.cut, b.cut, c.cut = dark, dark, dark
		w := newWorld(t, seed, a, b, c)
		w.start(Config{})
		w.run(72 * hour)
		sum, most = sum+w.clock*w.clock, max(most, math.Abs(w.clock))
		if said := w.core.Dispersion(w.reading().Raw).Seconds(); math.Abs(w.clock) > said {
			t.Errorf("seed %d: off by %v s, and says %v at most", seed, w.clock, said)
		}
		for _, s := range w.core.Sources(w.reading()) {
			if s.State != Unreachable {
				t.Errorf("seed %d: source %s is %v after a day of silence", seed, s.Name, s.State)
			}
		}
	}
	rms := math.Sqrt(sum / seeds)
	t.Logf("after 24 h: rms %.2f ms, most %.2f ms", rms*1e3, most*1e3)
	// A random walk of the frequency alone makes that much: nobody can know it.
	unknowable := 1e-9 * math.Pow(24*hour, 1.5) / math.Sqrt(3)
	if rms > 1.3*unknowable {
		t.Errorf("rms %.2e s after a day, of which the oscillator explains %.2e", rms, unknowable)
	}
}

func TestLiarAmongHonestSourcesIsNamedAndMovesNothing(t *testing.T) {
	for name, wrong := range map[string]func(float64) float64{
		"by a day":                func(float64) float64 { return 24 * hour },
		"by 50 ms":                func(float64) float64 { return 50e-3 },
		"by 1970":                 func(float64) float64 { return -56 * 365 * 24 * hour },
		"honest for an hour":      func(now float64) float64 { return 10 * max(0, min(1, now-hour)) },
		"drifting away at 10 ppm": func(now float64) float64 { return 10e-6 * now },
	} {
		t.Run(name, func(t *testing.T) {
			liar := lan()
			liar.wrong = wrong
			w := newWorld(t, 1, liar, lan(), lan())
			w.clock = -40
			w.start(Config{})
			w.run(300)
			f := w.watch(5 * hour)
			if f.most > 6e-3 {
				t.Errorf("off by up to %v s", f.most)
			}
			if got := w.core.Sources(w.reading())[0].State; got != Falseticker {
				t.Errorf("the liar is called %v", got)
			}
			if len(w.steps) != 1 {
				t.Errorf("steps %v, want the first only", w.steps)
			}
		})
	}
}

func TestTwoSourcesThatDisagreeMoveNothing(t *testing.T) {
	a, b := lan(), lan()
	a.wrong = func(float64) float64 { return 5 }
	w := newWorld(t, 1, a, b)
	w.start(Config{})
	w.run(hour)
	if len(w.steps) > 0 || w.kernel != 0 || w.slow != 0 || w.fast != 0 {
		t.Errorf("steps %v, frequency %v: nobody knows which one is right", w.steps, w.kernel)
	}
}

func TestClockSteppedBehindOurBackIsBroughtBack(t *testing.T) {
	w := newWorld(t, 1, lan(), lan(), lan())
	w.start(Config{})
	w.run(3 * hour)
	w.clock += 0.25
	frequency := w.kernel
	w.run(3*hour + 1200 + 600)
	if math.Abs(w.clock) > 100e-6 || len(w.steps) > 0 {
		t.Errorf("off by %v s after half an hour, steps %v: want it slewed away", w.clock, w.steps)
	}
	if d := math.Abs(w.kernel - frequency); d > 0.2e-6 {
		t.Errorf("the frequency moved by %.2e: the step was taken for drift", d)
	}
	w.clock += 5000
	w.run(w.now + hour)
	if len(w.errs) == 0 || !errors.Is(w.errs[0], ErrPanic) || w.clock < 4999 {
		t.Fatalf("off by %v s, errors %v: want it left alone, and said", w.clock, w.errs)
	}
	w.core.AllowStep(false)
	w.wake = w.now
	w.run(w.now + 10)
	if math.Abs(w.clock) > 100e-6 || len(w.steps) != 1 {
		t.Errorf("off by %v s after an admin allowed a step, steps %v", w.clock, w.steps)
	}
}

func TestDriftFileSavesTheFirstHours(t *testing.T) {
	most := func(config Config) float64 {
		w := newWorld(t, 3, wan(), wan(), wan())
		w.drift = 80e-6
		w.start(config)
		w.run(60)
		return w.watch(hour).frequency()
	}
	with, without := most(Config{Frequency: -80e-6, Skew: 0.1e-6}), most(Config{})
	t.Logf("frequency error rms in the first hour: %.3f ppm with, %.3f ppm without", with*1e6, without*1e6)
	if with > 0.2e-6 || with*3 > without {
		t.Errorf("frequency error %.2e with a drift file, %.2e without", with, without)
	}
}

func TestRequestsBecomeRareAndABurstStartsThem(t *testing.T) {
	w := newWorld(t, 1, wan(), wan(), wan())
	w.start(Config{})
	w.run(15)
	if w.asked != 3*burstSize {
		t.Errorf("%d requests in the first 15 s, want %d", w.asked, 3*burstSize)
	}
	w.run(24 * hour)
	for _, s := range w.core.Sources(w.reading()) {
		if s.Poll < 8 {
			t.Errorf("source %s is still asked every %v s after a day", s.Name, pow2(s.Poll))
		}
	}
}
