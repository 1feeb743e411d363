package vrrp

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Errors of Service's methods, wrapped with the router's name.
var (
	// ErrUnknown: this node is no member of a VIP of that name.
	ErrUnknown = errors.New("no such virtual router on this node")
	// ErrStopped: the service does not run (yet, or any more).
	ErrStopped = errors.New("vrrp does not run")
)

// Service's methods for admins. All may be called from any goroutine and wait
// at most for the protocol loop, which takes microseconds.
var _ interface {
	Status(context.Context) ([]RouterReport, error)
	Yield(ctx context.Context, router string) error
	Pull(ctx context.Context, router string) error
	Release(ctx context.Context, router string) error
	Plan(context.Context) ([]Change, error)
	Guard() GuardReport
} = (*Service)(nil)

// RouterReport is all about one virtual router on this node.
type RouterReport struct {
	Settings RouterSettings // as configured; Interface and Source as found
	Status   Status
	Link     LinkReport
	Held     []AddressReport // every address of Settings.Held
	History  []Transition    // the latest last; at most 16
	Stats    Stats
	Lease    *LeaseReport // of a fenced router; nil: it is none
	Claimant string       // MAC of another that answers for an address while we are Active; "" none
}

// wants tells whether the router's addresses belong on this node now.
func (r *RouterReport) wants() bool {
	return r.Status.State == Active && (r.Lease == nil || r.Lease.Held)
}

// LinkReport is the router's interface.
type LinkReport struct {
	Index int    // 0: not found
	Name  string // "" not found
	MAC   string
	Up    bool   // it counts as up, after the debounce
	Why   string // when it does not: "eth0 has no carrier", "no interface has 10.1.0.2"
}

// AddressReport is an address of a router as this node's kernel has it.
type AddressReport struct {
	Prefix  netip.Prefix
	Wanted  bool // the router is Active, and has its lease if it is fenced: it belongs here
	Present bool // as far as was seen
	Error   string
}

// Transition is a change of state that was.
type Transition struct {
	At       time.Time
	From, To State
	Reason   string
}

// Stats count since the service was made.
type Stats struct {
	Sent, Received, SendErrors    uint64
	Announcements, Returned       uint64 // gratuitous ARP and NA; addresses put back
	Announced, LastSent, LastSeen time.Time
}

// Change is a difference between what should be and what the kernel has.
type Change struct {
	Router    string
	Interface string
	Prefix    netip.Prefix
	Kind      ChangeKind
	Why       string
}

// ChangeKind is what would be done about a Change.
type ChangeKind string

// The kinds.
const (
	Add    ChangeKind = "add"    // Active here, and the kernel lacks it
	Remove ChangeKind = "remove" // ours by the journal, and not wanted
	Ignore ChangeKind = "ignore" // there, not ours: an admin or another program added it
	Wait   ChangeKind = "wait"   // nothing can be done yet: the interface is missing or down
)

// GuardReport is the process that withdraws what a crash leaves behind.
type GuardReport struct {
	PID      int // 0: none runs
	Since    time.Time
	Restarts uint64
	Error    string
}
