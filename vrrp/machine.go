package vrrp

import (
	"net/netip"
	"time"
)

// State is the state of a virtual router (RFC 9568 §6.3, and Fault).
type State uint8

// The states. Fault is ours (and keepalived's): something that the router
// tracks is down, so it neither holds the addresses nor counts.
const (
	Initialize State = iota
	Backup
	Active
	Fault
)

// String names a state as RFC 9568 does.
func (s State) String() string { return [...]string{"Initialize", "Backup", "Active", "Fault"}[s] }

// Router is how this node takes part in one virtual router.
type Router struct {
	Name         string // of the VIP; unique
	Interface    string // name; may be absent for a while
	Version      uint8  // 2 or 3
	VRID         uint8
	Priority     uint8          // 1–254 before weights; 255: this node owns the addresses
	Interval     time.Duration  // Advertisement_Interval
	Source       netip.Addr     // primary address of the interface: what adverts come from; decides ties; its family is the router's
	Advertised   []netip.Addr   // the addresses in the adverts, first the primary one (IPv6: link-local)
	Held         []netip.Prefix // all the addresses that Active has on the interface, those that are not advertised too
	Peers        []netip.Addr   // unicast: whom adverts go to, and the only ones they are taken from; empty: multicast
	Password     [8]byte        // version 2; zero: no authentication
	Checksum     Checksum
	Preempt      bool          // RFC 9568 Preempt_Mode; true unless said
	PreemptDelay time.Duration // how long a better router watches a worse one before it takes over
	StartupDelay time.Duration // after Start, before it takes part
	Group        string        // sync group: all of them are Active on one node, or none
	Fenced       bool          // the addresses need a lease as well: Suspend does not leave them in place
	Tracks       []Track
}

// Track is something that a router watches. It counts as up from the first
// word about it; until then it is unknown and counts as down for Fault, and as
// nothing for weights.
type Track struct {
	Name    string // as in Event.Name: "interface eth0", "check dns", "script web" ...
	Weight  int    // 0: down means Fault; > 0: added while up; < 0: added while down
	Number  bool   // Event.Value counts instead: Weight times it is added, −254 and less means Fault; with Weight 0 all but zero does
	Reverse bool   // up and down change places; a number changes its sign
}

// EventKind tells what happened.
type EventKind uint8

// The events.
const (
	Start    EventKind = iota // the service runs; Adopted lists the routers whose addresses a predecessor left in place
	Stop                      // give up every router: priority 0, addresses away
	Suspend                   // end without withdrawing: a successor adopts. The last advert announces Grace as interval (version 3), so that peers wait for it
	Tick                      // a deadline has passed; everything queued was received before
	Received                  // an advert for Router
	Tracked                   // Name is Up or not; Value when it is a number
	Yield                     // Router: hand over to a peer without loss: priority 0 is sent, the addresses stay until a peer's advert is seen
	Pull                      // Router: take over now and stay (vip move to this node, vip hold)
	Release                   // Router: forget Yield and Pull
	Stalled                   // this process did not run for Stall: what should have happened meanwhile is not known
	Owner                     // someone else answered for an address of Router (ARP, ND): Mac
)

// Event is something that happened at a time. Only the fields that its kind
// names are set.
type Event struct {
	Kind    EventKind
	At      time.Time // monotonic
	Router  int       // index, as in Machine.Routers
	From    netip.Addr
	Advert  *Advert // not kept
	Name    string
	Up      bool
	Value   int // of a Track that is a Number; not Up: it counts as 0
	Adopted []int
	Grace   time.Duration
	Stall   time.Duration
	MAC     [6]byte
}

// ActionKind tells what the shell is to do.
type ActionKind uint8

// The actions, in the order in which they are given: a router that becomes
// Active sends first, then holds, then announces.
const (
	Send     ActionKind = iota // an advert with Priority and Interval to every peer
	Hold                       // the router's addresses belong on its interface
	Withdraw                   // they don't
	Announce                   // gratuitous ARP or unsolicited NA for them, now and repeated as configured
	Ask                        // who-has for them: is somebody else Active?
	Became                     // To since now, was From; Reason: for log, metrics, hooks and conditions
	Disagree                   // Peer's adverts differ from ours in Fields; empty: no longer, as far as is known
)

// Action is something to do. Only the fields that its kind names are set.
type Action struct {
	Kind     ActionKind
	Router   int // index; -1-k: gone[k] of Reconfigure
	Priority uint8
	Interval time.Duration
	Linger   time.Duration // of Withdraw: for how long the addresses may stay until the one who took over is heard to have them
	From, To State
	Reason   string     // a sentence's second half: "fbservice2 (10.1.0.2) fell silent for 3.6 s"; of Disagree without Fields: why, unless they agree
	Peer     netip.Addr // of Disagree; of Became: whose advert or silence is the reason, if somebody's
	Fields   []Disagreement
}

// Disagreement is one thing that a peer's adverts say otherwise than we do.
type Disagreement struct {
	Field  string `json:"field"`          // "interval", "password", "authentication", "version", "addresses", "owner", "priority", "checksum"
	Ours   string `json:"ours,omitempty"` // never a password
	Theirs string `json:"theirs,omitempty"`
}

// Machine is all virtual routers of a node. It is pure: no sockets, no clock,
// no goroutine, no logger; not safe for concurrent use.
type Machine struct {
	routers []*router
	groups  []*group
	timers  timers
	running bool // between Start and Stop or Suspend
	actions []Action
}

// NewMachine makes the machine of routers that were validated (config.go).
// All are in Initialize until Start.
func NewMachine(routers []Router) *Machine {
	m := &Machine{}
	for i, r := range routers {
		m.routers = append(m.routers, newRouter(r, i))
	}
	m.arrange()
	return m
}

// Step takes one event. The actions are valid until the next call.
func (m *Machine) Step(e Event) []Action {
	m.actions = m.actions[:0]
	switch e.Kind {
	case Start:
		m.start(e)
	case Stop:
		m.stop(e.At)
	case Suspend:
		m.suspend(e)
	case Tick:
		m.tick(e.At)
	case Received:
		m.receive(m.routers[e.Router], e)
	case Tracked:
		m.tracked(e)
	case Yield:
		m.yield(m.routers[e.Router].group, e.At)
	case Pull:
		m.pull(m.routers[e.Router].group, e.At)
	case Release:
		m.release(m.routers[e.Router].group, e.At)
	case Stalled:
		m.stalled(e)
	case Owner:
		m.owner(m.routers[e.Router], e.At)
	}
	return m.actions
}

// Next is when Tick is due; false: never.
func (m *Machine) Next() (at time.Time, ok bool) {
	if len(m.timers) == 0 || m.timers[0].due.IsZero() {
		return time.Time{}, false
	}
	return m.timers[0].due, true
}

// Routers are the routers in the order of their indices.
func (m *Machine) Routers() []Router {
	routers := make([]Router, len(m.routers))
	for i, r := range m.routers {
		routers[i] = r.Router
	}
	return routers
}
