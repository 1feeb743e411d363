package vrrp

import (
	"net/netip"
	"slices"
	"time"
)

// Reconfigure makes these the routers. A router whose name stays keeps its
// state as far as what changed allows: another interface, family, version or
// VRID, or a fence, makes it another router, which an admin's order for its name
// still is for. One that joins a sync group takes the group's state; a group made
// of members in different states begins anew as Backup.
// The indices are those of the new list; those that are gone have the index
// -1-k in the actions that take them down, for gone[k].
func (m *Machine) Reconfigure(routers []Router, at time.Time) (actions []Action, gone []Router) {
	m.actions = m.actions[:0]
	old := m.routers
	m.routers = nil
	changes := make([]change, len(routers))
	for i, config := range routers {
		c := &changes[i]
		if k := slices.IndexFunc(old, func(r *router) bool { return r.Name == config.Name && r.sameAs(config) }); k >= 0 {
			r := old[k]
			old = slices.Delete(slices.Clone(old), k, k+1)
			*c = change{kept: true, before: r.Router, group: r.group}
			r.index = i // first: what it gives counts by the new list
			m.adapt(r, config)
			m.routers = append(m.routers, r)
			continue
		}
		m.routers = append(m.routers, newRouter(config, i))
	}
	for k, r := range old {
		gone = append(gone, r.Router)
		if i := slices.IndexFunc(routers, func(config Router) bool { return config.Name == r.Name }); i >= 0 {
			changes[i].follows = r.group
		}
		m.dismiss(r, -1-k, at)
	}
	m.arrange()
	for _, g := range m.groups {
		m.inherit(g, changes, at)
	}
	for _, g := range m.groups {
		m.settle(g, at)
		m.schedule(g)
	}
	return m.actions, gone
}

// change is what a reload did to a router.
type change struct {
	kept    bool
	before  Router
	group   *group // that it was in
	follows *group // of one that is not kept: that of the other router of its name; nil: there was none
}

// sameAs tells whether a configuration is of the same virtual router.
func (r *router) sameAs(config Router) bool {
	return r.Interface == config.Interface && r.Version == config.Version && r.VRID == config.VRID &&
		r.Source.Is4() == config.Source.Is4() && r.Fenced == config.Fenced
}

// adapt gives a router its new configuration, with what is known about tracks
// and peers that stay.
func (m *Machine) adapt(r *router, config Router) {
	known := r.tracks
	adopted := r.interval != r.Interval
	r.Router, r.tracks = config, nil
	for _, t := range config.Tracks {
		n := track{Track: t}
		if i := slices.IndexFunc(known, func(k track) bool { return k.Name == t.Name }); i >= 0 {
			n.known, n.up, n.value, n.since = known[i].known, known[i].up, known[i].value, known[i].since
		}
		r.tracks = append(r.tracks, n)
	}
	for _, p := range slices.Clone(r.peers) {
		if !r.listed(p.address) {
			m.forget(r, p, "it is no peer any more")
		} else if p.named != 0 {
			m.reconsider(r, p)
		}
	}
	if !r.listed(r.active) {
		r.active, adopted = netip.Addr{}, false
	}
	if !adopted || r.Version == 2 {
		r.interval = config.Interval
	}
}

// reconsider ends what a peer's last advert no longer disagrees on: it may be a
// Backup by now and say nothing more.
func (m *Machine) reconsider(r *router, p *peer) {
	differs, compared := r.disagreements(&p.advert)
	left := p.named &^ (compared &^ differs)
	if left == p.named {
		return
	}
	p.named, p.against = left, [fields]uint8{}
	m.give(Action{Kind: Disagree, Router: r.index, Peer: p.address, Fields: p.disagrees(r)})
}

// dismiss takes down a router that is gone.
func (m *Machine) dismiss(r *router, index int, at time.Time) {
	r.index = index
	last := &group{members: []*router{r}, state: r.group.state}
	r.group = last
	if m.running && last.state != Initialize {
		m.leave(last, Initialize, nil, at, "no longer configured", netip.Addr{})
	}
}

// inherit gives a new group the state of those that its members were in.
func (m *Machine) inherit(g *group, changes []change, at time.Time) {
	var from *group
	alike := true
	for _, r := range g.members {
		if before := changes[r.index].group; before != nil {
			if from == nil {
				from = before
			}
			alike = alike && before.state == from.state
		}
	}
	if from == nil {
		g.since = at
		g.obey(changes)
		m.join(g, changes, at)
		return
	}
	g.state, g.since, g.reason = from.state, from.since, from.reason
	g.startAt, g.pulled, g.yielded, g.yieldUntil = from.startAt, from.pulled, from.yielded, from.yieldUntil
	for _, r := range g.members {
		r.weigh()
	}
	if !alike {
		m.disband(g, changes, at)
		return
	}
	m.join(g, changes, at)
}

// obey gives a group of new routers the orders that the routers of their names
// had. One to stand back is stronger than one to hold.
func (g *group) obey(changes []change) {
	for _, r := range g.members {
		if before := changes[r.index].follows; before != nil {
			g.pulled, g.yielded = g.pulled || before.pulled, g.yielded || before.yielded
		}
	}
	g.pulled = g.pulled && !g.yielded
	for _, r := range g.members {
		r.weigh()
	}
}

// disband begins a group anew whose members are in different states.
func (m *Machine) disband(g *group, changes []change, at time.Time) {
	const reason = "its sync group changed"
	for _, r := range g.members {
		before := changes[r.index].group
		if !m.running || before == nil || before.state == Initialize {
			continue
		}
		alone := &group{name: g.name, members: []*router{r}, state: before.state}
		r.group = alone
		m.leave(alone, Initialize, nil, at, reason, netip.Addr{})
		r.group = g
	}
	g.state, g.since, g.reason, g.yieldUntil = Initialize, at, reason, time.Time{}
}

// join brings members into the state of their group: new ones enter it, kept
// ones do what their new configuration asks for.
func (m *Machine) join(g *group, changes []change, at time.Time) {
	for _, r := range g.members {
		c := changes[r.index]
		switch {
		case !m.running:
		case c.kept:
			m.apply(r, c.before, at)
		case g.state == Active:
			m.advertise(r, at)
			m.give(Action{Kind: Hold, Router: r.index})
			m.announce(r, at)
			m.give(Action{Kind: Became, Router: r.index, From: Initialize, To: Active, Reason: g.tell(r, "joined")})
		case g.state != Initialize:
			r.await(silence, at)
			m.give(Action{Kind: Became, Router: r.index, From: Initialize, To: g.state, Reason: g.tell(r, "joined")})
		}
	}
}

// apply does at once what a new configuration changes outside.
func (m *Machine) apply(r *router, before Router, at time.Time) {
	if r.group.state == Backup && !r.expired {
		r.rearm()
	}
	if r.group.state != Active {
		return
	}
	if r.Interval != before.Interval || r.Source != before.Source || r.Priority != before.Priority || r.Password != before.Password ||
		r.Checksum != before.Checksum || !slices.Equal(r.Advertised, before.Advertised) || !slices.Equal(r.Peers, before.Peers) {
		m.advertise(r, at)
	}
	if !slices.Equal(r.Held, before.Held) {
		m.give(Action{Kind: Hold, Router: r.index})
		m.announce(r, at)
	}
}
