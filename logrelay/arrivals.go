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
	// arrivalsStall is for how long a node that has more may say nothing, while all
	// that it said is stored: it may have lost its power.
	arrivalsStall = 2 * time.Second
	// arrivalsWaited is from when on a read counts as one that waited: what is
	// there takes microseconds, and what is on its way from another node less
	// than this.
	arrivalsWaited = 250 * time.Microsecond
	// arrivalsQuiet is for how long nothing must have come from a node, of which
	// all is stored that was read, until it is believed to have no more: the next
	// may stand in the socket, unread while the disk had to do.
	arrivalsQuiet = 2 * time.Millisecond
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
	had   time.Time // all that the node had then is here; guarded by of.mu
	quiet time.Time // since when all that was read is here; zero: it is not; guarded by of.mu
	// storing: lines that were read are on their way to this node's disk, which may be
	// slow; then it is not the node that is silent. Guarded by of.mu.
	storing bool
}

// stream begins a node's connection, which has more lines until it says
// otherwise.
func (a *arrivals) stream(node string) *arrivalStream {
	s := &arrivalStream{of: a, node: node}
	s.hears(true)
	return s
}

// hears says that lines came, or that there are no more by this connection.
func (s *arrivalStream) hears(more bool) {
	a := s.of
	a.mu.Lock()
	defer a.mu.Unlock()
	a.greeted[s.node] = true
	s.quiet = time.Time{}
	if s.heard = time.Now(); more {
		a.streams[s] = true
	} else if a.streams[s] {
		delete(a.streams, s)
		a.tellAll()
	}
}

// stores says whether lines that were read are on their way to this node's disk.
func (s *arrivalStream) stores(yes bool) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.storing = yes
}

// has says that all lines which the node had at a time are here, and whether
// others have been read since. A busy node has more in every moment; who came
// before that time waits for none of them.
func (s *arrivalStream) has(at time.Time, more bool) {
	a := s.of
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.heard, s.quiet = time.Now(), (time.Time{}); !more {
		s.quiet = s.heard
	}
	if at.After(s.had) || !more {
		s.had = at
		a.tellAll()
	}
}

// tellAll wakes who waits. The caller holds mu.
func (a *arrivals) tellAll() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// awaited are the nodes whose lines of before since may be on their way at now.
// soon: one of them will have no more if nothing comes for arrivalsQuiet.
func (a *arrivals) awaited(since, now time.Time, others func() []Other) (list []string, soon bool, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for s := range a.streams {
		quiet := !s.quiet.IsZero()
		if !s.storing && now.Sub(s.heard) >= arrivalsStall || !s.had.Before(since) || quiet && now.Sub(s.quiet) >= arrivalsQuiet {
			continue
		}
		list, soon = append(list, s.node), soon || quiet
	}
	if now.Sub(a.began) < arrivalsStart && others != nil {
		for _, o := range others() {
			if !a.greeted[safeName(o.Name)] {
				list = append(list, o.Name)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list), soon, a.changed
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

// wait blocks until no other node's lines of before now are on their way, for a
// time, or until ctx ends. It returns the nodes that are waited for in vain.
func (a *arrivals) wait(ctx context.Context, others func() []Other) []string {
	began := time.Now()
	list, soon, changed := a.awaited(began, began, others)
	if len(list) == 0 {
		return nil
	}
	end := time.NewTimer(arrivalsMost)
	defer end.Stop()
	look := time.NewTicker(replicaRetry / 2) // who is alive changes, and who has fallen silent
	defer look.Stop()
	for len(list) > 0 {
		var quiet <-chan time.Time
		if soon {
			quiet = time.After(arrivalsQuiet)
		}
		select {
		case <-changed:
		case <-quiet:
		case <-look.C:
		case <-end.C:
			return list
		case <-ctx.Done():
			return nil
		}
		list, soon, changed = a.awaited(began, time.Now(), others)
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
