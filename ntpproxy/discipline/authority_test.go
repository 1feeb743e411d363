package discipline

import (
	"math/rand/v2"
	"testing"
)

// says is what a node's answers say to the others of what stands behind its
// time: they see its reference, and no phase.
func (c *nodes) says(j int) Authority {
	k := c.list[j].core.Tracking(c.list[j].reading())
	switch {
	case !k.Synchronised || k.Phase == Alone:
		return NoAuthority
	case k.Phase == OrphanLeader:
		return LeaderAuthority
	case k.Leading >= sourcesEach: // the reference is another node's
		return NoAuthority
	}
	return SourceAuthority
}

// elections tells each node of a new leader at a time of its own, up to so many
// seconds late, now and then.
type elections struct {
	c     *nodes
	rand  *rand.Rand
	late  float64
	heard []float64 // when each node hears of leader
	knows []int     // who leads, as each node knows
}

func (e *elections) elect(leader int) {
	e.c.leader = leader
	for i := range e.c.list {
		e.heard[i] = e.c.list[0].now + e.late*e.rand.Float64()
	}
}

// tell tells those whose time has come.
func (e *elections) tell() {
	for i, w := range e.c.list {
		if e.c.list[0].now < e.heard[i] || e.knows[i] == e.c.leader {
			continue
		}
		e.knows[i] = e.c.leader
		w.core.Lead(e.c.asSeenBy(i, e.c.leader))
		w.wake = w.now // as a node turns its loop: once a second
	}
}

// Who led hears of the election up to 5 s later than who leads now, or the other
// way round; authority is what answers say.
func TestThereAreNeverTwoAuthoritiesWhoeverHearsFirst(t *testing.T) {
	for seed := range uint64(runs(t)) {
		c := newNodes(t, 4, 20+seed)
		for i := range c.cut {
			c.cut[i] = func(now float64) bool { return now > 3*hour }
		}
		e := &elections{c: c, rand: rand.New(rand.NewPCG(seed, 2)), late: 5, heard: make([]float64, 4), knows: []int{-1, -1, -1, -1}}
		e.elect(0)
		e.tell()
		c.run(2 * hour)
		e.tell()
		c.run(4 * hour)
		if c.says(0) != LeaderAuthority {
			t.Fatalf("seed %d: %v: nobody leads the time", seed, c.phases())
		}
		c.most = 0
		for range 60 {
			e.elect((c.leader + 1 + e.rand.IntN(3)) % 4)
			for end := c.list[0].now + 20 + 60*e.rand.Float64(); c.list[0].now < end; {
				e.tell()
				c.run(c.list[0].now + 0.25)
				leaders := 0
				for i := range c.list {
					switch c.says(i) {
					case LeaderAuthority:
						leaders++
					case SourceAuthority:
						t.Fatalf("seed %d, %.2f s: node %d claims a source; all are cut off: %v", seed, c.list[0].now, i, c.phases())
					}
				}
				if leaders > 1 {
					t.Fatalf("seed %d, %.2f s: %d authorities: %v", seed, c.list[0].now, leaders, c.phases())
				}
			}
		}
		e.tell()
		c.run(c.list[0].now + 60)
		if c.says(c.leader) != LeaderAuthority || c.most > 1e-3 {
			t.Errorf("seed %d: after sixty elections %v, leader %d, up to %.2f ms apart", seed, c.phases(), c.leader, c.most*1e3)
		}
	}
}
