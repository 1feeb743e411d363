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
	Standby                  // another node of the cluster, and not needed, or not to be followed
	OtherLeap                // it makes another thing of a leap second than we do
	Falseticker              // what it says can't be true if the majority is right
	Outlier                  // true, but the cluster algorithm does without it
	Survivor                 // its offset is combined with others'
	Leading                  // likewise, and what we serve is said to come from it
)

// String is the word that an admin reads.
func (s State) String() string {
	return [...]string{"unreachable", "waiting", "unusable", "standby", "other leap", "falseticker", "outlier", "survivor", "leading"}[s]
}

// SourceConfig is a source, and how often it is asked.
type SourceConfig struct {
	Name             string
	MinPoll, MaxPoll int // log2 seconds, -4 to 17
	Burst            bool
	// Peer is another node of the cluster: it is followed only while there is
	// no other source (see Phase).
	Peer bool
}

// source is what is known of one.
type source struct {
	config   SourceConfig
	register register
	last     Sample
	reach    uint8         // a bit a request, the last one lowest
	asked    int           // requests
	pending  bool          // a request has no answer yet
	sent     time.Duration // raw time of that request
	misses   int           // requests in a row that got none
	next     time.Duration
	poll     int
	surprise float64       // mean square of how far samples were from what was foretold, by its error; 1 is noise
	since    int           // samples since poll changed
	apart    time.Duration // raw time until which it is set aside, for a leap second; 0 not
	slow     int           // by how much MinPoll is raised, since it refused us
	forgives int           // answers in a row since it did, or since slow came down
}

const (
	// refusedPoll is the rarest that a source is asked because it refused us, in
	// log2 seconds, unless MaxPoll is more: 17 minutes.
	refusedPoll = 10
	// forgiveAfter is how many answers in a row make up for half of a refusal.
	forgiveAfter = 8

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
	s.pending, s.sent = true, now
	s.asked++
	s.next = now + s.pause()
}

// pause is how long after a request the next one is due.
func (s *source) pause() time.Duration {
	if wait := Interval(s.poll); !s.config.Burst || s.asked >= burstSize || wait < burstEvery {
		return wait
	}
	return burstEvery
}

// floor and ceiling are between what polls the source is asked.
func (s *source) floor() int   { return s.config.MinPoll + s.slow }
func (s *source) ceiling() int { return max(s.config.MaxPoll, s.floor()) }

// refused notes a refusal in place of an answer: a miss, after which the source
// has had its chance to be heard.
func (s *source) refused(denied bool) {
	s.missed()
	s.forgives = 0
	bursting := s.config.Burst && s.asked <= burstSize && Interval(s.poll) > burstEvery
	s.asked = max(s.asked, burstSize+1)
	switch {
	case denied:
		s.misses = max(s.misses, lostAfter)
		s.slow = max(s.slow, refusedPoll-s.config.MinPoll)
	case !bursting: // else the end of the burst is more than that
		s.slow = min(s.slow+2, max(s.config.MaxPoll, refusedPoll)-s.config.MinPoll)
	}
	s.poll = max(s.poll, s.floor())
}

// renew begins anew with another server.
func (s *source) renew() {
	s.register.forget()
	s.asked, s.misses, s.slow, s.forgives = 1, 0, 0, 0
	s.poll, s.surprise, s.since = s.config.MinPoll, 0, 0
}

// forgive lets a source that refused us, and answers again, be asked more often
// with time.
func (s *source) forgive() {
	if s.slow == 0 {
		return
	}
	if s.forgives++; s.forgives >= forgiveAfter {
		s.slow, s.forgives = s.slow-1, 0
		s.poll = min(s.poll, s.ceiling())
	}
}

// answerTimeout is how long an answer is waited for.
const answerTimeout = 5 * time.Second

// expire notes, in time, that a request got no answer. Whether a source is
// lost, or a datagram was, is found out by asking as often as allowed.
func (s *source) expire(now time.Duration) {
	if !s.pending || now < s.sent+answerTimeout {
		return
	}
	s.missed()
	if s.misses < lostAfter {
		s.next = min(s.next, s.sent+max(Interval(s.floor()), answerTimeout))
	}
}

// due is when the source wants to be looked at again.
func (s *source) due() time.Duration {
	if s.pending {
		return min(s.next, s.sent+answerTimeout)
	}
	return s.next
}

// missed notes that the last request got no answer: who is silent is asked
// at the rate that it had, until it is lost; then as often as allowed.
func (s *source) missed() {
	s.pending = false
	s.misses++
	if s.reach == 0 {
		s.poll = s.floor()
	}
}

// lostAfter is how many requests in a row get no answer until a source is
// lost.
const lostAfter = 4

// usable tells whether the source answers with a time that it vouches for.
func (s *source) usable() bool {
	return !s.lost() && s.register.line.ok && s.last.Stratum > 0 && s.last.Stratum <= maxStratum
}

// lost tells whether the source is silent.
func (s *source) lost() bool { return s.reach == 0 || s.misses >= lostAfter }

// staleAfter is how long a source is silent until its line says nothing of
// where it is now: an oscillator wanders.
const staleAfter = 2 * time.Hour

// answered notes that the last request got its answer.
func (s *source) answered() {
	s.pending, s.misses = false, 0
	s.reach |= 1
	s.forgive()
}

// took takes a sample, and adapts how often the source is asked.
func (s *source) took(epoch time.Time, sample Sample) {
	s.answered()
	if sample.Raw-s.last.Raw > max(staleAfter, 4*Interval(s.poll)) {
		s.register.forget()
	}
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
	case s.surprise < calm && s.register.line.used >= pollUpAt && s.poll < s.ceiling():
		s.poll++
		s.since = 0
	case s.surprise > alarmed && s.poll > s.floor():
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
