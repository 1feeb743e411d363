package discipline

import (
	"slices"
	"time"
)

// Phase is whose time a node of a cluster has. A node that knows no other, and
// is to serve no stratum of its own, is Sourced or Alone.
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
	// takeover is how long a node leads the store until its own clock is an
	// authority: by then whoever led before has heard of it, or that it hears
	// nothing. That takes 5 s at most where the leader is told by another
	// process that has died, and what is served follows within two.
	takeover = 10 * time.Second
	// patience is how long a phase lasts at least, and patientPolls for how many
	// polls, when those that it stands on answer but are no majority any more.
	patience     = 5 * time.Minute
	patientPolls = 4
)

// ownTime tells whether the clock runs on by itself in this phase.
func (p Phase) ownTime() bool { return p == OrphanLeader || p == Alone }

// Lead says who leads the cluster: Self, Nobody, or a source's index. Who leads
// no more is no authority from this moment on; who leads becomes one with Step.
func (c *Core) Lead(leader int) {
	if c.leader = leader; leader == Self {
		return
	}
	c.selfAt = -1
	if c.phase == OrphanLeader {
		c.phase = Alone
	}
}

// eligible tells whether a source may be heard in this phase.
func (c *Core) eligible(i int) bool { return c.hearable(c.phase, i) }

// hearable tells whether a source may be heard in a phase.
func (c *Core) hearable(phase Phase, i int) bool {
	s := c.sources[i]
	switch phase {
	case Following:
		return s.config.Peer && s.last.Authority == SourceAuthority && !s.lost()
	case Orphan:
		return i == c.leader && s.last.Authority == LeaderAuthority
	case OrphanLeader, Alone:
		return false
	}
	return !s.config.Peer && s.apart == 0
}

// orient finds the phase. Nothing changes before all sources had their chance,
// at the start and when the name of one leads to another server.
func (c *Core) orient(now Reading, a *Actions) {
	if c.leader == Self && c.selfAt < 0 {
		c.selfAt = now.Raw
	}
	if left := c.selfAt + takeover - now.Raw; c.selfAt >= 0 && left > 0 {
		a.Next = min(a.Next, now.Raw+left)
	}
	if !c.settled() {
		return
	}
	c.away = 0
	phase := c.find(now)
	if c.away != 0 {
		a.Err = c.tooFar(c.away)
	}
	if phase == c.phase {
		return
	}
	if phase == OrphanLeader {
		c.found(now)
	}
	// Home slowly: who follows us, or whom we followed, walks beside us.
	c.healing = phase == Sourced && c.at != 0 && c.config.Orphan != 0
	c.walkAt = 0
	c.phase, c.fresh, c.panicked, c.vacant = phase, true, false, false
}

// find is the first phase that the node can be in.
func (c *Core) find(now Reading) Phase {
	switch {
	case c.stands(Sourced, now):
		return Sourced
	case c.stands(Following, now):
		return Following
	case c.config.Orphan == 0:
	case c.leader == Self && c.selfAt >= 0 && now.Raw >= c.selfAt+takeover:
		return OrphanLeader
	case c.leader >= 0 && c.stands(Orphan, now):
		return Orphan
	}
	return Alone
}

// stands tells whether a phase has sources enough that agree: that they answer
// is not enough, since then nothing corrects the clock and nobody says so. One
// that had them lasts for a while without, as long as somebody answers.
func (c *Core) stands(phase Phase, now Reading) bool {
	raw := now.Raw
	sel := elect(c.sources, func(i int) bool { return c.hearable(phase, i) }, raw, maxDistance)
	answers := slices.ContainsFunc(sel.survivors, func(s candidate) bool { return !c.sources[s.index].lost() })
	if answers && len(sel.survivors) >= c.enough(phase) {
		if phase != c.phase && c.tooFarTo(sel.survivors, now) {
			return false
		}
		c.votedAt = raw
		return true
	}
	if phase != c.phase {
		return false
	}
	lasts, answers := patience, false
	for i, s := range c.sources {
		if c.hearable(phase, i) && s.usable() {
			lasts, answers = max(lasts, patientPolls*Interval(s.poll)), true
		}
	}
	return answers && raw-c.votedAt < lasts
}

// tooFarTo tells whether sources are so far away from a clock that was set that
// an admin must be asked. Nodes that go on together without any source stay
// together until then, instead of each going its own way below a source that it
// does not follow.
func (c *Core) tooFarTo(survivors []candidate, now Reading) bool {
	if c.at == 0 || c.allowStep || c.updates < c.config.StepUpdates {
		return false
	}
	utc := c.epoch.Add(now.Raw + survivors[0].ahead)
	smeared, _ := c.smeared(utc)
	offset := utc.Add(smeared).Sub(now.Clock)
	if offset.Abs() <= c.config.Panic {
		return false
	}
	if c.away == 0 {
		c.away = offset
	}
	return true
}

// enough is how many sources must agree in a phase.
func (c *Core) enough(phase Phase) int {
	if phase == Sourced {
		return c.config.Agreeing
	}
	return 1
}

// led tells whether what the clock was last set by belongs to the phase. It does
// not while those of a new phase have yet to agree, or are too far off. The
// source that led may be none of ours any more: as long as the phase lasts, what
// it said is still what the clock stands on.
func (c *Core) led() bool {
	if c.phase.ownTime() || c.vacant {
		return true
	}
	return c.leading >= 0 && c.sources[c.leading].config.Peer == (c.phase != Sourced) && (c.phase != Orphan || c.leading == c.leader)
}

// found makes this node's clock the cluster's. From then on nothing steps it
// without an admin's word: others stand on it.
func (c *Core) found(now Reading) {
	c.updates = max(c.updates, c.config.StepUpdates)
	if c.at != 0 {
		return
	}
	c.at, c.rootDisp = now.Raw, orphanDispersion
	c.toldAt = now.Raw - tellEvery // the kernel does not know its frequency yet
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
	if now.Raw >= c.healedAt+healEvery {
		c.repeat(now, a)
	}
	a.Next = min(a.Next, max(now.Raw, c.healedAt)+healEvery)
}
