package discipline

import (
	"fmt"
	"math"
	"testing"
)

// nodes is a cluster: worlds side by side in one virtual time, that ask each
// other beside sources of their own.
type nodes struct {
	list   []*world
	leader int // its index; -1 nobody
	dead   []bool
	cut    []func(now float64) bool // of each node's sources
	split  func(now float64, i, j int) bool
	most   float64 // that two were ever apart, once all were settled
}

const sourcesEach = 2

func newNodes(t testing.TB, n int, seed uint64) *nodes { return newNodesAt(t, n, seed, 0) }

// newNodesAt is a cluster that starts at a time.
func newNodesAt(t testing.TB, n int, seed uint64, now float64) *nodes {
	c := &nodes{dead: make([]bool, n), cut: make([]func(float64) bool, n)}
	for i := range n {
		var servers []*server
		for range sourcesEach {
			s := wan()
			s.way, s.jitter = 500e-6, 50e-6 // the organisation's
			s.cut = func(now float64) bool { return c.cut[i] != nil && c.cut[i](now) }
			servers = append(servers, s)
		}
		for j := range n {
			if j != i {
				servers = append(servers, c.peer(i, j))
			}
		}
		w := newWorld(t, 100*seed+uint64(i), servers...)
		w.drift = float64(i-1) * 15e-6
		c.list = append(c.list, w)
	}
	for i, w := range c.list {
		w.clock, w.now = float64(i)*10e-3, now
		w.start(Config{Orphan: 10})
	}
	return c
}

// peer is node j as node i sees it.
func (c *nodes) peer(i, j int) *server {
	s := lan()
	s.config = SourceConfig{MinPoll: 4, MaxPoll: 4, Burst: true, Peer: true}
	s.wrong = func(float64) float64 { return c.list[j].clock }
	s.cut = func(now float64) bool { return c.dead[j] || c.split != nil && c.split(now, i, j) }
	s.fill = func(sample *Sample) {
		w := c.list[j]
		k := w.core.Tracking(w.reading())
		if sample.Stratum = k.Stratum; !k.Synchronised {
			sample.Stratum = 0
		}
		sample.Dispersion, sample.RootDelay = k.Dispersion, k.RootDelay
		sample.Authority = c.says(j)
		if k.Leading >= sourcesEach && c.other(j, k.Leading) == i {
			sample.Stratum = 0 // it follows us
		}
	}
	return s
}

// other is which node a source of a node is.
func (c *nodes) other(node, source int) int {
	if j := source - sourcesEach; j < node {
		return j
	} else {
		return j + 1
	}
}

// lead tells each node who leads.
func (c *nodes) lead(leader int) {
	c.leader = leader
	for i, w := range c.list {
		w.core.Lead(c.asSeenBy(i, leader))
	}
}

// asSeenBy is a node as another one's core counts.
func (c *nodes) asSeenBy(i, leader int) int {
	switch {
	case leader < 0:
		return Nobody
	case leader == i:
		return Self
	case leader < i:
		return sourcesEach + leader
	}
	return sourcesEach + leader - 1
}

// run lets time go by until a time, for all at once, and measures how far
// apart they are.
func (c *nodes) run(until float64) {
	const step = 0.25
	for now := c.list[0].now; now < until; {
		now = min(until, now+step)
		low, high := math.Inf(1), math.Inf(-1)
		for i, w := range c.list {
			w.run(now)
			if c.dead[i] {
				continue
			}
			low, high = min(low, w.clock), max(high, w.clock)
		}
		c.most = max(c.most, high-low)
	}
}

// phases are the nodes' in a word.
func (c *nodes) phases() (list []Phase) {
	for _, w := range c.list {
		list = append(list, w.core.Tracking(w.reading()).Phase)
	}
	return list
}

func (c *nodes) want(t *testing.T, want ...Phase) {
	t.Helper()
	if got := c.phases(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("at %.0f s: %v, want %v", c.list[0].now, got, want)
	}
}

// steps counts the steps of all nodes' clocks.
func (c *nodes) steps() (n int) {
	for _, w := range c.list {
		n += len(w.steps)
	}
	return n
}

func TestFourNodesWithoutUpstreamForADayAgreeWithinAMillisecond(t *testing.T) {
	const gone, back = 12 * hour, 36 * hour
	var most, away float64
	for seed := range uint64(runs(t)) {
		c := newNodes(t, 4, seed)
		for i := range c.cut {
			// It comes back at each node at another time.
			c.cut[i] = func(now float64) bool { return now > gone && now < back+float64(i)*700 }
		}
		c.lead(1)
		c.run(2 * hour)
		c.want(t, Sourced, Sourced, Sourced, Sourced)
		c.most = 0
		steps := c.steps()
		c.run(gone + 2*hour)
		c.want(t, Orphan, OrphanLeader, Orphan, Orphan)
		c.run(gone + 10*hour)
		c.lead(Nobody) // an election, and another leader
		c.run(c.list[0].now + 20)
		c.lead(3)
		c.run(back)
		c.want(t, Orphan, Orphan, Orphan, OrphanLeader)
		away = max(away, math.Abs(c.list[3].clock))
		k := c.list[0].core.Tracking(c.list[0].reading())
		if k.Stratum != 11 || k.Dispersion < 50e6 || math.Abs(c.list[0].clock) > k.Dispersion.Seconds() {
			t.Errorf("seed %d: after a day it serves stratum %d, dispersion %v, and is off by %.3f s", seed, k.Stratum, k.Dispersion, c.list[0].clock)
		}
		c.run(back + 8*hour)
		c.want(t, Sourced, Sourced, Sourced, Sourced)
		most = max(most, c.most)
		if c.most > 1e-3 {
			t.Errorf("seed %d: up to %.2f ms apart", seed, c.most*1e3)
		}
		if n := c.steps() - steps; n > 0 {
			t.Errorf("seed %d: %d steps", seed, n)
		}
		for i, w := range c.list {
			if math.Abs(w.clock) > 300e-6 {
				t.Errorf("seed %d: node %d is off by %.0f µs, eight hours after its source came back", seed, i, w.clock*1e6)
			}
		}
	}
	t.Logf("four nodes, a day without upstream, a new leader in it, and the way back: at most %.0f µs apart; up to %.1f ms from the true time", most*1e6, away*1e3)
}

func TestNodeThatStillHasASourceServesTheOthers(t *testing.T) {
	c := newNodes(t, 4, 7)
	for _, i := range []int{0, 1, 3} {
		c.cut[i] = func(now float64) bool { return now > 3*hour }
	}
	c.lead(0)
	c.run(2 * hour)
	c.most = 0
	c.run(12 * hour)
	c.want(t, Following, Following, Sourced, Following)
	if c.most > 1e-3 {
		t.Errorf("up to %.2f ms apart", c.most*1e3)
	}
	if k := c.list[0].core.Tracking(c.list[0].reading()); k.Stratum != 3 || math.Abs(c.list[0].clock) > 1e-3 {
		t.Errorf("who follows serves stratum %d and is off by %.0f µs", k.Stratum, c.list[0].clock*1e6)
	}
}

func TestNobodyFollowsANodeWithoutLeaderOrSource(t *testing.T) {
	c := newNodes(t, 4, 8)
	for i := range c.cut {
		c.cut[i] = func(now float64) bool { return now > 3*hour }
	}
	// Nodes 0 and 1 are cut from 2 and 3, where the leader is.
	c.split = func(now float64, i, j int) bool { return now > 3*hour && i/2 != j/2 }
	c.lead(2)
	c.run(3 * hour)
	for _, i := range []int{0, 1} {
		c.list[i].core.Lead(Nobody) // without a quorum they know of none
	}
	c.run(8 * hour)
	c.want(t, Alone, Alone, OrphanLeader, Orphan)
	for i, w := range c.list[:2] {
		if k := w.core.Tracking(w.reading()); k.Stratum != aloneStratum || k.Dispersion < 18e6 {
			t.Errorf("node %d serves stratum %d and dispersion %v: it must be the last that anybody chooses", i, k.Stratum, k.Dispersion)
		}
	}
	c.split = nil
	c.lead(2)
	c.run(9 * hour)
	c.want(t, Orphan, Orphan, OrphanLeader, Orphan)
	c.most = 0
	c.run(10 * hour)
	if c.most > 1e-3 {
		t.Errorf("reunited, they are up to %.2f ms apart", c.most*1e3)
	}
}

func TestClusterThatWakesUpWithoutUpstreamAgreesOnItsLeadersTime(t *testing.T) {
	c := newNodes(t, 4, 9)
	for i := range c.cut {
		c.cut[i] = func(now float64) bool { return now < 2*hour }
		c.list[i].clock = float64(i) * -3000
	}
	c.lead(1)
	c.run(600)
	c.want(t, Orphan, OrphanLeader, Orphan, Orphan)
	c.most = 0
	c.run(2 * hour)
	if c.most > 1e-3 || len(c.list[1].steps) > 0 || math.Abs(c.list[1].clock+3000) > 1 {
		t.Errorf("up to %.2f ms apart; the leader's steps %v, off by %.1f s", c.most*1e3, c.list[1].steps, c.list[1].clock)
	}
	c.run(3 * hour)
	if len(c.list[1].steps) > 0 || len(c.list[1].errs) == 0 {
		t.Errorf("sources come back 3,000 s away: steps %v, errors %d; want an admin asked", c.list[1].steps, len(c.list[1].errs))
	}
}

// What is too far off is said at each look, and the kernel is told of a fast slew
// each second all the same: else it swings from one side to the other.
func TestASlewEndsWhileAnAdminIsAsked(t *testing.T) {
	c := newNodes(t, 4, 9)
	for i := range c.cut {
		c.cut[i] = func(now float64) bool { return now < 2*hour }
		c.list[i].clock = -3000
	}
	c.lead(1)
	c.run(3 * hour)
	c.want(t, Orphan, OrphanLeader, Orphan, Orphan)
	before := c.list[0].clock
	for _, i := range []int{0, 1} { // somebody moves the leader's clock, and a follower's
		w := c.list[i]
		w.clock += 5e-3
		w.each = func() { w.wake = w.now } // a node turns its loop each second
	}
	c.run(c.list[0].now + 300) // a follower took the moved leader's word for it
	c.most = 0
	c.run(c.list[0].now + 60)
	for i, w := range c.list {
		if off := w.clock - before; len(w.errs) == 0 || math.Abs(off) > 1e-3 || math.Abs(w.running) > 1e-3 || c.most > 1e-3 {
			t.Errorf("node %d, six minutes later: %.2f ms from where it was, slewing at %.0f ppm, errors %d; up to %.2f ms apart", i, off*1e3, w.running*1e6, len(w.errs), c.most*1e3)
		}
	}
}

func TestThereAreNeverTwoAuthorities(t *testing.T) {
	c := newNodes(t, 4, 10)
	for i := range c.cut {
		c.cut[i] = func(now float64) bool { return now > 3*hour }
	}
	c.lead(0)
	c.run(4 * hour)
	for turn := range 40 {
		c.lead(turn%5 - 1)
		for range 60 {
			c.run(c.list[0].now + 1)
			leaders := 0
			for _, p := range c.phases() {
				if p == OrphanLeader {
					leaders++
				}
			}
			if leaders > 1 {
				t.Fatalf("at %.0f s: %v", c.list[0].now, c.phases())
			}
		}
	}
	if c.most = 0; c.leader >= 0 {
		c.run(c.list[0].now + hour)
	}
	if c.most > 1e-3 {
		t.Errorf("after forty elections up to %.2f ms apart", c.most*1e3)
	}
}
