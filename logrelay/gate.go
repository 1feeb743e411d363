package logrelay

import (
	"context"
	"sync"
	"sync/atomic"
)

// Watermarks of the journal's file system, in percent used. At the first, RELP
// and TCP are read no more: their senders keep the lines. At the second, UDP
// debug lines are dropped, since nobody keeps those, and the lines of other nodes
// are taken no more. That is later than senders are held back, so that a node
// gets rid of what it keeps for another: two full ones would wait for each other.
const (
	stopReadingAt = 95.0
	shedDebugAt   = 99.0
	reopenAt      = 93.0
	stopNodesAt   = shedDebugAt
	reopenNodesAt = 98.0
)

// gate holds senders back while the disk is nearly full or an admin says so.
type gate struct {
	shedding  atomic.Bool
	mu        sync.Mutex
	full      bool
	nodesFull bool // for lines of other nodes
	paused    bool
	open      chan struct{} // closed while lines may come
	openNodes chan struct{} // closed while those of other nodes may
}

func newGate() *gate {
	g := &gate{open: make(chan struct{}), openNodes: make(chan struct{})}
	close(g.open)
	close(g.openNodes)
	return g
}

// wait blocks while lines may not come, or until ctx ends.
func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	return waitFor(ctx, open)
}

// waitForNode is wait for lines of another node.
func (g *gate) waitForNode(ctx context.Context) error {
	g.mu.Lock()
	open := g.openNodes
	g.mu.Unlock()
	return waitFor(ctx, open)
}

func waitFor(ctx context.Context, open <-chan struct{}) error {
	select {
	case <-open:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// shed tells whether UDP debug lines are dropped.
func (g *gate) shed() bool { return g.shedding.Load() }

// disk tells the gate how full the disk is, in percent; it returns whether
// senders are held back for that.
func (g *gate) disk(used float64) (full, shedding bool) {
	g.shedding.Store(used >= shedDebugAt)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.full = passes(g.full, used, stopReadingAt, reopenAt)
	g.nodesFull = passes(g.nodesFull, used, stopNodesAt, reopenNodesAt)
	g.turn()
	return g.full, g.shedding.Load()
}

// pause holds senders back until it is told otherwise.
func (g *gate) pause(paused bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = paused
	g.turn()
}

func (g *gate) turn() {
	g.open = turned(g.open, g.full || g.paused)
	g.openNodes = turned(g.openNodes, g.nodesFull || g.paused)
}

// turned is a gate's channel that is closed while it is open.
func turned(open chan struct{}, shut bool) chan struct{} {
	select {
	case <-open:
		if shut {
			return make(chan struct{})
		}
	default:
		if !shut {
			close(open)
		}
	}
	return open
}

// passes tells whether a mark is passed, which was or not, and is until what is
// used falls below another.
func passes(passed bool, used, mark, below float64) bool {
	return used >= mark || passed && used >= below
}

// isFull tells whether senders are held back since the disk is nearly full.
func (g *gate) isFull() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.full
}

// held says why senders wait; "" if they don't.
func (g *gate) held() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.full:
		return "senders wait: the disk is nearly full"
	case g.paused:
		return "senders wait: an admin said holdfast logs pause"
	}
	return ""
}
