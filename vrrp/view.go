package vrrp

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// View is a virtual router as `holdfast vip list` and `show` tell it. Times
// are as this node saw them.
type View struct {
	Name         string           `json:"name"`
	Node         string           `json:"node"` // who says so
	Network      string           `json:"network"`
	VRID         uint8            `json:"vrid"`
	Version      uint8            `json:"version"`
	Interface    string           `json:"interface"` // "" none found
	State        string           `json:"state"`     // initialize, backup, active, fault
	Since        time.Time        `json:"since"`
	Reason       string           `json:"reason"`
	Holder       string           `json:"holder"` // node, or address where no node has it; "" nobody is known
	Priority     uint8            `json:"priority"`
	Base         uint8            `json:"base_priority"` // without weights
	Interval     Duration         `json:"interval"`      // in force
	Mode         string           `json:"mode"`          // "" by priority; "held" (vip hold), "yielded" (vip move)
	Preempt      bool             `json:"preempt"`
	PreemptDelay Duration         `json:"preempt_delay"`
	Group        string           `json:"group,omitempty"`
	Order        []string         `json:"order"` // who is to hold it, first to last
	Addresses    []AddressView    `json:"addresses"`
	Link         LinkView         `json:"link"`
	Tracks       []TrackView      `json:"tracks"`
	Peers        []PeerView       `json:"peers"`
	History      []TransitionView `json:"history"`         // the latest last
	Lease        *LeaseView       `json:"lease,omitempty"` // of a fenced router
	Claimant     string           `json:"claimant,omitempty"`
	Stats        StatsView        `json:"stats"`
}

// LeaseView is how a fenced router stands with its lease.
type LeaseView struct {
	Held   bool     `json:"held"`   // this node may have the addresses
	Left   Duration `json:"left"`   // until it must have removed them, unless it renews
	TTL    Duration `json:"ttl"`    // of a renewal
	Holder string   `json:"holder"` // node by the store; "" nobody has it
	Store  bool     `json:"store"`  // the store is reachable
}

// What a router was told.
const (
	ModeHeld    = "held"
	ModeYielded = "yielded"
)

// Duration is written as in the cluster file: "1s", "100ms".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

// AddressView is one address of a router.
type AddressView struct {
	Address    netip.Prefix `json:"address"`
	Advertised bool         `json:"advertised"`
	Wanted     bool         `json:"wanted"`
	Present    bool         `json:"present"`
	Error      string       `json:"error,omitempty"`
}

// LinkView is the router's interface.
type LinkView struct {
	Name string `json:"name"`
	MAC  string `json:"mac"`
	Up   bool   `json:"up"`
	Why  string `json:"why,omitempty"` // it is down, or not there
}

// TrackView is a tracked thing. State is up, down or unknown.
type TrackView struct {
	Name    string    `json:"name"`
	State   string    `json:"state"`
	Weight  int       `json:"weight"` // 0: down means fault
	Reverse bool      `json:"reverse,omitempty"`
	Since   time.Time `json:"since,omitzero"`
}

// PeerView is what a peer last said.
type PeerView struct {
	Node      string         `json:"node"` // "" no node of the file has the address
	Address   netip.Addr     `json:"address"`
	Heard     time.Time      `json:"heard,omitzero"` // zero: never
	Priority  uint8          `json:"priority"`
	Version   uint8          `json:"version"`
	Interval  Duration       `json:"interval"`
	Checksum  string         `json:"checksum,omitempty"` // version 3 over IPv4: "with pseudo-header", "without pseudo-header"
	Addresses []netip.Addr   `json:"addresses,omitempty"`
	Disagrees []Disagreement `json:"disagrees,omitempty"`
}

// TransitionView is a change of state that was.
type TransitionView struct {
	At     time.Time `json:"at"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	Reason string    `json:"reason"`
}

// StatsView counts since the agent began.
type StatsView struct {
	Sent          uint64    `json:"sent"`
	Received      uint64    `json:"received"`
	SendErrors    uint64    `json:"send_errors"`
	Announcements uint64    `json:"announcements"`
	Returned      uint64    `json:"addresses_returned"`
	Announced     time.Time `json:"announced,omitzero"`
	LastSent      time.Time `json:"last_sent,omitzero"`
	LastSeen      time.Time `json:"last_received,omitzero"`
}

// viewOf makes the view of a report.
func viewOf(node string, r *RouterReport) View {
	s, status := &r.Settings, &r.Status
	v := View{
		Name: s.Name, Node: node, Network: s.Network, VRID: s.VRID, Version: s.Version, Interface: r.Link.Name,
		State: stateLabel(status.State), Since: status.Since, Reason: status.Reason,
		Priority: status.Priority, Base: s.Priority, Interval: Duration(status.Interval),
		Preempt: s.Preempt, PreemptDelay: Duration(s.PreemptDelay), Group: s.Group, Order: s.Order,
		Link:     LinkView{Name: r.Link.Name, MAC: r.Link.MAC, Up: r.Link.Up, Why: r.Link.Why},
		Claimant: r.Claimant, Stats: StatsView(r.Stats),
		Tracks: []TrackView{}, Peers: []PeerView{}, History: []TransitionView{}, Addresses: []AddressView{},
	}
	switch {
	case status.State == Active:
		v.Holder = node
	case status.Active.IsValid():
		v.Holder = s.nodeAt(status.Active)
	}
	if r.Lease != nil {
		v.Lease = &LeaseView{Held: r.Lease.Held, Left: Duration(r.Lease.Left.Round(time.Millisecond)), TTL: Duration(s.Lease), Holder: r.Lease.Holder, Store: r.Lease.Store}
		v.Holder = r.Lease.Holder // whatever adverts say: who has no lease has no address
	}
	switch {
	case status.Pulled:
		v.Mode = ModeHeld
	case status.Yielded:
		v.Mode = ModeYielded
	}
	for _, a := range r.Held {
		v.Addresses = append(v.Addresses, AddressView{
			Address: a.Prefix, Advertised: slices.Contains(s.Advertised, a.Prefix.Addr()),
			Wanted: a.Wanted, Present: a.Present, Error: a.Error,
		})
	}
	for i := range status.Tracks {
		v.Tracks = append(v.Tracks, trackView(&status.Tracks[i]))
	}
	for i := range status.Peers {
		v.Peers = append(v.Peers, s.peerView(&status.Peers[i]))
	}
	for _, t := range r.History {
		v.History = append(v.History, TransitionView{At: t.At, From: stateLabel(t.From), To: stateLabel(t.To), Reason: t.Reason})
	}
	return v
}

// nodeAt names who has a primary address: the node, or the address itself.
func (s *RouterSettings) nodeAt(addr netip.Addr) string {
	if name := s.Nodes[addr]; name != "" {
		return name
	}
	return addr.String()
}

func (s *RouterSettings) peerView(p *PeerStatus) PeerView {
	v := PeerView{
		Node: s.Nodes[p.Address], Address: p.Address, Heard: p.At, Priority: p.Advert.Priority, Version: p.Advert.Version,
		Interval: Duration(p.Advert.Interval), Addresses: slices.Clone(p.Advert.Addresses), Disagrees: p.Disagrees,
	}
	if p.Advert.Version == 3 && p.Address.Is4() {
		v.Checksum = p.Advert.Checksum.String()
	}
	return v
}

func trackView(t *TrackStatus) TrackView {
	v := TrackView{Name: t.Name, Weight: t.Weight, Reverse: t.Reverse, Since: t.Since, State: "unknown"}
	if t.Known {
		v.State = "down"
		if t.Up {
			v.State = "up"
		}
	}
	return v
}

// name is how people call the peer.
func (p *PeerView) name() string {
	if p.Node == "" {
		return p.Address.String()
	}
	return fmt.Sprintf("%s (%s)", p.Node, p.Address)
}
