package logrelay

import (
	"context"
	"sync"
	"sync/atomic"
)

// Watermarks of the journal's file system, in percent used. At the first, RELP
// and TCP are read no more: their senders keep the lines. At the second, UDP
// debug lines are dropped, since nobody keeps those.
const (
	stopReadingAt = 95.0
	shedDebugAt   = 99.0
	reopenAt      = 93.0
)

// gate holds senders back while the disk is nearly full or an admin says so.
type gate struct {
	shedding atomic.Bool
	mu       sync.Mutex
	full     bool
	paused   bool
	open     chan struct{} // closed while lines may come
}

func newGate() *gate {
	open := make(chan struct{})
	close(open)
	return &gate{open: open}
}

// wait blocks while lines may not come, or until ctx ends.
func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
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
	if used >= stopReadingAt {
		g.full = true
	} else if used < reopenAt {
		g.full = false
	}
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
	closed := g.full || g.paused
	select {
	case <-g.open:
		if closed {
			g.open = make(chan struct{})
		}
	default:
		if !closed {
			close(g.open)
		}
	}
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
