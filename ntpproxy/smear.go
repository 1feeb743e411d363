package ntpproxy

import (
	"math"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

// smearing is what is added to the times of a clock that another daemon keeps,
// and in which the kernel makes a leap second, so that clients see it smeared.
type smearing struct {
	at       time.Time
	ahead    time.Duration // then
	rate     float64       // how much faster it grows than time
	midnight time.Time     // of the leap second; around it nothing is answered
	passed   bool          // ahead is that of a clock that was stepped
}

// silence is for how long on both sides of midnight nothing is answered: the
// kernel steps the clock there, and no time says on which side of the step it
// was taken.
const silence = 3 * time.Second

// shift is what is added to a time about now, in nanoseconds; ok: there is an
// answer at all.
func (s *smearing) shift(now time.Time) (ns int64, ok bool) {
	if s == nil {
		return 0, true
	}
	// Of a clock that was stepped what was reckoned before is wrong by a second,
	// until the next look, which comes later than silence ends.
	stale := !s.passed && !now.Before(s.midnight)
	return int64(s.ahead) + int64(s.rate*float64(now.Sub(s.at))), !stale && now.Sub(s.midnight).Abs() >= silence
}

// spreader follows a leap second that the kernel makes. It is pure.
type spreader struct {
	smear   discipline.Smear // Kind LeapNone: none
	passed  bool
	failed  bool // the kernel's clock was not stepped
	looked  bool // once at least
	base    time.Duration
	current *smearing
}

// catchUp is how much faster than time the smear of a leap second that was heard
// of too late is caught up with.
const catchUp = 500e-6

// look takes the kernel's state at a time by the clock and by one that is never
// stepped, about once a second. known are leap seconds by a list or from before
// a restart: of those that have begun nothing else may tell.
func (s *spreader) look(k clock.State, wall time.Time, elapsed time.Duration, shape discipline.Shape, known []discipline.LeapSecond) {
	late := s.looked
	s.looked = true
	if s.smear.Kind == discipline.LeapNone {
		s.find(k, wall, shape, known)
	}
	if s.smear.Kind == discipline.LeapNone {
		return
	}
	base := time.Duration(wall.UnixNano()) - elapsed
	switch {
	case wall.Sub(s.smear.At).Abs() < silence:
		return // the step is now
	case s.current != nil && !s.passed && !wall.Before(s.smear.At):
		s.passed, late = true, false
		stepped := (base - s.base).Seconds()
		s.failed = math.Abs(stepped+float64(s.smear.Kind)) > 0.5
	case s.passed && !wall.Add(time.Duration(s.smear.Kind)*time.Second).Before(s.smear.Ends()):
		*s = spreader{looked: true}
		return
	}
	s.base = base
	s.lay(wall, late)
}

// find looks for a leap second whose smear has begun.
func (s *spreader) find(k clock.State, wall time.Time, shape discipline.Shape, known []discipline.LeapSecond) {
	next := discipline.LeapSecond{At: wall.UTC().Truncate(24*time.Hour).AddDate(0, 0, 1)}
	switch {
	case k.Insert:
		next.Kind = discipline.LeapInsert
	case k.Delete:
		next.Kind = discipline.LeapDelete
	}
	if next.Kind != discipline.LeapNone && next.At.Day() == 1 && !wall.Before(next.Begins()) {
		s.smear = discipline.Smear{LeapSecond: next, Shape: shape}
		return
	}
	for _, l := range known {
		if !wall.Before(l.At) && wall.Add(time.Duration(l.Kind)*time.Second).Before(l.Ends()) {
			s.smear, s.passed = discipline.Smear{LeapSecond: l, Shape: shape}, true
		}
	}
}

// lay lays the next second's part of the smear.
func (s *spreader) lay(wall time.Time, late bool) {
	ideal, rate := s.smear.Offset(wall, s.passed)
	if late { // from where it is to where it should be in a second
		now, _ := s.current.shift(wall)
		to, _ := s.smear.Offset(wall.Add(time.Second), s.passed)
		ideal, rate = time.Duration(now), max(-catchUp, min(catchUp, (to-time.Duration(now)).Seconds()))
	}
	s.current = &smearing{at: wall, ahead: ideal, rate: rate, midnight: s.smear.At, passed: s.passed}
}

// spread puts a leap second that the kernel makes into the standing as a smear.
func (s *Server) spread(standing Standing, k clock.State, now time.Time) (Standing, *smearing) {
	set := s.settings.Load().leap
	if set.mode != discipline.LeapSmear && (s.spreader.current == nil || s.spreader.failed) { // what has begun is gone through with
		s.spreader = spreader{looked: true} // a smear that a changed file begins is caught up with
		s.board.Clear(conditionLeapDaemon)
		return standing, nil
	}
	s.spreader.look(k, now, s.elapsed(), set.shape, *s.leaps.Load())
	current := s.spreader.current
	switch {
	case s.spreader.failed:
		s.board.Raise(conditionLeapDaemon, health.Error, "the daemon that keeps this clock let a leap second pass without a step, so that it can't be smeared: this node serves no time until the day's noon (chronyd: leapsecmode system)")
		return unsynchronised(now), current
	case (k.Insert || k.Delete) && standing.Stratum != 0:
		standing.Leap = ntp.LeapNone // not before the smear either
	case current == nil && (standing.Leap == ntp.LeapInsert || standing.Leap == ntp.LeapDelete):
		s.board.Raise(conditionLeapDaemon, health.Warning, "the daemon that keeps this clock announces a leap second and has not told the kernel, so that it can't be smeared: clients are told of it instead (chronyd: leapsecmode system)")
		return standing, nil
	}
	s.board.Clear(conditionLeapDaemon)
	if current != nil && standing.Stratum != 0 {
		s.rememberSmear(s.spreader.smear.LeapSecond)
		ahead, _ := current.shift(now)
		standing.Leap, standing.Reference = ntp.LeapNone, ntp.SmearReference(time.Duration(ahead))
		standing.Set = standing.Set.Add(time.Duration(ahead))
	}
	return standing, current
}
