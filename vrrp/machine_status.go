package vrrp

import (
	"net/netip"
	"slices"
	"time"
)

// Drop is why an advert was not taken.
type Drop uint8

// The reasons.
const (
	DropIdle           Drop = iota // the router does not run
	DropUnlisted                   // unicast: its source is none of Peers
	DropOwn                        // its source is our own address: a loop in the network, or a second node with it
	DropVRID                       // it is for another virtual router
	DropVersion                    // we speak the other one
	DropAuthentication             // version 2: the other type
	DropPassword                   // version 2
	DropInterval                   // version 2: another one than ours (RFC 3768 §7.1)

	drops
)

// Drops are all reasons in order.
func Drops() []Drop {
	all := make([]Drop, drops)
	for i := range all {
		all[i] = Drop(i)
	}
	return all
}

// String is the reason as a metric's label.
func (d Drop) String() string {
	return [...]string{"idle", "unlisted", "own", "vrid", "version", "authentication", "password", "interval"}[d]
}

// Counters count what a router saw since it was made.
type Counters struct {
	Received uint64 // adverts that were taken, from Active or not
	Sent     uint64 // Send actions, priority 0 too
	Resigned uint64 // adverts with priority 0 that were taken
	Dropped  [drops]uint64
}

// Counters are a router's. They are copied: no memory is made.
func (m *Machine) Counters(router int) Counters { return m.routers[router].counters }

// Priority is a router's with its weights.
func (m *Machine) Priority(router int) uint8 { return m.routers[router].priority }

// Status is everything that is known about a router, for `vip explain`.
type Status struct {
	State    State
	Since    time.Time
	Reason   string
	Priority uint8 // with weights
	Released uint8 // what that is, or will be, without Pull and Yield
	Pulled   bool
	Yielded  bool
	Active   netip.Addr    // who is, as far as we know: Source of ours, a peer's, or zero
	Interval time.Duration // in force: the Active's, adopted (version 3)
	// PreemptAt is when it takes over from a worse Active, as PreemptDelay has
	// it; zero: it does not.
	PreemptAt time.Time
	Tracks    []TrackStatus
	Peers     []PeerStatus
}

// TrackStatus is a tracked thing as the machine knows it.
type TrackStatus struct {
	Track
	Known, Up bool
	Value     int
	Since     time.Time
}

// PeerStatus is what a peer last said. At is zero when it said nothing yet.
type PeerStatus struct {
	Address   netip.Addr
	Advert    Advert
	At        time.Time
	Disagrees []Disagreement
}

// Status tells all about a router. It shares no memory with the machine.
func (m *Machine) Status(router int) Status {
	r := m.routers[router]
	g := r.group
	s := Status{
		State: g.state, Since: g.since, Reason: g.reason, Priority: r.priority, Released: r.released(),
		Pulled: g.pulled, Yielded: g.yielded, Active: r.active, Interval: r.interval,
	}
	if g.state == Backup {
		s.PreemptAt = r.preemptAt
	}
	if g.state == Active {
		s.Active, s.Interval = r.Source, r.Interval
	}
	for i := range r.tracks {
		t := &r.tracks[i]
		s.Tracks = append(s.Tracks, TrackStatus{Track: t.Track, Known: t.known, Up: t.up, Value: t.value, Since: t.since})
	}
	for _, p := range r.peers {
		s.Peers = append(s.Peers, p.status(r))
	}
	for _, address := range r.Peers {
		if r.peer(address) == nil {
			s.Peers = append(s.Peers, PeerStatus{Address: address})
		}
	}
	slices.SortFunc(s.Peers, func(a, b PeerStatus) int { return a.Address.Compare(b.Address) })
	return s
}
