package discipline

import (
	"math"
	"testing"
	"time"
)

func TestOnlyAMajorityWhoseMiddlesAgreeIsBelieved(t *testing.T) {
	const ms = time.Millisecond
	at := func(ahead, distance time.Duration) candidate { return candidate{ahead: ahead, distance: distance} }
	for name, test := range map[string]struct {
		list []candidate
		want int
	}{
		"one alone":             {[]candidate{at(0, ms)}, 1},
		"two that agree":        {[]candidate{at(0, ms), at(ms, ms)}, 2},
		"two that touch":        {[]candidate{at(0, ms), at(2*ms, ms)}, 0}, // neither middle is in what both admit
		"two apart":             {[]candidate{at(0, ms), at(3*ms, ms)}, 0},
		"two of three":          {[]candidate{at(0, ms), at(ms, ms), at(9*ms, ms)}, 2},
		"two of four":           {[]candidate{at(0, ms), at(0, ms), at(9*ms, ms), at(20*ms, ms)}, 0},
		"two against two":       {[]candidate{at(0, ms), at(0, ms), at(9*ms, ms), at(9*ms, ms)}, 0},
		"three of five":         {[]candidate{at(0, ms), at(0, ms), at(0, ms), at(9*ms, ms), at(-9*ms, ms)}, 3},
		"overlapping ends only": {[]candidate{at(5*ms, 5*ms), at(14*ms, 5*ms), at(9600*time.Microsecond, 100*time.Microsecond)}, 0},
	} {
		if got := intersect(test.list); len(got) != test.want {
			t.Errorf("%s: %d are believed, want %d", name, len(got), test.want)
		}
	}
}

// Nothing was ever tuned on this one: a campus network with days and nights.
func TestClockIsKeptOnAProfileThatNothingWasTunedOn(t *testing.T) {
	campus := func() *server { return &server{way: 2e-3, jitter: 300e-6, dispersion: 2 * time.Millisecond} }
	var rms, frequency, most float64
	seeds := runs(t)
	for seed := range uint64(seeds) {
		w := newWorld(t, 1000+seed, campus(), campus(), campus(), campus())
		w.wander, w.drift, w.clock = 3e-10, -37e-6, 30e-3
		w.heat = func(now float64) float64 { return 0.3e-6 * math.Sin(2*math.Pi*now/(24*hour)) }
		w.start(Config{})
		w.run(4 * hour)
		f := w.watch(100 * hour)
		rms, frequency, most = rms+f.rms()/seeds, frequency+f.frequency()/seeds, max(most, f.most)
	}
	t.Logf("offset rms %.1f µs, most %.1f µs; frequency error rms %.4f ppm", rms*1e6, most*1e6, frequency*1e6)
	if rms > 150e-6 || most > 1e-3 || frequency > 100e-9 {
		t.Errorf("offset rms %.2e s (bound: half the jitter), most %.2e, frequency %.2e", rms, most, frequency)
	}
}
