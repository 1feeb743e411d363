package vrrp

import (
	"container/heap"
	"fmt"
	"net/netip"
	"time"
)

// group is routers that are always in the same state: a sync group, or one
// router alone. It changes in one step, so there is never half of it.
type group struct {
	name    string // "": one router alone
	members []*router
	state   State
	since   time.Time
	reason  string

	startAt    time.Time // end of StartupDelay; zero: over
	pulled     bool
	yielded    bool
	yieldUntil time.Time // Active that waits for a taker; zero: not
}

// arrange sorts the routers into new groups and fills the timers.
func (m *Machine) arrange() {
	m.groups, m.timers = nil, nil
	named := map[string]*group{}
	for _, r := range m.routers {
		g := named[r.Group]
		if g == nil || r.Group == "" {
			g = &group{name: r.Group}
			named[r.Group] = g
			m.groups = append(m.groups, g)
		}
		r.group = g
		g.members = append(g.members, r)
		r.pos = len(m.timers)
		m.timers = append(m.timers, r)
	}
	for _, r := range m.routers {
		r.weigh()
	}
	heap.Init(&m.timers)
}

// fault is the first thing that keeps the group from taking part.
func (g *group) fault() (*router, *track) {
	for _, r := range g.members {
		for i := range r.tracks {
			if r.tracks[i].faults() {
				return r, &r.tracks[i]
			}
		}
	}
	return nil, nil
}

// waits tells whether the group may not take part yet: StartupDelay, or the
// first word about something tracked.
func (g *group) waits(at time.Time) bool {
	if at.Before(g.startAt) {
		return true
	}
	for _, r := range g.members {
		for i := range r.tracks {
			if r.tracks[i].awaited() {
				return true
			}
		}
	}
	return false
}

// owns tells whether every member owns its addresses.
func (g *group) owns() bool {
	for _, r := range g.members {
		if r.priority != owner {
			return false
		}
	}
	return true
}

// taker is the member because of which the group becomes Active: all of them
// must want it, so that a network that one node lost does not make two nodes
// thrash. Where one member's Active resigned, it resigned them all; the other
// members need not wait unless they heard an advert since.
func (g *group) taker() *router {
	var first, quitter *router
	for _, r := range g.members {
		if !r.expired {
			continue
		}
		if first == nil {
			first = r
		}
		if r.cause == resigned && (quitter == nil || r.restarted.Before(quitter.restarted)) {
			quitter = r
		}
	}
	for _, r := range g.members {
		if !r.expired && (quitter == nil || r.restarted.After(quitter.restarted)) {
			return nil
		}
	}
	return first
}

// settle brings a group into the state that what is known asks for.
func (m *Machine) settle(g *group, at time.Time) {
	if !m.running {
		return
	}
	defer m.schedule(g)
	if r, t := g.fault(); t != nil && !at.Before(g.startAt) {
		if g.state != Fault {
			m.leave(g, Fault, nil, at, g.tell(r, t.String()), netip.Addr{})
		}
		return
	}
	switch g.state {
	case Initialize, Fault:
		m.begin(g, at)
	case Backup:
		if r := g.taker(); r != nil {
			reason, peer := r.why(at)
			m.take(g, at, g.tell(r, reason), peer)
		}
	case Active:
	}
}

// begin lets a group take part (RFC 9568 §6.4.1), if it may.
func (m *Machine) begin(g *group, at time.Time) {
	switch {
	case g.waits(at):
	case g.owns():
		m.take(g, at, "this node owns the addresses (priority 255)", netip.Addr{})
	case g.state == Fault:
		m.leave(g, Backup, nil, at, "what it tracks is up again", netip.Addr{})
	default:
		m.leave(g, Backup, nil, at, "started", netip.Addr{})
	}
}

// take makes a group Active. All adverts go first: peers' timers run.
func (m *Machine) take(g *group, at time.Time, reason string, peer netip.Addr) {
	from := m.enter(g, Active, at, reason)
	for _, r := range g.members {
		r.opposed, r.announceAt = time.Time{}, time.Time{}
		m.advertise(r, at)
	}
	for _, r := range g.members {
		m.give(Action{Kind: Hold, Router: r.index})
		m.announce(r, at)
		m.give(Action{Kind: Became, Router: r.index, From: from, To: Active, Reason: reason, Peer: peer})
	}
}

// leave takes a group to a state other than Active. To Backup because member
// by lost to peer: by need not say so, the others resign.
func (m *Machine) leave(g *group, to State, by *router, at time.Time, reason string, peer netip.Addr) {
	yielding := !g.yieldUntil.IsZero()
	from := m.enter(g, to, at, reason)
	for _, r := range g.members {
		if from == Active && r != by && !(yielding && to == Backup) {
			m.send(r, 0, r.Interval)
		}
	}
	for _, r := range g.members {
		r.adopted = r.adopted && from != Active
		r.weigh()
		if from == Active {
			m.give(Action{Kind: Withdraw, Router: r.index, Linger: r.linger(by)})
		}
		if from == Active && r != by {
			r.active, r.interval = netip.Addr{}, r.Interval
		}
		if to == Backup {
			r.await(silence, at)
		}
		m.give(Action{Kind: Became, Router: r.index, From: from, To: to, Reason: reason, Peer: peer})
	}
}

// linger is how long the addresses may stay after a peer took over. Its advert
// is the first thing that it sends: without them here, what clients send in
// the moment before it has them there would be lost.
func (r *router) linger(by *router) time.Duration {
	if by == nil {
		return 0
	}
	return min(r.Interval/2, maxLinger)
}

// enter notes the new state and returns the old one.
func (m *Machine) enter(g *group, to State, at time.Time, reason string) State {
	from := g.state
	g.state, g.since, g.reason = to, at, reason
	g.yieldUntil, g.startAt = time.Time{}, time.Time{}
	return from
}

// tell says which member a reason is about.
func (g *group) tell(r *router, reason string) string {
	if g.name == "" {
		return reason
	}
	return fmt.Sprintf("sync group %s: %s: %s", g.name, r.Name, reason)
}

func (m *Machine) give(a Action) { m.actions = append(m.actions, a) }

func (m *Machine) send(r *router, priority uint8, interval time.Duration) {
	r.counters.Sent++
	m.give(Action{Kind: Send, Router: r.index, Priority: priority, Interval: interval})
}

// advertise sends what an Active sends, and sets the Adver_Timer.
func (m *Machine) advertise(r *router, at time.Time) {
	priority := r.priority
	if !r.group.yieldUntil.IsZero() {
		priority = 0
	}
	m.send(r, priority, r.Interval)
	r.advertAt = at.Add(r.Interval)
	m.retract(r, at)
}

func (m *Machine) announce(r *router, at time.Time) {
	m.give(Action{Kind: Announce, Router: r.index})
	r.announced = at
}
