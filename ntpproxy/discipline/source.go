package discipline

import (
	"time"
)

// Leap is what a source announces for the end of the UTC day.
type Leap int8

// The announcements.
const (
	LeapNone   Leap = 0
	LeapInsert Leap = 1
	LeapDelete Leap = -1
)

// State is what selection made of a source.
type State uint8

// The states, from worst to best.
const (
	Unreachable State = iota // no answer to the last eight requests
	Waiting                  // too few samples yet
	Unusable                 // its own error is too large, or it is not synchronised
	Falseticker              // what it says can't be true if the majority is right
	Outlier                  // true, but the cluster algorithm does without it
	Survivor                 // its offset is combined with others'
	Leading                  // likewise, and what we serve is said to come from it
)

// String is the word that an admin reads.
func (s State) String() string {
	return [...]string{"unreachable", "waiting", "unusable", "falseticker", "outlier", "survivor", "leading"}[s]
}

// SourceConfig is a source, and how often it is asked.
type SourceConfig struct {
	Name             string
	MinPoll, MaxPoll int // log2 seconds, -4 to 17
	Burst            bool
}

// source is what is known of one.
type source struct {
	config   SourceConfig
	register register
	last     Sample
	reach    uint8 // a bit a request, the last one lowest
	asked    int   // requests
	pending  bool  // a request has no answer yet
	next     time.Duration
	poll     int
	surprise float64 // mean square of how far samples were from what was foretold, by its error; 1 is noise
	since    int     // samples since poll changed
}

const (
	burstSize  = 6
	burstEvery = 2 * time.Second
	pollUpAt   = 8 // samples of one line, from which asking more rarely is enough
	// Of the mean square of surprises.
	surpriseMemory = 8
	calm           = 1.2
	alarmed        = 2.0
)

// ask notes that a request goes out.
func (s *source) ask(now time.Duration) {
	if s.pending {
		s.missed()
	}
	s.reach <<= 1
	s.pending = true
	s.asked++
	wait := Interval(s.poll)
	if s.config.Burst && s.asked < burstSize && wait > burstEvery {
		wait = burstEvery
	}
	s.next = now + wait
}

// missed notes that the last request got no answer: who is silent is asked
// at the rate that it had, until it is lost; then as often as allowed.
func (s *source) missed() {
	s.pending = false
	if s.reach == 0 {
		s.poll = s.config.MinPoll
	}
}

// took takes a sample, and adapts how often the source is asked.
func (s *source) took(epoch time.Time, sample Sample) {
	s.pending = false
	s.reach |= 1
	s.last = sample
	if z, ok := s.register.surprise(epoch, sample); ok {
		s.surprise += (z - s.surprise) / surpriseMemory
		s.since++
	}
	s.register.add(epoch, sample)
	s.adapt()
}

// adapt asks more rarely while the line foretells the next sample as well as
// its noise allows, and more often when the oscillator wanders faster.
func (s *source) adapt() {
	if s.since < surpriseMemory {
		return
	}
	switch {
	case s.surprise < calm && s.register.line.used >= pollUpAt && s.poll < s.config.MaxPoll:
		s.poll++
		s.since = 0
	case s.surprise > alarmed && s.poll > s.config.MinPoll:
		s.poll--
		s.since, s.surprise = 0, 1
	}
}

// settled tells whether a source has had its chance to be heard: nobody is
// believed before all are, so that the first to answer does not win.
func (s *source) settled() bool {
	return s.register.line.ok || s.asked > minSamples+1 && s.reach == 0 || s.asked >= burstSize
}

// distance is the root distance: the most that the source may be wrong at a
// time, if it and all above it are honest (RFC 5905 §11.2.1).
func (s *source) distance(raw time.Duration) time.Duration {
	l := &s.register.line
	return s.last.RootDelay/2 + s.last.Dispersion + max(s.last.Delay, l.leastWay)/2 +
		seconds(3*l.errorAt(raw)) + seconds(phi*max(0, (raw-s.last.Raw).Seconds()))
}

// phi is how fast the error of a clock grows that nobody corrects, in seconds
// per second (PHI, RFC 5905 §7.2).
const phi = 15e-6

// Interval is 2^poll seconds.
func Interval(poll int) time.Duration { return time.Duration(float64(time.Second) * pow2(poll)) }

func pow2(n int) float64 {
	if n < 0 {
		return 1 / float64(int(1)<<-n)
	}
	return float64(int(1) << n)
}
