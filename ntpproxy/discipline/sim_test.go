package discipline

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// world is a machine with an oscillator and a kernel's clock, and servers of
// time behind a network, in virtual time. Times are seconds since the start,
// by the true time, which nobody in it knows.
type world struct {
	t       testing.TB
	rand    *rand.Rand
	now     float64
	raw     float64 // bare oscillator less true time
	clock   float64 // kernel's clock less true time
	drift   float64 // of the oscillator now, as a ratio
	wander  float64 // of drift, in 1/sqrt(s)
	heat    func(now float64) float64
	kernel  float64 // frequency that the kernel was told
	fast    float64 // seconds that its phase-locked loop has yet to begin with
	slow    float64 // likewise, adjtime
	running float64 // seconds that both work off in this second of its clock
	leap    Leap    // that the kernel was told to make at its next midnight
	servers []*server
	core    *Core
	wake    float64
	flights []flight
	steps   []float64
	rate    float64 // at which it ever slewed fast
	errs    []error
	asked   int
	each    func() // after every second
}

type server struct {
	way, jitter float64                   // shortest way in seconds, mean of what is added to it
	wrong       func(now float64) float64 // what its clock shows less true time; nil: right
	cut         func(now float64) bool
	leap        func(now float64) Leap
	dispersion  time.Duration
	fill        func(*Sample) // what another node says beside its time
	config      SourceConfig
}

type flight struct {
	source int
	lands  float64
	left   Reading
	sample Sample
}

var birth = time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC)

func newWorld(t testing.TB, seed uint64, servers ...*server) *world {
	return &world{t: t, rand: rand.New(rand.NewPCG(seed, 1)), servers: servers, wander: 1e-9, drift: 20e-6}
}

func at(s float64) time.Time { return birth.Add(seconds(s)) }

func (w *world) reading() Reading {
	return Reading{Clock: at(w.now + w.clock), Raw: seconds(w.now + w.raw)}
}

func (w *world) start(config Config) {
	for i, s := range w.servers {
		if s.config == (SourceConfig{}) {
			s.config = SourceConfig{MinPoll: 6, MaxPoll: 10, Burst: true}
		}
		s.config.Name = string(rune('a' + i))
		config.Sources = append(config.Sources, s.config)
	}
	w.core = New(config, w.reading())
	w.wake = w.now
}

// pass lets less than a second go by, by the true time.
func (w *world) pass(until float64) {
	whole := math.Floor(until) > math.Floor(w.now)
	for w.now < until {
		drift, was := w.drift, w.now+w.clock
		if w.heat != nil {
			drift += w.heat(w.now)
		}
		// Up to where the kernel's own second ends.
		second := math.Floor(w.now + w.clock)
		rate := drift + w.kernel*(1+drift) + w.running
		d := min(until-w.now, max((second+1-w.now-w.clock)/(1+rate), 1e-7))
		w.raw += drift * d
		w.clock += rate * d
		if w.now += d; w.now+1e-9 > until {
			w.now = until
		}
		if math.Floor(w.now+w.clock) != second {
			w.overflow()
		}
		if w.leap != LeapNone {
			w.makeLeap(at(was), at(w.now+w.clock))
		}
	}
	if whole {
		w.drift += w.wander * w.rand.NormFloat64()
		if w.each != nil {
			w.each()
		}
	}
}

// overflow begins a second of the kernel's clock, as its second_overflow()
// does: a quarter of what the phase-locked loop has, and 500 µs of adjtime's.
func (w *world) overflow() {
	quarter, slow := w.fast/4, max(-500e-6, min(500e-6, w.slow))
	w.fast, w.slow, w.running = w.fast-quarter, w.slow-slow, quarter+slow
}

// makeLeap is what the kernel makes of a leap second when its own clock comes to
// midnight.
func (w *world) makeLeap(before, after time.Time) {
	ahead := time.Duration(0)
	if w.leap == LeapDelete {
		ahead = time.Second // the last second of the day is left out
	}
	if midnight := after.Add(ahead).Truncate(24 * time.Hour); before.Add(ahead).Before(midnight) {
		w.clock -= float64(w.leap)
		w.leap = LeapNone
	}
}

// run lets time go by until a time.
func (w *world) run(until float64) {
	for w.now < until {
		next := min(until, math.Floor(w.now)+1, max(w.wake, w.now))
		for _, f := range w.flights {
			next = min(next, f.lands)
		}
		w.pass(next)
		w.land()
		if w.now >= w.wake {
			w.step()
		}
	}
}

func (w *world) step() {
	a := w.core.Step(w.reading())
	w.wake = w.now + max((a.Next-w.reading().Raw).Seconds(), 1e-6)
	if a.Err != nil {
		w.errs = append(w.errs, a.Err)
	}
	if a.Adjust != nil {
		w.tell(*a.Adjust)
	}
	for _, i := range a.Ask {
		w.ask(i)
	}
}

// tell is adjtimex. The tick stays what it is.
func (w *world) tell(a Adjustment) {
	w.kernel = a.Frequency
	// In nanoseconds and half a second at most the one, in microseconds the other.
	w.fast = max(-0.5, min(0.5, a.Fast.Seconds()))
	w.slow = a.Slew.Round(time.Microsecond).Seconds()
	w.leap = a.Leap
	if a.Step != 0 {
		w.steps = append(w.steps, a.Step.Seconds())
		w.clock += a.Step.Seconds()
		w.fast, w.slow, w.running = 0, 0, 0
	}
	w.rate = max(w.rate, math.Abs(w.fast/4))
}

func (w *world) ask(i int) {
	s := w.servers[i]
	w.asked++
	there, back := s.way+s.jitter*w.rand.ExpFloat64(), s.way+s.jitter*w.rand.ExpFloat64()
	if s.cut != nil && s.cut(w.now) {
		return
	}
	shown := w.now + there
	if s.wrong != nil {
		shown += s.wrong(w.now)
	}
	sample := Sample{Server: at(shown), Precision: 100, Stratum: 1, Dispersion: s.dispersion}
	if s.leap != nil {
		sample.Leap = s.leap(w.now)
	}
	if s.fill != nil {
		s.fill(&sample)
	}
	w.flights = append(w.flights, flight{i, w.now + there + back, w.reading(), sample})
}

func (w *world) land() {
	rest := w.flights[:0]
	for _, f := range w.flights {
		if f.lands > w.now {
			rest = append(rest, f)
			continue
		}
		arrived := w.reading()
		f.sample.Delay = arrived.Raw - f.left.Raw
		f.sample.Raw = f.left.Raw + f.sample.Delay/2
		w.core.Sample(f.source, f.sample)
		w.wake = w.now
	}
	w.flights = rest
}

// figures are how well a clock was kept.
type figures struct {
	n                       int
	sum, sumFrequency, most float64
}

// watch measures each second until a time.
func (w *world) watch(until float64) (f figures) {
	w.each = func() {
		drift := w.drift
		if w.heat != nil {
			drift += w.heat(w.now)
		}
		e := drift + w.kernel
		f.n++
		f.sum += w.clock * w.clock
		f.sumFrequency += e * e
		f.most = max(f.most, math.Abs(w.clock))
	}
	w.run(until)
	w.each = nil
	return f
}

func (f figures) rms() float64       { return math.Sqrt(f.sum / float64(f.n)) }
func (f figures) frequency() float64 { return math.Sqrt(f.sumFrequency / float64(f.n)) }

// lan and wan are servers near by and far away.
func lan() *server { return &server{way: 50e-6, jitter: 10e-6, dispersion: time.Millisecond} }
func wan() *server { return &server{way: 5e-3, jitter: 1e-3, dispersion: 5 * time.Millisecond} }

const hour = 3600.0
