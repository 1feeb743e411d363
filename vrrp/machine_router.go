package vrrp

import (
	"container/heap"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// cause is why a Backup's time is over.
type cause uint8

const (
	silence   cause = iota // Active_Down_Interval passed
	resigned               // Skew_Time passed after priority 0
	better                 // we outrank who is Active
	commanded              // Pull
)

// router is one virtual router. Its state is its group's: a router without a
// sync group has one to itself.
type router struct {
	Router
	index    int
	group    *group
	priority uint8 // with weights
	adopted  bool  // holds what a predecessor left; what is not known yet is presumed good
	tracks   []track
	peers    []*peer
	counters Counters

	// Backup
	interval  time.Duration // Active_Adver_Interval (RFC 9568 §6.1)
	active    netip.Addr    // who last claimed to be; zero: nobody since the last resignation
	restarted time.Time     // when the Active_Down_Timer was last set
	cause     cause         // what its end will mean
	expired   bool          // it ran out; the group has not moved yet
	downAt    time.Time     // when it runs out
	preemptAt time.Time     // end of PreemptDelay; zero: nobody to preempt
	asks      int           // stalls that lengthened it
	granted   bool          // an Owner did

	// Active
	advertAt   time.Time // Adver_Timer
	announceAt time.Time // once more; zero: no need
	announced  time.Time
	opposed    time.Time // when another Active was last heard

	due time.Time // the soonest of these
	pos int       // in timers
}

func newRouter(r Router, index int) *router {
	n := &router{Router: r, index: index, interval: r.Interval}
	for _, t := range r.Tracks {
		n.tracks = append(n.tracks, track{Track: t})
	}
	return n
}

func (r *router) authType() uint8 {
	if r.Version == 2 && r.Password != ([8]byte{}) {
		return AuthPass
	}
	return AuthNone
}

// skew is Skew_Time: in version 3 a share of the Active's interval (RFC 9568
// §6.1), in version 2 of a second whatever the interval (RFC 3768 §6.1).
func (r *router) skew() time.Duration { return skewTime(r.Version, r.priority, r.interval) }

func skewTime(version, priority uint8, interval time.Duration) time.Duration {
	if version == 2 {
		interval = time.Second
	}
	return time.Duration(256-int(priority)) * interval / 256
}

// down is Active_Down_Interval.
func (r *router) down() time.Duration { return 3*r.interval + r.skew() }

// preempts tells whether it takes over from a lower priority. An owner always
// does (RFC 9568 §6.1).
func (r *router) preempts() bool {
	return (r.Preempt || r.Priority == owner || r.group.pulled) && !r.group.yielded
}

// await sets the Active_Down_Timer.
func (r *router) await(c cause, at time.Time) {
	r.restarted, r.cause, r.expired = at, c, false
	r.preemptAt, r.asks, r.granted = time.Time{}, 0, false
	r.rearm()
}

// rearm computes its end anew: the priority may have changed meanwhile.
func (r *router) rearm() {
	if r.asks > 0 {
		return
	}
	r.downAt = r.restarted.Add(r.down())
	if r.cause == resigned {
		r.downAt = r.restarted.Add(r.skew())
	}
}

// why is the reason for taking over, and whose doing it is.
func (r *router) why(at time.Time) (reason string, peer netip.Addr) {
	switch {
	case r.cause == commanded:
		return "pulled here", r.active
	case !r.active.IsValid():
		return fmt.Sprintf("nobody advertised for %s", at.Sub(r.restarted).Round(time.Millisecond)), netip.Addr{}
	case r.cause == resigned:
		return fmt.Sprintf("%s gave up (priority 0)", r.active), r.active
	case r.cause == better:
		theirs := uint8(0)
		if p := r.peer(r.active); p != nil {
			theirs = p.advert.Priority
		}
		return fmt.Sprintf("%s advertises priority %d, we have %d", r.active, theirs, r.priority), r.active
	}
	return fmt.Sprintf("%s fell silent for %s", r.active, at.Sub(r.restarted).Round(time.Millisecond)), r.active
}

// outranks tells whether an advert's sender is rather to be Active than we
// (RFC 9568 §6.4.3): by priority, among equals by address.
func (r *router) outranks(priority uint8, from netip.Addr) bool {
	return priority > r.priority || priority == r.priority && from.Compare(r.Source) > 0
}

// listed tells whether adverts are taken from an address.
func (r *router) listed(from netip.Addr) bool {
	return len(r.Peers) == 0 || slices.Contains(r.Peers, from)
}

// nextDue is when something happens by itself.
func (r *router) nextDue() time.Time {
	g := r.group
	var due time.Time
	soonest := func(t time.Time) {
		if !t.IsZero() && (due.IsZero() || t.Before(due)) {
			due = t
		}
	}
	switch g.state {
	case Initialize:
		soonest(g.startAt)
	case Backup:
		if !r.expired {
			soonest(r.downAt)
			soonest(r.preemptAt)
		}
	case Active:
		soonest(r.advertAt)
		soonest(r.announceAt)
		soonest(g.yieldUntil)
	}
	return due
}

// schedule puts the routers of a group where they belong among the timers.
func (m *Machine) schedule(g *group) {
	for _, r := range g.members {
		due := time.Time{}
		if m.running {
			due = r.nextDue()
		}
		if !due.Equal(r.due) {
			r.due = due
			heap.Fix(&m.timers, r.pos)
		}
	}
}

// timers is a heap of routers, the soonest first; those with nothing due last.
type timers []*router

func (t timers) Len() int { return len(t) }

func (t timers) Less(i, j int) bool {
	a, b := t[i], t[j]
	if a.due.Equal(b.due) {
		return a.index < b.index
	}
	return !a.due.IsZero() && (b.due.IsZero() || a.due.Before(b.due))
}

func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].pos, t[j].pos = i, j
}

// Push belongs to heap.Interface; the timers are filled at once.
func (t *timers) Push(r any) { *t = append(*t, r.(*router)) }

// Pop belongs to heap.Interface.
func (t *timers) Pop() any {
	old := *t
	r := old[len(old)-1]
	*t = old[:len(old)-1]
	return r
}
