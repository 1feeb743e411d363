package discipline

import (
	"slices"
	"time"
)

// Phase is whose time a node of a cluster has. A node that knows no other is
// always Sourced.
type Phase uint8

// The phases. A node is in the first that it can be.
const (
	Sourced      Phase = iota // its own sources'
	Following                 // other nodes', which have sources
	OrphanLeader              // nobody has a source, and the store's leader, this node, goes on by itself
	Orphan                    // nobody has a source: the leader's
	Alone                     // it hears neither a source nor a leader: it runs on, and nobody follows it
)

// String is the word that an admin reads.
func (p Phase) String() string {
	return [...]string{"sourced", "following", "orphan leader", "orphan", "alone"}[p]
}

// Authority is what stands behind the time that another node serves.
type Authority uint8

// The authorities.
const (
	NoAuthority     Authority = iota // another node, or only its own oscillator: not to be followed
	SourceAuthority                  // a source of its own
	LeaderAuthority                  // the leader of a cluster in which nobody has one
)

// Whose turn it is to lead, beside the index of a source.
const (
	Nobody = -1
	Self   = -2
)

const (
	// orphanDispersion is the most that the leader admits to while nobody has
	// a source: clients refuse a server of more (MAXDIST, RFC 5905 §7.2, is 1 s
	// of distance), and that it is made up the stratum says.
	orphanDispersion = 500 * time.Millisecond
	// aloneStratum is the last that anybody may stand below.
	aloneStratum = 14
	// A clock that comes home from where nobody had a source is led there
	// slowly, so that all nodes walk together, though each hears of it at
	// another time: at healPace, a part every healEvery.
	healPace  = 10e-6
	healEvery = 16 * time.Second
)

// Lead says who leads the cluster: Self, Nobody, or a source's index. Who leads
// no more is no authority from this moment on; who leads becomes one with Step.
func (c *Core) Lead(leader int) {
	c.leader = leader
	if c.phase == OrphanLeader && leader != Self {
		c.phase = Alone
	}
}

// eligible tells whether a source may be heard in this phase.
func (c *Core) eligible(i int) bool {
	s := c.sources[i]
	switch c.phase {
	case Following:
		return s.config.Peer && s.last.Authority == SourceAuthority && !s.lost()
	case Orphan:
		return i == c.leader && s.last.Authority == LeaderAuthority
	case OrphanLeader, Alone:
		return false
	}
	return !s.config.Peer && s.apart == 0
}

// orient finds the phase. Nothing changes before all sources had their chance.
func (c *Core) orient(now Reading) {
	if c.config.Orphan == 0 || !c.settled() {
		return
	}
	phase := c.find()
	if phase == c.phase {
		return
	}
	if phase == OrphanLeader {
		c.found(now)
	}
	// Home slowly: who follows us, or whom we followed, walks beside us.
	c.healing = phase == Sourced && c.at != 0
	c.walkAt = 0
	c.phase, c.fresh = phase, true
}

// find is the first phase that the node can be in.
func (c *Core) find() Phase {
	usable := func(s *source) bool {
		return !s.lost() && s.register.line.ok && s.last.Stratum > 0 && s.last.Stratum <= maxStratum
	}
	switch {
	case slices.ContainsFunc(c.sources, func(s *source) bool { return !s.config.Peer && s.apart == 0 && usable(s) }):
		return Sourced
	case slices.ContainsFunc(c.sources, func(s *source) bool {
		return s.config.Peer && usable(s) && s.last.Authority == SourceAuthority
	}):
		return Following
	case c.leader == Self:
		return OrphanLeader
	case c.leader >= 0 && usable(c.sources[c.leader]) && c.sources[c.leader].last.Authority == LeaderAuthority:
		return Orphan
	}
	return Alone
}

// found makes this node's clock the cluster's. From then on nothing steps it
// without an admin's word: others stand on it.
func (c *Core) found(now Reading) {
	c.updates = max(c.updates, c.config.StepUpdates)
	if c.at != 0 {
		return
	}
	c.at, c.rootDisp = now.Raw, orphanDispersion
	c.target = line{ok: true, at: now.Raw, ahead: now.Clock.Sub(c.epoch) - now.Raw, frequency: c.frequency}
}

// bounded is how much of an offset is corrected now. While healing it is what
// brings the clock to where the walk home has it at this time: all nodes walk
// at the same pace by the true time, whatever their oscillators do.
func (c *Core) bounded(raw, offset time.Duration) time.Duration {
	if !c.healing {
		return offset
	}
	if c.walkAt == 0 {
		c.walk, c.walkAt = offset, raw
	}
	c.healedAt = raw
	left := c.walk.Abs() - time.Duration(float64(raw-c.walkAt)*healPace)
	if left <= 0 {
		c.healing = false
		return offset
	}
	if c.walk < 0 {
		left = -left
	}
	return offset - left
}

// heal makes the next part of a correction, when it is time and no source said
// anything new.
func (c *Core) heal(now Reading, a *Actions) {
	if !c.healing || c.walkAt == 0 {
		return
	}
	if a.Adjust == nil && a.Err == nil && now.Raw >= c.healedAt+healEvery && !c.atLeap(now.Raw) {
		a.Adjust = c.adjust(now, false)
	}
	a.Next = min(a.Next, max(now.Raw, c.healedAt)+healEvery)
}
