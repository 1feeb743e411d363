package raftstore

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// What a leader has accepted and not written yet is bounded: beyond this it
// writes before it sends, as a follower does before it answers.
const (
	aheadEntries = 2048
	aheadBytes   = 1 << 20
	// Each call of StoreLogs can become a step of the commit index, and Raft's
	// state machine takes 128 of those before Raft's own loop waits for it. That
	// loop must not: it is there that a leader hears of its disk, and steps down.
	aheadCalls = 64
	// So much of it shares a write.
	writeEntries = 1024
	writeBytes   = 256 << 10
)

// retryWrite is how long entries wait that could not be written.
const retryWrite = 100 * time.Millisecond

// aheadLog has a leader write to its disk while it sends to the followers
// (Ongaro's thesis, section 10.2.1). hashicorp/raft sends when StoreLogs returns,
// so that for a leader's commands it returns at once, and they are written
// behind Raft's back, those that wait together at a time.
//
// Raft then counts this server's copy before it is on the disk. So nobody may
// learn of what counts it, which is everything from the first pending entry on:
//   - the state machine waits for an entry to be on this disk (await), and with it
//     answers, reads and snapshots do;
//   - no follower is told of a commit beyond (durable);
//   - to another leader this server answers for an entry, and to voters it says
//     that it has one, once it is on this disk (ensure).
//
// A write that fails is told to Raft as the error of the next StoreLogs, which is
// called for if none comes. The entries are Raft's, so that they are kept, and
// written again; until then they are pending.
type aheadLog struct {
	raft.LogStore             // what it has is on the disk
	leads         func() bool // whether Raft leads
	// yield has Raft call StoreLogs if it leads. It may block for a moment.
	yield   func()
	ended   <-chan struct{} // Raft is being stopped
	wake    chan struct{}
	stopped chan struct{}
	done    sync.WaitGroup

	writing chan struct{} // full while somebody writes to the log below; a lock before mu that virtual time can wait for

	mu      sync.RWMutex
	pending []*raft.Log // in order, without a gap
	size    int         // their bytes
	calls   []uint64    // the last entry of each call that brought them
	trouble error       // why entries of Raft's term failed could not be written, until Raft hears of it
	failed  uint64
	news    chan struct{}
	failing chan struct{} // closed while pending entries could not be written

	first atomic.Uint64 // index of the first pending entry; 0: there is none
}

func newAheadLog(below raft.LogStore, leads func() bool, yield func(), ended <-chan struct{}) *aheadLog {
	a := &aheadLog{
		LogStore: below, leads: leads, yield: yield, ended: ended, wake: make(chan struct{}, 1), stopped: make(chan struct{}),
		writing: make(chan struct{}, 1), news: make(chan struct{}), failing: make(chan struct{}),
	}
	a.done.Go(a.writeAlong)
	return a
}

// StoreLog implements raft.LogStore.
func (a *aheadLog) StoreLog(entry *raft.Log) error { return a.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore. The entries must not be changed.
func (a *aheadLog) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	if accepted, err := a.accept(entries); accepted || err != nil {
		return err
	}
	a.writing <- struct{}{}
	defer func() { <-a.writing }()
	if err := a.flush(); err != nil {
		return err
	}
	return a.LogStore.StoreLogs(entries)
}

// accept takes a leader's commands without writing them. Other entries are
// written before they count: the first of a term, on which it rests that earlier
// ones are committed, and configurations, by which votes are counted.
func (a *aheadLog) accept(entries []*raft.Log) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.leads() {
		return false, nil
	}
	if err := a.trouble; err != nil {
		a.trouble = nil
		if a.failed == entries[0].Term {
			return false, err
		}
	}
	n := len(a.pending)
	if n >= aheadEntries || a.size >= aheadBytes || len(a.calls) >= aheadCalls || n > 0 && entries[0].Index != a.pending[n-1].Index+1 {
		return false, nil
	}
	for _, entry := range entries {
		if entry.Type != raft.LogCommand {
			return false, nil
		}
	}
	for _, entry := range entries {
		a.size += len(entry.Data)
	}
	a.pending = append(a.pending, entries...)
	a.calls = append(a.calls, entries[len(entries)-1].Index)
	a.first.Store(a.pending[0].Index)
	select {
	case a.wake <- struct{}{}:
	default:
	}
	return true, nil
}

// writeAlong writes what is pending until the log is closed. What can't be
// written is tried again.
func (a *aheadLog) writeAlong() {
	for {
		select {
		case <-a.wake:
		case <-a.stopped:
			return
		}
		for a.flushAlone() != nil {
			a.yield()
			select {
			case <-time.After(retryWrite):
			case <-a.stopped:
				return
			}
		}
	}
}

func (a *aheadLog) flushAlone() error {
	a.writing <- struct{}{}
	defer func() { <-a.writing }()
	return a.flush()
}

// flush writes what is pending; the caller holds writing.
func (a *aheadLog) flush() error {
	for {
		batch := a.next()
		if len(batch) == 0 {
			return nil
		}
		err := a.LogStore.StoreLogs(batch)
		a.wrote(batch, err)
		if err != nil {
			return err
		}
	}
}

// next is what is written next.
func (a *aheadLog) next() []*raft.Log {
	a.mu.RLock()
	defer a.mu.RUnlock()
	n, size := 0, 0
	for n < len(a.pending) && n < writeEntries && (n == 0 || size+len(a.pending[n].Data) <= writeBytes) {
		size += len(a.pending[n].Data)
		n++
	}
	return a.pending[:n:n]
}

// wrote notes what became of the first pending entries.
func (a *aheadLog) wrote(batch []*raft.Log, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.trouble, a.failed = err, batch[len(batch)-1].Term
		if !closed(a.failing) {
			close(a.failing)
		}
		return
	}
	for _, entry := range batch {
		a.size -= len(entry.Data)
	}
	a.pending = slices.Clone(a.pending[len(batch):])
	last := batch[len(batch)-1].Index
	a.calls = slices.DeleteFunc(a.calls, func(end uint64) bool { return end <= last })
	first := uint64(0)
	if len(a.pending) > 0 {
		first = a.pending[0].Index
	} else if closed(a.failing) {
		a.failing = make(chan struct{})
	}
	a.first.Store(first)
	close(a.news)
	a.news = make(chan struct{})
}

// ensure has the entries up to index written if they are not; the error is that
// of the disk.
func (a *aheadLog) ensure(index uint64) error {
	if a.durable(index) == index {
		return nil
	}
	return a.flushAlone()
}

// durable is the highest index up to index whose entries are all on this disk.
func (a *aheadLog) durable(index uint64) uint64 {
	if first := a.first.Load(); first != 0 && first <= index {
		return first - 1
	}
	return index
}

// await blocks until the entries up to index are on this disk; false: Raft is
// being stopped, and they are not.
func (a *aheadLog) await(index uint64) bool {
	for {
		a.mu.RLock()
		news := a.news
		a.mu.RUnlock()
		if a.durable(index) == index {
			return true
		}
		select {
		case <-news:
		case <-a.ended:
			return false
		}
	}
}

// fails is closed while accepted entries can't be written.
func (a *aheadLog) fails() <-chan struct{} {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.failing
}

// FirstIndex implements raft.LogStore.
func (a *aheadLog) FirstIndex() (uint64, error) {
	newer := a.first.Load() // what is written meanwhile is found below
	first, err := a.LogStore.FirstIndex()
	if err == nil && first == 0 {
		first = newer
	}
	return first, err
}

// LastIndex implements raft.LogStore.
func (a *aheadLog) LastIndex() (uint64, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if n := len(a.pending); n > 0 {
		return a.pending[n-1].Index, nil
	}
	return a.LogStore.LastIndex()
}

// GetLog implements raft.LogStore.
func (a *aheadLog) GetLog(index uint64, entry *raft.Log) error {
	a.mu.RLock()
	if n := len(a.pending); n > 0 && index >= a.pending[0].Index {
		defer a.mu.RUnlock()
		i := index - a.pending[0].Index
		if i >= uint64(n) {
			return raft.ErrLogNotFound
		}
		*entry = *a.pending[i]
		return nil
	}
	a.mu.RUnlock()
	return a.LogStore.GetLog(index, entry)
}

// DeleteRange implements raft.LogStore. Old entries are removed while others are
// written.
func (a *aheadLog) DeleteRange(first, last uint64) error {
	if a.durable(last) == last {
		return a.LogStore.DeleteRange(first, last)
	}
	a.writing <- struct{}{}
	defer func() { <-a.writing }()
	if err := a.flush(); err != nil {
		return err
	}
	return a.LogStore.DeleteRange(first, last)
}

// close writes what is pending, if that can be done. The log below stays open.
// Nobody was told of what is lost.
func (a *aheadLog) close() {
	close(a.stopped)
	a.done.Wait()
	_ = a.flushAlone()
}
