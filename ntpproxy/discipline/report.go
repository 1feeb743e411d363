package discipline

import (
	"math"
	"time"
)

// Dispersion is the root dispersion at a raw time: what the sources said, and
// what the oscillator may have done since (RFC 5905 §11.2.3).
func (c *Core) Dispersion(raw time.Duration) time.Duration {
	since := max(0, (raw - c.at).Seconds())
	return c.rootDisp + seconds(since*(c.config.Growth+3*math.Sqrt(c.variance)))
}

// Tracking is how the clock stands.
type Tracking struct {
	Synchronised bool
	Leading      int // index of the source; -1 none yet
	Stratum      uint8
	Frequency    float64       // correction, as a ratio
	Skew         float64       // standard error of it
	Offset       time.Duration // yet to be corrected
	Slew         float64       // how much faster the clock runs now to that end, as a ratio
	RootDelay    time.Duration
	Dispersion   time.Duration
	Leap         Leap
	Updated      time.Duration // raw time of the last update
	Updates      int
	Phase        Phase         // Alone also while those of the phase have not set the clock yet
	Smearing     bool          // a leap second is being smeared
	Smeared      time.Duration // how far the clock is ahead of UTC by that
}

// Tracking tells how the clock stands at a moment.
func (c *Core) Tracking(now Reading) Tracking {
	t := Tracking{Leading: c.leading, Frequency: c.frequency, Skew: math.Sqrt(c.variance), Updates: c.updates, Phase: c.phase}
	if c.at == 0 {
		return t
	}
	t.Synchronised = true
	if c.leading >= 0 {
		t.Stratum = c.sources[c.leading].last.Stratum + 1
	}
	t.Offset = c.offset(now)
	c.pending.pass(now.Clock)
	t.Slew = c.pending.running
	t.RootDelay, t.Dispersion, t.Leap, t.Updated = c.rootDelay, c.Dispersion(now.Raw), c.announced(), c.at
	if s := c.smear(); s != nil && c.smearing(c.through(c.utc(now.Raw))) {
		t.Smearing = true
		t.Smeared, _ = c.smeared(c.utc(now.Raw))
	}
	if !c.led() {
		t.Phase = Alone
	}
	switch t.Phase {
	case OrphanLeader:
		t.Leading, t.Stratum, t.Dispersion = -1, c.config.Orphan, min(t.Dispersion, orphanDispersion)
	case Alone:
		t.Leading, t.Stratum = -1, aloneStratum
	}
	return t
}

// SourceReport is what is known of a source.
type SourceReport struct {
	Name      string
	State     State
	Stratum   uint8
	Poll      int           // log2 seconds
	Reach     uint8         // a bit a request, the last one lowest
	Samples   int           // that its line goes through
	Offset    time.Duration // of the source before our clock, less what that is smeared by
	Error     time.Duration // standard error of it
	Distance  time.Duration
	Frequency float64
	Skew      float64
	Delay     time.Duration
}

// Sources tells how the sources stand.
func (c *Core) Sources(now Reading) (list []SourceReport) {
	for i, s := range c.sources {
		r := SourceReport{Name: s.config.Name, State: c.states[i], Stratum: s.last.Stratum, Poll: s.poll, Reach: s.reach}
		if l := &s.register.line; l.ok {
			r.Samples, r.Frequency, r.Skew, r.Delay = l.used, l.frequency, l.skew, s.last.Delay
			utc := c.epoch.Add(now.Raw + l.aheadAt(now.Raw))
			smeared, _ := c.smeared(utc)
			r.Offset = utc.Add(smeared).Sub(now.Clock)
			r.Error, r.Distance = seconds(l.errorAt(now.Raw)), s.distance(now.Raw)
		}
		list = append(list, r)
	}
	return list
}
