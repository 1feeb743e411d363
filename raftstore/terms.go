package raftstore

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// termStable is the stable store that Raft is given. It keeps Raft's own goroutine
// from beginning another term while a heartbeat is taken up beside it: between
// Raft's look at the term and what it does about it there must be no election.
type termStable struct {
	raft.StableStore
	raft func() *raft.Raft // nil while it does not run

	beginning sync.RWMutex  // held while a term is begun; shared while a heartbeat is taken up
	term      atomic.Uint64 // as written, 0 before the first; changed while beginning is held
}

// GetUint64 implements raft.StableStore.
func (t *termStable) GetUint64(key []byte) (uint64, error) {
	value, err := t.StableStore.GetUint64(key)
	if err == nil && string(key) == keyTerm { // Raft asks before it runs
		t.term.Store(value)
	}
	return value, err
}

// SetUint64 implements raft.StableStore; it blocks until the value is on the disk.
// What is there is not written again: a heartbeat that meets a follower in the
// moment in which it becomes a candidate has it say the term that it has.
func (t *termStable) SetUint64(key []byte, value uint64) error {
	if string(key) != keyTerm {
		return t.StableStore.SetUint64(key, value)
	}
	if value == t.term.Load() {
		return nil
	}
	t.beginning.Lock()
	defer t.beginning.Unlock()
	err := t.StableStore.SetUint64(key, value)
	if err == nil {
		t.term.Store(value)
	}
	return err
}

// beside implements transport.beside: this server follows in the term, and it will
// be in no other before done is called. It may begin to stand for election meanwhile:
// Raft then makes it a follower of the same term again, which is harmless, since no
// vote is asked for, and so none counted, before there is another term.
func (t *termStable) beside(term uint64) (done func(), ok bool) {
	if !t.beginning.TryRLock() {
		return nil, false
	}
	r := t.raft()
	if r == nil || t.term.Load() != term || r.CurrentTerm() != term || r.State() != raft.Follower {
		t.beginning.RUnlock()
		return nil, false
	}
	return t.beginning.RUnlock, true
}

var _ raft.StableStore = (*termStable)(nil)
