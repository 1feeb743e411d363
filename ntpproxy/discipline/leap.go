package discipline

import (
	"time"
)

const (
	// nearLeap is how close to a leap second nothing is believed and nothing
	// is corrected: sources, the kernel and we don't pass it at one instant.
	nearLeap = 2 * time.Second
	// smearEvery is how often the clock's rate is set anew during a smear.
	smearEvery = 16 * time.Second
	// kernelBefore is how long before a leap second the kernel is told: it
	// makes one at its next midnight, which must not be the one just past.
	kernelBefore = 23 * time.Hour
	// apartFor is for how long a source that says that it smears is set
	// aside, at least; it says so again.
	apartFor = time.Hour
)

// leaping is what is known of the leap second that is near.
type leaping struct {
	second LeapSecond    // that is to come, or was the last; Kind LeapNone: none
	passed bool          // it is over, and the registers were told
	known  []LeapSecond  // by the configuration or a list, which no vote overrules
	voted  Leap          // by the last update, for the end of its day
	silent bool          // no source announced one then
	kernel Leap          // what the kernel was told
	rate   float64       // of a smear, as it was last set
	rateAt time.Duration // raw time of that
}

// Leaps tells which leap seconds are known beside what sources announce: those
// are made though none does.
func (c *Core) Leaps(known []LeapSecond) { c.leap.known = known }

// Leaping is the leap second that is to come within a day, or that is being
// smeared; Kind LeapNone: none.
func (c *Core) Leaping() LeapSecond { return c.leap.second }

// utc is what the sources show at a raw time.
func (c *Core) utc(raw time.Duration) time.Time { return c.epoch.Add(raw + c.target.aheadAt(raw)) }

// through turns what the sources show into UTC that goes on through the leap
// second.
func (c *Core) through(utc time.Time) time.Time {
	if c.leap.passed {
		return utc.Add(c.leap.second.shift())
	}
	return utc
}

// smear is the leap second that is being smeared; nil none.
func (c *Core) smear() *Smear {
	if c.config.Leap != LeapSmear || c.leap.second.Kind == LeapNone {
		return nil
	}
	return &Smear{c.leap.second, c.config.Shape}
}

// smeared is how far our clock is meant to be ahead of what the sources show,
// and how much faster.
func (c *Core) smeared(utc time.Time) (ahead time.Duration, rate float64) {
	if s := c.smear(); s != nil {
		return s.Offset(utc, c.leap.passed)
	}
	return 0, 0
}

// unsmear turns what another node shows, which smears as we do, into what
// sources show.
func (c *Core) unsmear(shown time.Time) time.Time {
	s := c.smear()
	if s == nil {
		return shown
	}
	through := s.through(shown)
	if c.leap.passed {
		return through.Add(-s.shift())
	}
	return through
}

// announced is the leap second that clients are to be told of.
func (c *Core) announced() Leap {
	if c.config.Leap != LeapKernel || c.leap.passed {
		return LeapNone
	}
	return c.leap.second.Kind
}

// forKernel is the leap second that the kernel is to be told of.
func (c *Core) forKernel(utc time.Time) Leap {
	if c.leap.second.At.Sub(utc) > kernelBefore {
		return LeapNone
	}
	return c.announced()
}

// vote counts who announces a leap second. Nodes that smear announce none.
func (c *Core) vote(survivors []candidate) {
	if c.config.Leap == LeapSmear && c.phase != Sourced {
		return
	}
	count := map[Leap]int{}
	for _, s := range survivors {
		count[c.sources[s.index].last.Leap]++
	}
	c.leap.voted, c.leap.silent = LeapNone, count[LeapNone] == len(survivors)
	for _, l := range []Leap{LeapInsert, LeapDelete} {
		if 2*count[l] > len(survivors) {
			c.leap.voted = l
		}
	}
}

// foresee finds the leap second that is to come, and ends the one that was.
func (c *Core) foresee(utc time.Time) {
	through := c.through(utc)
	if c.leap.passed && !through.Before(c.leap.second.Ends()) {
		c.leap.second, c.leap.passed = LeapSecond{}, false
	}
	if c.config.Leap == LeapUpstream || c.leap.passed {
		return
	}
	day := utc.UTC()
	next := LeapSecond{At: time.Date(day.Year(), day.Month(), day.Day()+1, 0, 0, 0, 0, time.UTC)}
	if next.At.Day() == 1 { // of a month: no other day ends with one (ITU-R TF.460)
		next.Kind = c.leap.voted
	}
	for _, known := range c.leap.known {
		if known.At.Equal(next.At) {
			next.Kind = known.Kind
		}
		// We woke up in the second half of a smear.
		if !utc.Before(known.At) && utc.Add(known.shift()).Before(known.Ends()) {
			c.leap.second, c.leap.passed = known, true
			return
		}
	}
	switch {
	case next.Kind != LeapNone:
		c.leap.second = next
	case !c.smearing(through):
		c.leap.second = LeapSecond{} // the majority takes it back
	}
}

// smearing tells whether a smear has begun: it is gone through with, whatever
// the sources say then.
func (c *Core) smearing(through time.Time) bool {
	s := c.smear()
	return s != nil && through.After(s.Begins())
}

// passLeap moves what the sources said when a leap second has passed.
func (c *Core) passLeap(raw time.Duration) {
	second := c.leap.second
	if second.Kind == LeapNone || c.leap.passed || c.utc(raw).Before(second.moment()) {
		return
	}
	for _, s := range c.sources {
		s.register.shift(-second.shift())
		s.last.Leap = LeapNone
	}
	c.target.ahead -= second.shift()
	c.leap.passed, c.leap.voted = true, LeapNone
}

// atLeap tells whether a leap second is so near that clocks that are right may
// be a second apart.
func (c *Core) atLeap(raw time.Duration) bool {
	return c.leap.second.Kind != LeapNone && c.through(c.utc(raw)).Sub(c.leap.second.moment()).Abs() < nearLeap
}

// judgeLeap sets a source aside that makes another thing of the leap second
// than we do: those that smear must not be mixed with those that don't.
func (c *Core) judgeLeap(s *source, raw time.Duration) {
	utc, second := c.utc(raw), c.leap.second
	until := func(at time.Time) { s.apart = raw + at.Sub(c.through(utc)) }
	switch {
	case s.config.Peer:
	case c.config.Leap != LeapUpstream && s.last.Smeared:
		until(c.through(utc).Add(apartFor + 2*Interval(s.poll)))
	case c.at == 0:
	case c.config.Leap == LeapUpstream:
		if day := utc.UTC(); s.last.Leap != LeapNone && day.AddDate(0, 0, 1).Day() == 1 {
			until(time.Date(day.Year(), day.Month(), day.Day()+1, 12, 0, 1, 0, time.UTC))
		}
	case second.Kind == LeapNone || c.leap.passed || utc.Before(second.Begins()):
	case s.last.Leap == second.Kind:
		s.apart = 0
	case !c.leap.silent: // else all are ignorant; a majority can't be set aside
		until(second.Ends())
	}
}

// rejoin takes sources back whose reason to be set aside is over.
func (c *Core) rejoin(raw time.Duration) {
	for _, s := range c.sources {
		if s.apart != 0 && raw >= s.apart {
			s.apart = 0
			s.register.forget() // the line went through smeared samples
		}
	}
}

// leapOn says when to come again for a leap second, and, when no source said
// anything new, tells the kernel of it or sets the clock's rate for a smear.
func (c *Core) leapOn(now Reading, a *Actions) {
	if c.at == 0 {
		return
	}
	utc := c.utc(now.Raw)
	through, second := c.through(utc), c.leap.second
	_, rate := c.smeared(utc)
	due := c.leap.kernel != c.forKernel(utc) || (rate == 0) != (c.leap.rate == 0)
	if rate != 0 {
		due = due || now.Raw >= c.leap.rateAt+smearEvery
		a.Next = min(a.Next, max(now.Raw, c.leap.rateAt)+smearEvery)
	}
	if due {
		c.repeat(now, a)
	}
	if second.Kind == LeapNone {
		return
	}
	for _, at := range []time.Time{second.Begins(), second.At.Add(-kernelBefore), second.moment(), second.Ends()} {
		if left := at.Sub(through); left >= 0 {
			a.Next = min(a.Next, now.Raw+left+time.Microsecond)
		}
	}
}
