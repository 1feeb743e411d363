package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// errHalted is in every error of a store that met an entry it cannot apply.
var errHalted = errors.New("the store halted")

var errStopping = errors.New("the store of this server is being stopped")

// fsm applies committed entries to the state, in Raft's order. It outlives a
// Run: after a restart within the process Raft repeats entries that the state
// already holds, and they are left out.
type fsm struct {
	state *state.Store
	log   *slog.Logger
	halt  func(error) // called once, when an entry can't be applied
	// mark is called after a command that asks for a digest of the state; it
	// must not block. May be nil.
	mark func(index uint64, s *state.Snapshot)

	applying sync.Mutex // held while the state is changed

	run atomic.Pointer[attachment] // nil: none

	mu      sync.Mutex
	cut     bool    // entries were left out since Raft is being stopped
	applied uint64  // Raft's index of the last entry in the state
	waiters waiters // for entries that are not
	halted  error
}

// attachment is what a Run does about entries before they are applied.
type attachment struct {
	await func(index uint64) bool // until they are on this server's disk; false: Raft is being stopped
	tell  func(entryID)           // called with the last of them; must not block
}

// attach begins a Run.
func (f *fsm) attach(await func(index uint64) bool, tell func(entryID)) {
	f.run.Store(&attachment{await, tell})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = false
}

// result is what a command gave; Raft hands it to who proposed it.
type result struct{ err error }

// Apply implements raft.FSM.
func (f *fsm) Apply(entry *raft.Log) any { return f.ApplyBatch([]*raft.Log{entry})[0] }

// ApplyBatch implements raft.BatchingFSM: entries that were committed together
// go into the state together, are told to the followers, and those who wait for
// them are woken, once.
func (f *fsm) ApplyBatch(entries []*raft.Log) []any {
	last := entries[len(entries)-1]
	if run := f.run.Load(); run != nil {
		if f.isCut() || !run.await(last.Index) {
			return f.leaveOut(len(entries))
		}
		run.tell(entryID{last.Index, last.Term})
	}
	f.applying.Lock()
	defer f.applying.Unlock()
	f.mu.Lock()
	halted, applied := f.halted, f.applied
	f.mu.Unlock()
	results := make([]any, len(entries))
	b := batch{results: results, cmds: make([]state.Batched, 0, len(entries)), at: make([]int, 0, len(entries))}
	for i, entry := range entries {
		switch {
		case halted != nil:
			results[i] = result{fmt.Errorf("%w: %w", state.ErrUnknownOutcome, halted)}
		case entry.Index <= applied:
			results[i] = result{}
		case entry.Type == raft.LogCommand:
			cmd, err := f.decode(entry)
			if err != nil {
				// Who waits for an entry before it hears of that one, not of this.
				b.apply(f.state)
				f.advance(applied)
				halted = f.stop(entry.Index, err)
				results[i] = result{fmt.Errorf("%w: %w", state.ErrUnknownOutcome, halted)}
				continue
			}
			applied, results[i] = entry.Index, result{}
			if cmd != nil {
				f.add(&b, i, entry, cmd)
			}
		}
	}
	b.apply(f.state)
	f.advance(applied)
	return results
}

// applyBytes is how large a batch may be before it is applied: of larger ones
// memory would hold the entries, the commands and the rows at once.
const applyBytes = 1 << 20

// batch is the commands of entries that go into the state together.
type batch struct {
	cmds    []state.Batched
	at      []int // where in results each one's goes
	results []any
	bytes   int
}

func (b *batch) apply(s *state.Store) {
	s.ApplyBatch(b.cmds)
	for i := range b.cmds {
		b.results[b.at[i]] = result{b.cmds[i].Err}
	}
	clear(b.cmds)
	b.cmds, b.at, b.bytes = b.cmds[:0], b.at[:0], 0
}

// add puts the command of entry i into the batch, and ends the batch where the
// state is asked for as it is behind exactly this entry.
func (f *fsm) add(b *batch, i int, entry *raft.Log, cmd state.Command) {
	b.cmds = append(b.cmds, state.Batched{Index: entry.Index, Cmd: cmd})
	b.at, b.bytes = append(b.at, i), b.bytes+len(entry.Data)
	mark := f.mark != nil && isVerifyMark(cmd)
	if mark || b.bytes >= applyBytes {
		b.apply(f.state)
	}
	if mark {
		f.mark(entry.Index, f.state.Snapshot())
	}
}

func (f *fsm) isCut() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cut
}

// leaveOut applies nothing any more: there must be no gap, and no snapshot that
// says it has what was left out.
func (f *fsm) leaveOut(entries int) []any {
	f.mu.Lock()
	f.cut = true
	f.mu.Unlock()
	results := make([]any, entries)
	for i := range results {
		results[i] = result{fmt.Errorf("%w: %w", state.ErrUnknownOutcome, errStopping)}
	}
	return results
}

// decode reads the command of an entry; nil when it is one that may be skipped.
// An error halts the store.
func (f *fsm) decode(entry *raft.Log) (state.Command, error) {
	cmd, err := state.Decode(entry.Data)
	if unknown, ok := errors.AsType[*state.UnknownCommandError](err); ok && unknown.Skippable {
		f.log.Info("an entry of a newer program was skipped, as it allows", "index", entry.Index, "kind", unknown.Kind)
		return nil, nil
	}
	return cmd, err
}

// stop halts the store: nothing is applied past this entry.
func (f *fsm) stop(index uint64, why error) error {
	err := fmt.Errorf("%w at entry %d, which this program cannot apply: %w", errHalted, index, why)
	f.mu.Lock()
	f.halted = err
	f.waiters.wake(math.MaxUint64)
	f.mu.Unlock()
	f.halt(err)
	return err
}

func (f *fsm) advance(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = max(f.applied, index)
	f.waiters.wake(f.applied)
}

// progress returns the index of the last entry in the state.
func (f *fsm) progress() (applied uint64, halted error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied, f.halted
}

// reached returns a channel that is closed once an entry of this index, or a
// later one, is in the state, or the store halted. Who no longer waits calls
// forget.
func (f *fsm) reached(index uint64) (done <-chan struct{}, forget func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &waiter{index: index, done: make(chan struct{})}
	if f.applied >= index || f.halted != nil {
		close(w.done)
		return w.done, func() {}
	}
	f.waiters.add(w)
	return w.done, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.waiters.remove(w)
	}
}

// wait blocks until the command at index is in the state, at most until ctx or
// ending is done.
func (f *fsm) wait(ctx, ending context.Context, index uint64) error {
	done, forget := f.reached(index)
	defer forget()
	select {
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	case <-ending.Done():
		return errStopping
	}
	if applied, err := f.progress(); applied < index {
		return err
	}
	return nil
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.halted != nil {
		return nil, f.halted
	}
	if f.cut {
		return nil, errStopping
	}
	return fsmSnapshot{f.state.Snapshot()}, nil
}

// Restore implements raft.FSM. A snapshot older than the state is left out:
// Raft reads its newest one whenever Run starts it.
func (f *fsm) Restore(r io.ReadCloser) error {
	f.applying.Lock()
	defer f.applying.Unlock()
	index := snapshotIndex(r)
	if applied, _ := f.progress(); index != 0 && index <= applied {
		return nil
	}
	if err := f.state.Restore(r); err != nil {
		return err
	}
	f.advance(max(index, f.state.Snapshot().Index()))
	return nil
}

// fsmSnapshot writes the state as it was when the snapshot was taken.
type fsmSnapshot struct{ state *state.Snapshot }

// Persist implements raft.FSMSnapshot.
func (s fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.state.WriteTo(sink); err != nil {
		return errors.Join(fmt.Errorf("write snapshot %s: %w", sink.ID(), err), sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (fsmSnapshot) Release() {}

type indexedReader struct {
	io.ReadCloser
	index uint64
}

// snapshotIndex finds the index below Raft's own wrappers; 0 unknown.
func snapshotIndex(r io.ReadCloser) uint64 {
	for {
		switch v := r.(type) {
		case *indexedReader:
			return v.index
		case raft.ReadCloserWrapper:
			r = v.WrappedReadCloser()
		default:
			return 0
		}
	}
}
