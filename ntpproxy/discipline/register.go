package discipline

import (
	"math"
	"slices"
	"time"
)

// Reading is the steered clock and the bare oscillator, read at one moment.
// Raw is CLOCK_MONOTONIC_RAW, which nothing steers and nothing steps.
type Reading struct {
	Clock time.Time
	Raw   time.Duration
}

// Sample is one measurement of a source.
type Sample struct {
	Raw        time.Duration // the middle of the exchange, by the bare oscillator
	Server     time.Time     // what the source's clock showed then
	Delay      time.Duration // of the way there and back
	Precision  time.Duration // how exactly the two clocks can be read, 1 ns at least
	Stratum    uint8
	RootDelay  time.Duration // of the source
	Dispersion time.Duration // root dispersion of the source
	Leap       Leap
	Smeared    bool      // it says that it is smearing a leap second
	Authority  Authority // of a peer
}

// register keeps the last samples of a source and the line through them: the
// source's time over the bare oscillator. What we do to our own clock does
// not appear in it, nor what anyone else does, so that nothing in it is ever
// converted.
type register struct {
	samples []kept // oldest first
	line    line
}

type kept struct {
	raw   time.Duration
	ahead time.Duration // of the source before the oscillator, less register-wide zero
	delay time.Duration
	prec  time.Duration
}

// line is what a regression found. Offsets are against epoch + raw.
type line struct {
	ok        bool
	at        time.Duration // raw time of the last sample
	ahead     time.Duration // of the source at that time
	frequency float64       // how much faster than the oscillator, 1 = as fast again
	skew      float64       // standard error of frequency
	centre    float64       // seconds before at, where frequency and offset are independent
	deviation float64       // standard error of the offset at the centre, seconds
	residual  float64       // standard deviation of the weighted residuals, seconds
	used      int           // samples that fit the line
	tail      float64       // how far the last samples are from the line, by the error of their mean
	leastWay  time.Duration // the shortest delay
}

const (
	maxSamples = 64
	minSamples = 3
)

// add takes a sample and draws the line anew.
func (r *register) add(epoch time.Time, s Sample) {
	if len(r.samples) == maxSamples {
		r.samples = slices.Delete(r.samples, 0, 1)
	}
	r.samples = append(r.samples, kept{
		raw: s.Raw, ahead: s.Server.Sub(epoch) - s.Raw, delay: s.Delay, prec: max(s.Precision, 1),
	})
	r.fit()
}

// surprise is how far a new sample is from what the line foretold, squared and
// by the square of the error that both admit.
func (r *register) surprise(epoch time.Time, s Sample) (z float64, ok bool) {
	l := &r.line
	if !l.ok || l.used < 2*minSamples {
		return 0, false
	}
	miss := (s.Server.Sub(epoch) - s.Raw - l.aheadAt(s.Raw)).Seconds()
	excess := max(0, (s.Delay-l.leastWay).Seconds()) / 2
	expected := l.residual*l.residual + excess*excess/3
	return min(miss*miss/expected, maxSurprise), true
}

// maxSurprise bounds what one sample that was held up says.
const maxSurprise = 9

// forget starts anew.
func (r *register) forget() { r.samples, r.line = nil, line{} }

// shift moves all that the source said, after a leap second.
func (r *register) shift(d time.Duration) {
	for i := range r.samples {
		r.samples[i].ahead += d
	}
	r.line.ahead += d
}

// fit draws a line through as many of the last samples as one line explains:
// as long as the signs of the residuals change too rarely (a runs test, as
// chrony's), or the last samples stand together beside the line, the oscillator
// has wandered and the oldest sample is left out.
func (r *register) fit() {
	r.line = line{}
	for n := len(r.samples); n >= minSamples; n-- {
		l, runs := regress(r.samples[len(r.samples)-n:])
		if n == minSamples || float64(runs) >= fewestRuns(n) && l.tail < tailBound {
			r.line = l
			if drop := len(r.samples) - n; drop > 0 {
				r.samples = slices.Delete(r.samples, 0, drop)
			}
			return
		}
	}
}

const (
	runsBound = 1.645 // standard errors: the 5 % level
	// tailBound, in standard errors, was found by simulation: a wandering
	// crystal is followed best by a value below 0.7, a noisy network by one
	// above.
	tailBound = 0.7
)

// fewestRuns is how many runs of signs n residuals have at least when they are
// noise, by the normal approximation of the binomial.
func fewestRuns(n int) float64 {
	m := float64(n - 1)
	return 1 + m/2 - runsBound*math.Sqrt(m)/2
}

// regress is weighted least squares. A sample that was longer under way than
// the quickest may be wrong by half of the difference, and weighs less.
func regress(s []kept) (l line, runs int) {
	last := s[len(s)-1]
	least := slices.MinFunc(s, func(a, b kept) int { return int(a.delay - b.delay) }).delay
	floor := noiseFloor(s, least)
	var sw, sx, sy float64
	weight := make([]float64, len(s))
	x, y := make([]float64, len(s)), make([]float64, len(s))
	for i, k := range s {
		excess := (k.delay - least).Seconds() / 2
		weight[i] = 1 / (floor*floor + excess*excess/3)
		x[i], y[i] = (k.raw - last.raw).Seconds(), (k.ahead - last.ahead).Seconds()
		sw, sx, sy = sw+weight[i], sx+weight[i]*x[i], sy+weight[i]*y[i]
	}
	mx, my := sx/sw, sy/sw
	var sxx, sxy float64
	for i := range s {
		sxx += weight[i] * (x[i] - mx) * (x[i] - mx)
		sxy += weight[i] * (x[i] - mx) * (y[i] - my)
	}
	if sxx <= 0 {
		return line{}, 0
	}
	slope := sxy / sxx
	var chi, tail, tailWeight float64
	sign := 0
	for i := range s {
		residual := y[i] - my - slope*(x[i]-mx)
		chi += weight[i] * residual * residual
		if i >= len(s)-max(minSamples, len(s)/6) {
			tail, tailWeight = tail+weight[i]*residual, tailWeight+weight[i]
		}
		if now := cmpZero(residual); now != sign {
			sign, runs = now, runs+1
		}
	}
	// How noisy the samples really are, against what their delays promise;
	// few samples say little of that.
	scale := math.Sqrt(chi / float64(len(s)-2))
	beside := math.Abs(tail) / math.Sqrt(tailWeight) / scale
	if few := float64(minSamples*2) / float64(len(s)); scale < few {
		scale = few
	}
	return line{
		tail: beside, ok: true, at: last.raw, centre: -mx, frequency: slope,
		ahead:     last.ahead + seconds(my-slope*mx),
		skew:      scale / math.Sqrt(sxx),
		deviation: scale / math.Sqrt(sw),
		residual:  scale * math.Sqrt(float64(len(s))/sw),
		used:      len(s), leastWay: least,
	}, runs
}

// noiseFloor is the error, in seconds, of a sample whose delay tells of none.
func noiseFloor(s []kept, least time.Duration) float64 {
	excess := make([]time.Duration, len(s))
	for i, k := range s {
		excess[i] = k.delay - least
	}
	slices.Sort(excess)
	return max(s[len(s)-1].prec.Seconds(), excess[len(s)/2].Seconds()/8)
}

func cmpZero(f float64) int {
	if f < 0 {
		return -1
	}
	return 1
}

// aheadAt is how far the source is before the oscillator at a raw time.
func (l *line) aheadAt(raw time.Duration) time.Duration {
	return l.ahead + seconds(l.frequency*(raw-l.at).Seconds())
}

// errorAt is the standard error of aheadAt, in seconds.
func (l *line) errorAt(raw time.Duration) float64 {
	return math.Hypot(l.deviation, l.skew*((raw-l.at).Seconds()+l.centre))
}

// seconds turns seconds into a Duration, rounded.
func seconds(s float64) time.Duration {
	return time.Duration(math.Round(s * 1e9))
}
