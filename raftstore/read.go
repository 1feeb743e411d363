package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// ReadBarrier makes the next reads on this node linearizable: when it returns
// nil, the node's state holds every write that was acknowledged anywhere
// before the call. Like Propose it waits for a leader, and then fails with
// state.ErrNoLeader.
func (s *Store) ReadBarrier(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.times.hold+s.times.outcome)
	defer cancel()
	index, err := s.viaLeader(ctx, request{here: s.readIndexHere, path: pathReadIndex})
	if err != nil {
		return err
	}
	e := s.engine.Load()
	if e == nil {
		return fmt.Errorf("%w: the store of this server is not running", state.ErrNoLeader)
	}
	if err := e.waitCommitted(ctx, index); err != nil {
		return fmt.Errorf("wait until entry %d is applied on this node: %w", index, err)
	}
	return nil
}

// readIndexHere gives, as the leader, an index that covers every write
// acknowledged so far (Ongaro's thesis, §6.4). The order matters: the barrier
// once a term, so that the commit index is not one of an earlier leader's;
// then the commit index; only then the question to the others whether anybody
// else leads. The proof must be of the same term, or we lost the office and
// won it again in between.
func (s *Store) readIndexHere(ctx context.Context) (uint64, error) {
	e := s.engine.Load()
	if e == nil {
		return 0, &untouchedError{fmt.Errorf("%w: the store of this server is not running", state.ErrNoLeader)}
	}
	term := e.tracker.established.Load()
	if term == 0 || e.raft.CurrentTerm() != term || e.raft.State() != raft.Leader {
		return 0, &untouchedError{fmt.Errorf("%w: this server is not the leader, or only since a moment", state.ErrNoLeader)}
	}
	index := e.raft.CommitIndex()
	if id, ok := ctx.Value(peerKey{}).(string); ok {
		e.trans.pipes.settle(raft.ServerID(id)) // it will wait for the entry
	}
	err := e.prove(ctx, term)
	if err == nil && e.raft.CurrentTerm() != term {
		err = errors.New("another election took place")
	}
	if err != nil {
		return 0, &untouchedError{fmt.Errorf("%w: %w", state.ErrNoLeader, err)}
	}
	return index, nil
}

// waitCommitted blocks until every command up to index is in the state. The
// entry at index need not be a command, and Raft tells the state machine only
// of commands; so once Raft has passed index on, the last command up to it is
// looked for in the log.
func (e *engine) waitCommitted(ctx context.Context, index uint64) error {
	for {
		applied, err := e.store.fsm.progress()
		if applied >= index {
			return nil
		}
		if err != nil {
			return err
		}
		if e.raft.AppliedIndex() >= index {
			if last := e.lastCommand(index, applied); last <= applied {
				return nil
			}
		}
		// A follower learns the commit index without applying anything when
		// the entry is no command: look again even without news.
		timer := time.NewTimer(5 * time.Millisecond)
		news, forget := e.store.fsm.reached(index)
		select {
		case <-news:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		forget()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// lastCommand finds the last command in (applied, index]; applied if none. Entries
// that are not in the log are in a snapshot that the state has: an older one, or one
// that was restored. One that can't be read may be a command.
func (e *engine) lastCommand(index, applied uint64) uint64 {
	for i := index; i > applied; i-- {
		var entry raft.Log
		err := e.logs.GetLog(i, &entry)
		if errors.Is(err, raft.ErrLogNotFound) {
			return applied
		}
		if err != nil || entry.Type == raft.LogCommand {
			return i
		}
	}
	return applied
}
