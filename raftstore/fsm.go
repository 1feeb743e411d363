package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// errHalted is in every error of a store that met an entry it cannot apply.
var errHalted = errors.New("the store halted")

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

	mu      sync.Mutex
	applied uint64        // Raft's index of the last entry in the state
	waiting chan struct{} // closed at the next change of applied or halted; nil: nobody waits
	halted  error
}

// result is what a command gave; Raft hands it to who proposed it.
type result struct{ err error }

// Apply implements raft.FSM.
func (f *fsm) Apply(entry *raft.Log) any {
	f.applying.Lock()
	defer f.applying.Unlock()
	f.mu.Lock()
	halted, applied := f.halted, f.applied
	f.mu.Unlock()
	if halted != nil {
		return result{fmt.Errorf("%w: %w", state.ErrUnknownOutcome, halted)}
	}
	if entry.Index <= applied {
		return result{}
	}
	cmd, err := state.Decode(entry.Data)
	if unknown, ok := errors.AsType[*state.UnknownCommandError](err); ok && unknown.Skippable {
		f.log.Info("an entry of a newer program was skipped, as it allows", "index", entry.Index, "kind", unknown.Kind)
		f.advance(entry.Index)
		return result{}
	}
	if err != nil {
		return result{fmt.Errorf("%w: %w", state.ErrUnknownOutcome, f.stop(entry.Index, err))}
	}
	err = f.state.Apply(entry.Index, cmd)
	if f.mark != nil && isVerifyMark(cmd) {
		f.mark(entry.Index, f.state.Snapshot())
	}
	f.advance(entry.Index)
	return result{err}
}

// stop halts the store: nothing is applied past this entry.
func (f *fsm) stop(index uint64, why error) error {
	err := fmt.Errorf("%w at entry %d, which this program cannot apply: %w", errHalted, index, why)
	f.mu.Lock()
	f.halted = err
	f.wake()
	f.mu.Unlock()
	f.halt(err)
	return err
}

func (f *fsm) advance(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = index
	f.wake()
}

// wake tells those who wait; the caller holds mu.
func (f *fsm) wake() {
	if f.waiting != nil {
		close(f.waiting)
		f.waiting = nil
	}
}

// progress returns the index of the last entry in the state, and a channel
// that is closed when there is news.
func (f *fsm) progress() (applied uint64, news <-chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting == nil {
		f.waiting = make(chan struct{})
	}
	return f.applied, f.waiting, f.halted
}

// wait blocks until the command at index is in the state.
func (f *fsm) wait(ctx context.Context, index uint64) error {
	for {
		applied, news, err := f.progress()
		if applied >= index {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.halted != nil {
		return nil, f.halted
	}
	return fsmSnapshot{f.state.Snapshot()}, nil
}

// Restore implements raft.FSM. A snapshot older than the state is left out:
// Raft reads its newest one whenever Run starts it.
func (f *fsm) Restore(r io.ReadCloser) error {
	f.applying.Lock()
	defer f.applying.Unlock()
	index := snapshotIndex(r)
	if applied, _, _ := f.progress(); index != 0 && index <= applied {
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

// snapshotStore makes the index of a snapshot known to Restore, which Raft
// gives only the bytes.
type snapshotStore struct{ raft.SnapshotStore }

func (s snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.SnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	return meta, &indexedReader{r, meta.Index}, nil
}

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
