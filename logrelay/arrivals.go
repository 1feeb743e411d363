package logrelay

import (
	"context"
	"slices"
	"sync"
	"time"
)

// A client that comes to this node after a move of the address has lines with
// the node that had it before, and those go before its own. So while another
// node's lines are on their way here, a session does not begin.
const (
	// arrivalsMost is how long it waits at most. librelp gives up a session that
	// is not answered for 90 s.
	arrivalsMost = 30 * time.Second
	// arrivalsStart is how long after the start of this node another one that is
	// alive is given to begin: it tries once a replicaRetry. It may never, since
	// its lines may go to a third.
	arrivalsStart = 3 * replicaRetry
	// arrivalsStall is for how long a node that has more may say nothing: it may
	// have lost its power.
	arrivalsStall = 2 * time.Second
)

// arrivals knows which nodes have lines for this one that are not here yet. Its
// methods may be called from any goroutine.
type arrivals struct {
	mu      sync.Mutex
	began   time.Time
	told    time.Time
	greeted map[string]bool         // have connected since
	streams map[*arrivalStream]bool // of which there are more lines
	changed chan struct{}           // closed when one has no more
}

func newArrivals() *arrivals { return &arrivals{changed: make(chan struct{})} }

// reset says that this node starts.
func (a *arrivals) reset(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.began, a.greeted, a.streams = now, map[string]bool{}, map[*arrivalStream]bool{}
}

// arrivalStream is a node's connection.
type arrivalStream struct {
	of    *arrivals
	node  string
	heard time.Time // guarded by of.mu
}

// stream begins a node's connection, which has more lines until it says
// otherwise.
func (a *arrivals) stream(node string) *arrivalStream {
	s := &arrivalStream{of: a, node: node}
	s.hears(true)
	return s
}

// hears says that lines came, or that there are no more.
func (s *arrivalStream) hears(more bool) {
	a := s.of
	a.mu.Lock()
	defer a.mu.Unlock()
	a.greeted[s.node] = true
	if s.heard = time.Now(); more {
		a.streams[s] = true
	} else if a.streams[s] {
		delete(a.streams, s)
		close(a.changed)
		a.changed = make(chan struct{})
	}
}

// awaited are the nodes whose lines may be on their way at now.
func (a *arrivals) awaited(now time.Time, others func() []Other) (list []string, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for s := range a.streams {
		if now.Sub(s.heard) < arrivalsStall {
			list = append(list, s.node)
		}
	}
	if now.Sub(a.began) < arrivalsStart && others != nil {
		for _, o := range others() {
			if !a.greeted[safeName(o.Name)] {
				list = append(list, o.Name)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list), a.changed
}

// tell returns whether it is to be said that clients waited in vain: at an
// outage there are thousands of them.
func (a *arrivals) tell(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	due := now.Sub(a.told) >= arrivalsMost
	if due {
		a.told = now
	}
	return due
}

// wait blocks until no other node's lines are on their way, for a time, or
// until ctx ends. It returns the nodes that are waited for in vain.
func (a *arrivals) wait(ctx context.Context, others func() []Other) []string {
	list, changed := a.awaited(time.Now(), others)
	if len(list) == 0 {
		return nil
	}
	end := time.NewTimer(arrivalsMost)
	defer end.Stop()
	look := time.NewTicker(replicaRetry / 2) // who is alive changes, and who has fallen silent
	defer look.Stop()
	for len(list) > 0 {
		select {
		case <-changed:
		case <-look.C:
		case <-end.C:
			return list
		case <-ctx.Done():
			return nil
		}
		list, changed = a.awaited(time.Now(), others)
	}
	return nil
}

// awaitable lists the nodes whose lines may come here, after a start; nil: none
// sends any.
func (s *Server) awaitable() func() []Other {
	if s.settings.replicas < 2 {
		return nil
	}
	return s.deps.Others
}
