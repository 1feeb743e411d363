package state

import (
	"io"
	"time"

	"github.com/hashicorp/go-memdb"
)

// Reader is how consumers see the state: an immutable snapshot, and a signal
// when there is a newer one.
type Reader interface {
	// Snapshot never blocks and is safe to keep.
	Snapshot() *Snapshot
	// Changed is closed at the first change after the call: take it before
	// the Snapshot it belongs to.
	Changed() <-chan struct{}
	// Since lists what changed after version (see Snapshot.Version), each
	// key once. Not ok: too much or too long ago; rebuild from a Snapshot.
	Since(version uint64) (keys []Key, ok bool)
}

// Key names one thing that changed.
type Key struct {
	Table Table
	Name  string // node, service name, KV key, "kind/key" of a document
}

// Table is one table of the schema.
type Table string

// The tables. Members is this node's own gossip.
const (
	TableNode     Table = "nodes"
	TableService  Table = "services" // Name: the service's name; also when one of its checks changed
	TableCheck    Table = "checks"   // Name: the node's; any check of the node changed
	TableKV       Table = "kv"
	TableDocument Table = "documents"
	TableCluster  Table = "cluster"
	TableMember   Table = "members" // Name: the member's
)

// Store is one replica of the state. All methods may be called from any
// goroutine; Apply and Restore from one at a time.
type Store struct {
	_ int // being built
}

// New returns an empty replica.
func New() *Store { panic("being built") }

// Apply carries out cmd as entry index of the log. The error is the command's
// result (ErrConflict, ErrInvalid wrapped with the reason), the same on every
// replica. Apply never reads a clock.
func (s *Store) Apply(index uint64, cmd Command) error { panic("being built") }

// SetMembers replaces this node's view of the gossip.
func (s *Store) SetMembers(members []Member) { panic("being built") }

// Touch records that this replica was known to be up to date with a leader
// at the given time; Snapshot.Age counts from it.
func (s *Store) Touch(at time.Time) { panic("being built") }

// Snapshot returns the state as it is now.
func (s *Store) Snapshot() *Snapshot { panic("being built") }

// Changed: see Reader.
func (s *Store) Changed() <-chan struct{} { panic("being built") }

// Since: see Reader.
func (s *Store) Since(version uint64) ([]Key, bool) { panic("being built") }

// Restore replaces all replicated tables by what r holds (as Snapshot.WriteTo wrote
// it) and wakes every watcher. A truncated, corrupt or newer stream is an
// error and changes nothing. Gossip's view stays.
func (s *Store) Restore(r io.Reader) error { panic("being built") }

// Snapshot is the state at one moment.
type Snapshot struct {
	_ int // being built
}

// Index is the log index of the last command in the snapshot.
func (s *Snapshot) Index() uint64 { panic("being built") }

// Version counts every change this replica saw, those of the gossip too. It
// means nothing on another node or after a restart.
func (s *Snapshot) Version() uint64 { panic("being built") }

// Age is the time since a leader last confirmed this replica (Touch);
// ok is false when none ever did.
func (s *Snapshot) Age(now time.Time) (age time.Duration, ok bool) { panic("being built") }

// WatchSet collects channels that close when a query's answer may have
// changed. A nil WatchSet collects nothing.
//
// Queries return, beside the answer, the index at which it last changed:
// what a blocking query hands out as X-Consul-Index. It is never 0 and, for
// a query on one name, does not move when other names change.
type WatchSet = memdb.WatchSet

// Nodes lists all nodes by name.
func (s *Snapshot) Nodes(ws WatchSet) ([]*Node, uint64) { panic("being built") }

// Node finds a node by its name, without regard to case; nil when absent.
func (s *Snapshot) Node(ws WatchSet, name string) (*Node, uint64) { panic("being built") }

// ServiceNames maps every service's name to the union of its tags, sorted.
func (s *Snapshot) ServiceNames(ws WatchSet) (map[string][]string, uint64) { panic("being built") }

// Instances lists the instances of a service (name compared without regard
// to case) by node and ID, whatever their health.
func (s *Snapshot) Instances(ws WatchSet, service string) ([]Instance, uint64) {
	panic("being built")
}

// NodeServices lists the services of a node by ID.
func (s *Snapshot) NodeServices(ws WatchSet, node string) ([]*Service, uint64) {
	panic("being built")
}

// NodeChecks lists all checks of a node by ID: its own and its services'.
func (s *Snapshot) NodeChecks(ws WatchSet, node string) ([]*Check, uint64) { panic("being built") }

// ServiceChecks lists the checks of all instances of a service.
func (s *Snapshot) ServiceChecks(ws WatchSet, service string) ([]*Check, uint64) {
	panic("being built")
}

// Checks lists all checks in a state; "" is any.
func (s *Snapshot) Checks(ws WatchSet, status Status) ([]*Check, uint64) { panic("being built") }

// Entry finds a key; nil when absent.
func (s *Snapshot) Entry(ws WatchSet, key string) (*Entry, uint64) { panic("being built") }

// Entries lists the keys with a prefix, sorted.
func (s *Snapshot) Entries(ws WatchSet, prefix string) ([]*Entry, uint64) { panic("being built") }

// Document finds a document; nil when absent.
func (s *Snapshot) Document(ws WatchSet, kind, key string) (*Document, uint64) {
	panic("being built")
}

// Documents lists the documents of a kind by key.
func (s *Snapshot) Documents(ws WatchSet, kind string) ([]*Document, uint64) { panic("being built") }

// Cluster is the record about the store; nil until it is formed.
func (s *Snapshot) Cluster() *Cluster { panic("being built") }

// Members lists what this node's gossip sees, by name.
func (s *Snapshot) Members() []Member { panic("being built") }

// Member finds a member by name, without regard to case.
func (s *Snapshot) Member(name string) (Member, bool) { panic("being built") }

// Healthy filters instances as an answer should have them: passing (and
// warning, unless onlyPassing) in the catalog, and not on a node that this
// node's gossip knows has failed or left. When the gossip would leave
// nothing, the catalog's choice stands.
func (s *Snapshot) Healthy(all []Instance, onlyPassing bool) []Instance { panic("being built") }

// WriteTo writes all replicated tables, for Raft's snapshots: a header with
// magic, version, index and time-independent length, then checksummed
// records. The same tables always give the same bytes.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) { panic("being built") }
