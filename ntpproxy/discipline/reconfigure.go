package discipline

import "time"

// Reconfigure makes the Core follow another configuration from now on, whose
// figures are in range. What was learned of the oscillator stays, and so do
// the sources that are in both, by Name and Peer, wherever they stand in the
// list; those that are new are asked at once. Looked at are neither Frequency
// and Skew, nor StepUpdates and Panic.
//
// From noon before a leap second that is known until noon after it, Leap and
// Shape stay what they were, since the clock would have to jump: then later is
// true, and Reconfigure is to be called again with the same configuration.
func (c *Core) Reconfigure(config Config, raw time.Duration) (later bool) {
	old := c.config
	config.StepUpdates, config.Panic, config.Frequency, config.Skew = old.StepUpdates, old.Panic, old.Frequency, old.Skew
	if changed := config.Leap != old.Leap || config.Shape != old.Shape; changed && c.leapIsNear(raw) {
		config.Leap, config.Shape, later = old.Leap, old.Shape, true
	} else if changed {
		c.leap.second, c.leap.passed = LeapSecond{}, false // the new mode finds its own, or none
	}
	sourced := c.at != 0 && c.phase == Sourced && c.led()
	c.config = config
	c.replaceSources(old.Sources, raw)
	c.vacant = sourced && c.leading < 0
	return later
}

// leapIsNear tells whether it is between the noons around a leap second.
func (c *Core) leapIsNear(raw time.Duration) bool {
	second := c.leap.second
	if c.at == 0 || second.Kind == LeapNone {
		return false
	}
	through := c.through(c.utc(raw))
	return !through.Before(second.Begins()) && through.Before(second.Ends())
}

// LeapMode is what is made of leap seconds now.
func (c *Core) LeapMode() LeapMode { return c.config.Leap }

// replaceSources has those of the configuration asked, instead of those of one
// before.
func (c *Core) replaceSources(before []SourceConfig, raw time.Duration) {
	sources, states := c.sources, c.states
	leading, leader := c.leading, c.leader
	c.sources, c.states, c.leading = nil, nil, -1
	if leader >= 0 {
		c.leader = Nobody
	}
	taken := make([]bool, len(before))
	for i, config := range c.config.Sources {
		was := -1
		for j, b := range before {
			if !taken[j] && b.Name == config.Name && b.Peer == config.Peer {
				was, taken[j] = j, true
				break
			}
		}
		if was < 0 {
			c.sources = append(c.sources, &source{config: config, poll: config.MinPoll, next: raw})
			c.states = append(c.states, Unreachable)
			continue
		}
		s := sources[was]
		if before[was] != config { // else what it refused still counts
			s.config = config
			s.poll = max(config.MinPoll, min(config.MaxPoll, s.poll))
			s.next = min(s.next, raw+Interval(s.poll))
		}
		c.sources, c.states = append(c.sources, s), append(c.states, states[was])
		if was == leading {
			c.leading = i
		}
		if was == leader {
			c.leader = i
		}
	}
	c.fresh = c.fresh || leading >= 0 && c.leading < 0 // another is to lead
}
