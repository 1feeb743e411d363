package vrrp

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	// announceEvery bounds how often neighbours are told again because of
	// somebody else who claims the addresses.
	announceEvery = time.Second
	// maxAsks bounds how often one silence is forgiven because we stalled.
	maxAsks = 3
	// maxLinger bounds how long two may have an address when one takes it over.
	maxLinger = 50 * time.Millisecond
	// yieldIntervals is how long a router that yields waits for a taker: less
	// than Active_Down_Interval, so that its priority 0 need not arrive.
	yieldIntervals = 3
)

func (m *Machine) start(e Event) {
	if m.running {
		return
	}
	m.running = true
	for _, g := range m.groups {
		g.state, g.since, g.reason, g.startAt = Initialize, e.At, "", time.Time{}
		left := 0
		for _, r := range g.members {
			r.adopted = slices.Contains(e.Adopted, r.index)
			if r.adopted {
				left++
			}
			if startAt := e.At.Add(r.StartupDelay); r.StartupDelay > 0 && startAt.After(g.startAt) {
				g.startAt = startAt
			}
		}
		m.startGroup(g, left, e.At)
	}
}

// startGroup starts one of which a predecessor left the addresses of so many
// members in place: of all of them, or it starts without.
func (m *Machine) startGroup(g *group, left int, at time.Time) {
	_, fault := g.fault()
	adopt := left == len(g.members) && fault == nil
	for _, r := range g.members {
		if r.adopted && !adopt {
			r.adopted = false
			m.give(Action{Kind: Withdraw, Router: r.index})
		}
		r.active, r.interval = netip.Addr{}, r.Interval
		r.weigh()
		r.await(silence, at)
	}
	if adopt {
		m.take(g, at, "its addresses were left in place by a predecessor", netip.Addr{})
	}
	m.settle(g, at)
}

func (m *Machine) stop(at time.Time) {
	if !m.running {
		return
	}
	for _, g := range m.groups {
		if g.state != Initialize {
			m.leave(g, Initialize, nil, at, "stopped", netip.Addr{})
		}
	}
	m.halt()
}

// suspend says goodbye for a while. Peers of version 3 adopt the interval, so
// a third of Grace makes them wait for as long as it. A fenced router hands
// over: its lease would run out under the successor.
func (m *Machine) suspend(e Event) {
	if !m.running {
		return
	}
	for _, r := range m.routers {
		if r.group.state != Active {
			continue
		}
		if r.Fenced {
			m.leave(r.group, Initialize, nil, e.At, "the agent restarts", netip.Addr{})
			continue
		}
		interval := r.Interval
		if third := (e.Grace/3 + centisecond - 1).Truncate(centisecond); r.Version == 3 {
			interval = min(max(interval, third), maxIntervalV3)
		}
		m.send(r, r.priority, interval)
	}
	m.halt()
}

// halt ends all timers. The states stay what they were, for Status.
func (m *Machine) halt() {
	m.running = false
	for _, g := range m.groups {
		m.schedule(g)
	}
}

func (m *Machine) tick(at time.Time) {
	fired := false
	for len(m.timers) > 0 {
		r := m.timers[0]
		switch {
		case r.due.IsZero():
			return
		case !r.due.After(at):
			m.fire(r, at)
			fired = true
		case fired && r.joins(at):
			m.advertise(r, at)
			m.schedule(r.group)
		default:
			return
		}
	}
}

// earlyShare is the part of its interval by which an advert may go out early,
// along with others that are due: hundreds of routers, each at a moment of its
// own, would wake this node and its peers hundreds of times an interval.
const earlyShare = 8

// joins tells whether the router's advert goes out with those of others now. It
// does so ever after, since its next one is due when theirs are.
func (r *router) joins(at time.Time) bool {
	return r.group.state == Active && r.due.Equal(r.advertAt) && r.advertAt.Sub(at) <= r.Interval/earlyShare
}

// fire does what is due for a router.
func (m *Machine) fire(r *router, at time.Time) {
	due := func(t time.Time) bool { return !t.IsZero() && !t.After(at) }
	g := r.group
	switch g.state {
	case Initialize:
		g.startAt = time.Time{}
		m.settle(g, at)
	case Backup:
		if due(r.preemptAt) {
			r.cause = better
		}
		r.expired = true
		m.settle(g, at)
	case Active:
		if due(g.yieldUntil) {
			m.keep(g, at)
		}
		if due(r.announceAt) {
			r.announceAt = time.Time{}
			m.announce(r, at)
		}
		if due(r.advertAt) {
			last := r.advertAt
			m.advertise(r, at)
			// From the deadline, not from when it was noticed: lateness must not add up.
			if next := last.Add(r.Interval); next.After(at) {
				r.advertAt = next
			}
		}
	case Fault:
	}
	m.schedule(g)
}

func (m *Machine) receive(r *router, e Event) {
	from, a := e.From.Unmap().WithZone(""), e.Advert
	if drop, ok := m.refuse(r, from, a); ok {
		r.counters.Dropped[drop]++
		return
	}
	p := m.hear(r, from, a, e.At)
	if drop, ok := r.conflicts(a); ok {
		r.counters.Dropped[drop]++
		return
	}
	r.counters.Received++
	if a.Priority == 0 {
		r.counters.Resigned++
	}
	switch r.group.state {
	case Backup:
		m.receiveBackup(r, p, e.At)
	case Active:
		m.receiveActive(r, p, e.At)
	case Initialize, Fault:
		m.overhear(r, p)
	}
	m.schedule(r.group)
}

// refuse names adverts that tell nothing about a peer.
func (m *Machine) refuse(r *router, from netip.Addr, a *Advert) (Drop, bool) {
	switch {
	case !m.running:
		return DropIdle, true
	case from == r.Source:
		return DropOwn, true
	case !r.listed(from):
		return DropUnlisted, true
	case a.VRID != r.VRID:
		return DropVRID, true
	}
	return 0, false
}

// conflicts names adverts of a peer that must be discarded (RFC 9568 §7.1,
// RFC 3768 §7.1). Another list of addresses is no reason: two silent Actives
// would be worse.
func (r *router) conflicts(a *Advert) (Drop, bool) {
	switch {
	case a.Version != r.Version:
		return DropVersion, true
	case r.Version == 2 && a.AuthType != r.authType():
		return DropAuthentication, true
	case r.authType() == AuthPass && !samePassword(a, r):
		return DropPassword, true
	case r.Version == 2 && a.Interval != r.Interval, a.Interval <= 0 && a.Priority != 0:
		return DropInterval, true
	}
	return 0, false
}

// receiveBackup is RFC 9568 §6.4.2.
func (m *Machine) receiveBackup(r *router, p *peer, at time.Time) {
	a := &p.advert
	if a.Priority == 0 {
		r.active = p.address
		r.await(resigned, at)
		return
	}
	r.active = p.address
	if !r.preempts() || a.Priority >= r.priority {
		r.heed(a, at)
		return
	}
	switch {
	case r.group.pulled:
		m.seize(r.group, at)
	case r.expired: // and waits for its group
	case r.PreemptDelay > 0:
		end := r.preemptAt
		if end.IsZero() {
			end = at.Add(r.PreemptDelay)
		}
		r.heed(a, at)
		r.preemptAt = end
	default:
		r.cause = better
	}
}

// overhear notes who is Active while we take no part, and how long to wait for
// its next advert when we do.
func (m *Machine) overhear(r *router, p *peer) {
	if p.advert.Priority == 0 {
		r.active, r.interval = netip.Addr{}, r.Interval
		return
	}
	r.active, r.interval = p.address, p.advert.Interval
}

// heed accepts an advert as the Active's, and its interval: version 3 adopts it.
func (r *router) heed(a *Advert, at time.Time) {
	r.interval = a.Interval
	r.await(silence, at)
}

// receiveActive is RFC 9568 §6.4.3.
func (m *Machine) receiveActive(r *router, p *peer, at time.Time) {
	a, g := &p.advert, r.group
	switch {
	case !g.yieldUntil.IsZero():
		if a.Priority != 0 {
			m.yieldTo(r, p, at, fmt.Sprintf("yielded, %s took over", p.address))
		}
	case a.Priority == 0: // it was Active as well, and has misled the neighbours
		r.announceAt = at.Add(min(r.Interval, announceEvery))
		if r.owesAnswer(p, at) {
			m.advertise(r, at)
		}
	case r.outranks(a.Priority, p.address):
		reason := fmt.Sprintf("%s advertises priority %d, we have %d", p.address, a.Priority, r.priority)
		if a.Priority == r.priority {
			reason = fmt.Sprintf("%s advertises our priority %d and has the higher address", p.address, a.Priority)
		}
		m.yieldTo(r, p, at, reason)
	default:
		m.defend(r, p, at)
	}
}

// owesAnswer tells whether a peer's claim is to be answered: each of them,
// unless it claims far more often than the protocol lets it.
func (r *router) owesAnswer(p *peer, at time.Time) bool {
	if at.Sub(p.answered) < min(r.Interval, max(p.advert.Interval, centisecond))/2 {
		return false
	}
	p.answered = at
	return true
}

// yieldTo makes a group Backup of who outranks a member. One that was Active
// unheard, across a partition, has misled the neighbours: so its last advert
// goes out, and the other, hearing a lesser one, tells them anew (as keepalived
// does). One that yielded has said so already.
func (m *Machine) yieldTo(r *router, p *peer, at time.Time, reason string) {
	if r.group.yieldUntil.IsZero() {
		m.send(r, r.priority, r.Interval)
	}
	r.active, r.interval = p.address, p.advert.Interval
	m.leave(r.group, Backup, r, at, r.group.tell(r, reason), p.address)
}

// defend answers another Active that is to give way: it must hear us at once,
// and the neighbours that it misled must be told anew: now, and once more when
// nothing was heard of it for an interval: it may have gone on until it heard
// us, and what we said before may have reached nobody.
func (m *Machine) defend(r *router, p *peer, at time.Time) {
	r.announceAt = at.Add(min(r.Interval, announceEvery))
	if !r.owesAnswer(p, at) {
		return
	}
	m.advertise(r, at)
	if at.Sub(r.opposed) > 3*max(r.Interval, p.advert.Interval) || at.Sub(r.announced) >= announceEvery {
		m.announce(r, at)
	}
	r.opposed = at
}
