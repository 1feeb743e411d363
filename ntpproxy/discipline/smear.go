package discipline

import (
	"math"
	"time"
)

// LeapSecond is one leap second.
type LeapSecond struct {
	At   time.Time // midnight UTC at the end of the day that it changes
	Kind Leap
}

// LeapMode is what is made of a leap second.
type LeapMode uint8

// The modes. All nodes of a cluster have the same.
const (
	LeapKernel   LeapMode = iota // the kernel inserts or deletes it, and clients are told
	LeapSmear                    // the clock runs slower, or faster, from noon to noon; no client is told
	LeapUpstream                 // the sources smear it already: nothing is to be done
)

// String is the word in the cluster file.
func (m LeapMode) String() string { return [...]string{"kernel", "smear", "upstream"}[m] }

// Shape is how a smear goes.
type Shape uint8

// The shapes.
const (
	Linear Shape = iota // the same rate all day, as Google's and Amazon's servers do
	Cosine              // half a cosine: the rate changes smoothly, and is π/2 times as high at midnight
)

// String is the word in the cluster file.
func (s Shape) String() string { return [...]string{"linear", "cosine"}[s] }

// halfSmear is how long before midnight a smear begins, and after midnight it
// ends.
const halfSmear = 12 * time.Hour

// Begins is noon before the leap second.
func (s *LeapSecond) Begins() time.Time { return s.At.Add(-halfSmear) }

// Ends is noon after it, in UTC that goes on through it.
func (s *LeapSecond) Ends() time.Time { return s.At.Add(halfSmear + s.shift()) }

// Smear is a leap second that is spread over the 24 hours around it.
type Smear struct {
	LeapSecond
	Shape Shape
}

// A smear is reckoned in UTC that goes on through the leap second as if there
// were none: what a clock would show that nobody told of it. From the leap
// second on true UTC is that less Kind seconds.

// part is how much of the leap second is worked off at a time, 0 to 1, and how
// fast that grows, in 1/s.
func (s *Smear) part(through time.Time) (part, rate float64) {
	length := s.Ends().Sub(s.Begins()).Seconds()
	x := through.Sub(s.Begins()).Seconds() / length
	switch {
	case x <= 0:
		return 0, 0
	case x >= 1:
		return 1, 0
	case s.Shape == Cosine:
		return (1 - math.Cos(math.Pi*x)) / 2, math.Pi / 2 * math.Sin(math.Pi*x) / length
	}
	return x, 1 / length
}

// behind is how far a smeared clock is ahead of one that goes through the leap
// second, and how much faster it runs.
func (s *Smear) behind(through time.Time) (time.Duration, float64) {
	part, rate := s.part(through)
	return seconds(-float64(s.Kind) * part), -float64(s.Kind) * rate
}

// Offset is how far a smeared clock is ahead of true UTC, and how much faster
// it runs, as a ratio. passed says that the leap second is over, which UTC
// alone can't.
func (s *Smear) Offset(utc time.Time, passed bool) (ahead time.Duration, rate float64) {
	if !passed {
		return s.behind(utc)
	}
	ahead, rate = s.behind(utc.Add(s.shift()))
	return ahead + s.shift(), rate
}

// shift is how far true UTC falls back at the leap second.
func (s *LeapSecond) shift() time.Duration { return time.Duration(s.Kind) * time.Second }

// moment is when it happens, in UTC that goes on through it: a second that is
// left out is the last one before midnight.
func (s *LeapSecond) moment() time.Time {
	if s.Kind == LeapDelete {
		return s.At.Add(-time.Second)
	}
	return s.At
}

// through turns a smeared time into UTC that goes on through the leap second.
func (s *Smear) through(smeared time.Time) time.Time {
	through := smeared
	for range 3 { // the smear changes by 2e-5 of a second each second
		ahead, _ := s.behind(through)
		through = smeared.Add(-ahead)
	}
	return through
}
