package vrrp

import (
	"fmt"
	"time"
)

func (m *Machine) tracked(e Event) {
	for _, g := range m.groups {
		news := false
		for _, r := range g.members {
			for i := range r.tracks {
				if t := &r.tracks[i]; t.Name == e.Name && t.set(e.Up, e.Value, e.At) {
					news = true
				}
			}
		}
		if news {
			m.reweigh(g)
			m.settle(g, e.At)
		}
	}
}

// reweigh computes the priorities and what hangs on them.
func (m *Machine) reweigh(g *group) {
	for _, r := range g.members {
		before := r.priority
		if r.weigh(); r.priority != before && g.state == Backup && !r.expired {
			r.rearm()
		}
	}
	m.schedule(g)
}

// yield: see Yield. A router that is not Active only stays away: it takes over
// after everybody else.
func (m *Machine) yield(g *group, at time.Time) {
	g.pulled, g.yielded = false, true
	m.reweigh(g)
	if !m.running || g.state != Active || !g.yieldUntil.IsZero() {
		return
	}
	longest := time.Duration(0)
	for _, r := range g.members {
		longest = max(longest, r.Interval)
	}
	g.yieldUntil = at.Add(yieldIntervals * longest)
	for _, r := range g.members {
		m.advertise(r, at)
	}
	m.schedule(g)
}

// keep ends a yield that nobody answered.
func (m *Machine) keep(g *group, at time.Time) {
	g.reason = fmt.Sprintf("nobody took over within %d intervals", yieldIntervals)
	g.yielded, g.yieldUntil = false, time.Time{}
	m.reweigh(g)
	for _, r := range g.members {
		m.advertise(r, at)
		m.announce(r, at)
	}
	m.schedule(g)
}

// pull: see Pull.
func (m *Machine) pull(g *group, at time.Time) {
	g.pulled, g.yielded, g.yieldUntil = true, false, time.Time{}
	m.reweigh(g)
	if !m.running {
		return
	}
	switch g.state {
	case Active:
		for _, r := range g.members {
			m.advertise(r, at)
		}
	case Backup:
		m.seize(g, at)
	case Initialize, Fault:
	}
	m.schedule(g)
}

// seize makes a pulled Backup Active, unless an Active is known that would not
// give way: an owner, or one that is pulled as well and has the higher address.
func (m *Machine) seize(g *group, at time.Time) {
	for _, r := range g.members {
		p := r.peer(r.active)
		if p != nil && p.advert.Priority != 0 && at.Sub(p.at) < r.down() && r.outranks(p.advert.Priority, p.address) {
			return
		}
	}
	for _, r := range g.members {
		r.expired, r.cause = true, commanded
	}
	m.settle(g, at)
}

func (m *Machine) release(g *group, at time.Time) {
	if !g.yieldUntil.IsZero() {
		m.keep(g, at)
		g.reason = "released before somebody took over"
	}
	g.pulled, g.yielded = false, false
	m.reweigh(g)
}

// stalled: what a Backup should have heard while we did not run may be lost,
// so it does not act on that silence: it asks, and waits for one more advert.
// Nothing is lost of what was queued, so a stall that is short beside the
// interval hides nothing; and who resigned has said it. An Active sends at once
// (Tick follows); if it was silent for longer than its peers wait, neighbours
// may have been told otherwise.
func (m *Machine) stalled(e Event) {
	if !m.running {
		return
	}
	for _, r := range m.routers {
		switch r.group.state {
		case Backup:
			if r.expired || r.cause != silence || r.downAt.After(e.At) || 2*e.Stall < r.interval || r.asks >= maxAsks {
				continue
			}
			m.give(Action{Kind: Ask, Router: r.index})
			r.asks++
			r.downAt = e.At.Add(r.interval)
			m.schedule(r.group)
		case Active:
			if e.Stall >= 3*r.Interval {
				r.announceAt = e.At.Add(r.Interval)
				m.schedule(r.group)
			}
		case Initialize, Fault:
		}
	}
}

// owner: somebody else answers for an address. To a Backup that asked, it is a
// sign of life of the Active, once. To an Active it means that neighbours are
// misled.
func (m *Machine) owner(r *router, at time.Time) {
	switch {
	case !m.running:
	case r.group.state == Backup && r.asks > 0 && !r.granted && !r.expired:
		r.granted = true
		r.downAt = at.Add(r.down())
	case r.group.state == Active && r.group.yieldUntil.IsZero() && at.Sub(r.announced) >= announceEvery:
		m.announce(r, at)
	}
	m.schedule(r.group)
}
