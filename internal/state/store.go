package state

import (
	"cmp"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"
)

// Store is one replica of the state. All methods may be called from any
// goroutine; Apply, ApplyBatch and Restore from one at a time.
type Store struct {
	view atomic.Pointer[view]
	// swap is held by a writer from the moment its watches fire until readers
	// see its change: who was woken must not find the state of before, whose
	// watches have all fired, and spin.
	swap sync.RWMutex

	mu     sync.Mutex // serialises the writers: Apply, Restore, SetMembers, Touch
	db     *memdb.MemDB
	graves graves
	// abandoned is closed when Restore replaces db: the watches of the old
	// database would never fire again.
	abandoned chan struct{}

	journal   journal
	committed committed
	outcomes  outcomes
}

// view is what readers see: replaced as a whole, never changed.
type view struct {
	snapshot *Snapshot
	changed  chan struct{} // closed when the snapshot's version is passed
}

// New returns an empty replica.
func New() *Store {
	s := &Store{db: newDB(), abandoned: make(chan struct{})}
	txn := s.db.Txn(true)
	addBuckets(txn)
	txn.Commit()
	s.view.Store(&view{
		snapshot: &Snapshot{txn: s.db.Txn(false), abandoned: s.abandoned, gossip: &gossip{}},
		changed:  make(chan struct{}),
	})
	return s
}

// Snapshot returns the state as it is now: the same one until the next change.
// It waits for nothing but a change that is being published at this moment.
func (s *Store) Snapshot() *Snapshot {
	s.swap.RLock()
	defer s.swap.RUnlock()
	return s.view.Load().snapshot
}

// Changed returns a channel that is closed at the first change after the call:
// take it before the Snapshot it belongs to. Only what a query could see is a
// change: a command that was refused or left everything equal moves
// Snapshot.Index and nothing else, as Touch moves only Snapshot.Age.
func (s *Store) Changed() <-chan struct{} { return s.view.Load().changed }

// Since lists what changed after version (Snapshot.Version of an earlier
// snapshot), each key once, oldest change first. It may run ahead of a Snapshot
// taken before it. Not ok: the last 4096 changes don't reach back to version, or
// the tables were replaced by a Restore since; rebuild from a Snapshot.
func (s *Store) Since(version uint64) ([]Key, bool) { return s.journal.since(version) }

// Touch records that this replica was known to be up to date with a leader
// at the given time; Snapshot.Age counts from it. A time before the last one
// is ignored. It wakes nobody.
func (s *Store) Touch(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.view.Load()
	if !at.After(v.snapshot.touched) {
		return
	}
	snap := *v.snapshot
	snap.touched = at
	s.view.Store(&view{snapshot: &snap, changed: v.changed})
}

// publish makes next what readers see. Without keys nothing changed that a
// query could see, and nobody is woken. The caller holds mu.
func (s *Store) publish(next Snapshot, keys map[Key]struct{}) {
	old := s.view.Load()
	if len(keys) == 0 {
		s.view.Store(&view{snapshot: &next, changed: old.changed})
		return
	}
	next.version++
	// The journal first: who sees the new version must find its keys.
	s.journal.record(next.version, sorted(keys))
	s.view.Store(&view{snapshot: &next, changed: make(chan struct{})})
	close(old.changed)
}

func sorted(set map[Key]struct{}) []Key {
	keys := make([]Key, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Name, b.Name))
	})
	return keys
}

// journalSize is how many changed keys Since can look back on.
const journalSize = 4096

// journal remembers the latest changes for Since.
type journal struct {
	mu      sync.Mutex
	version uint64 // of the newest change
	floor   uint64 // changes up to this version are no longer complete
	ring    []change
	next    int // where the ring's next change goes, once it is full
}

type change struct {
	version uint64
	key     Key
}

// record adds the keys of one version.
func (j *journal) record(version uint64, keys []Key) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.version = version
	if len(keys) > journalSize {
		j.forget()
		return
	}
	for _, k := range keys {
		if len(j.ring) < journalSize {
			j.ring = append(j.ring, change{version, k})
			continue
		}
		j.floor = j.ring[j.next].version
		j.ring[j.next] = change{version, k}
		j.next = (j.next + 1) % journalSize
	}
}

// reset starts anew at version: nothing before it can be told.
func (j *journal) reset(version uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.version = version
	j.forget()
}

func (j *journal) forget() {
	j.floor, j.ring, j.next = j.version, nil, 0
}

func (j *journal) since(version uint64) ([]Key, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if version < j.floor || version > j.version {
		return nil, false
	}
	// The versions in the ring only grow: those the caller has are skipped at once.
	from := sort.Search(len(j.ring), func(i int) bool { return j.at(i).version > version })
	if from == len(j.ring) {
		return nil, true
	}
	keys := make([]Key, 0, len(j.ring)-from)
	seen := make(map[Key]struct{}, len(j.ring)-from)
	for i := from; i < len(j.ring); i++ {
		k := j.at(i).key
		if _, dup := seen[k]; !dup {
			seen[k] = struct{}{}
			keys = append(keys, k)
		}
	}
	return keys, true
}

// at is the change at place i of the ring, the oldest at 0.
func (j *journal) at(i int) change { return j.ring[(j.next+i)%len(j.ring)] }
