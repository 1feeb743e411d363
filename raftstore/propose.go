package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// retryEvery is how often a held request tries again without being told of a
// new leader.
const retryEvery = 25 * time.Millisecond

// Propose implements state.Proposer, on every server: the leader puts the
// command in order, and Propose returns when it is applied on this node.
//
// Without a leader it is held for 2 s (times Config.Timing, so that an
// election passes unnoticed) and then refused with state.ErrNoLeader. When the
// leader is lost after it took the command, or ctx ends by then, the error is
// state.ErrUnknownOutcome. The command's own result (state.ErrConflict ...) is
// returned as it is. A write is repeated only when it surely was not appended.
func (s *Store) Propose(ctx context.Context, cmd state.Command) (uint64, error) {
	start := time.Now()
	index, err := s.propose(ctx, cmd)
	s.metrics.proposals.WithLabelValues(outcome(err)).Inc()
	if err == nil {
		s.metrics.latency.Observe(time.Since(start).Seconds())
	}
	return index, err
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "applied"
	case errors.Is(err, state.ErrUnknownOutcome):
		return "unknown"
	case errors.Is(err, state.ErrNoLeader):
		return "no_leader"
	}
	return "refused"
}

func (s *Store) propose(ctx context.Context, cmd state.Command) (uint64, error) {
	data, err := state.Encode(cmd)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.times.hold+s.times.outcome)
	defer cancel()
	index, err := s.viaLeader(ctx, request{
		here:  func(ctx context.Context) (uint64, error) { return s.proposeHere(ctx, data) },
		path:  pathPropose,
		body:  data,
		write: true,
	})
	if index == 0 {
		return 0, err
	}
	// Also after a conflict: who reads again must see what it lost against.
	if waitErr := s.waitApplied(ctx, index); waitErr != nil {
		return index, fmt.Errorf("%w: written as entry %d, but not applied on this node yet: %w", state.ErrUnknownOutcome, index, waitErr)
	}
	return index, err
}

// waitApplied blocks until the command at index is in the state, at most as
// long as Run.
func (s *Store) waitApplied(ctx context.Context, index uint64) error {
	e := s.engine.Load()
	if e == nil {
		return errors.New("the store of this server stopped")
	}
	return s.fsm.wait(ctx, e.net.ending, index)
}

// request is something that only the leader can do.
type request struct {
	here  func(ctx context.Context) (uint64, error) // when that is us
	path  string                                    // when it is another
	body  []byte
	write bool         // repeating it is not harmless
	keep  func(answer) // another's answer, also with an error; may be nil
}

// viaLeader has the leader, here or elsewhere, do r, and waits for one up to
// times.hold. An attempt that took longer is followed by one at the leader
// that there is by then.
func (s *Store) viaLeader(ctx context.Context, r request) (uint64, error) {
	start := time.Now()
	for {
		changed := s.LeaderChanged()
		index, err := s.tryLeader(ctx, r)
		if err == nil || r.write && !untouched(err) || isResult(err) {
			return index, err
		}
		left := s.times.hold - time.Since(start)
		if left <= 0 && !closed(changed) { // else the attempt was at a former leader
			return 0, noLeader(err, fmt.Errorf("waited %v", s.times.hold))
		}
		timer := time.NewTimer(min(retryEvery, left))
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return 0, noLeader(err, ctx.Err())
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// isResult: the leader did it, and this is what came of it.
func isResult(err error) bool {
	return errors.Is(err, state.ErrConflict) || errors.Is(err, state.ErrNotFound) || errors.Is(err, state.ErrInvalid)
}

// noLeader is the error of a request that found nobody: what the last attempt
// met, and what ended the waiting.
func noLeader(last, end error) error {
	if errors.Is(last, state.ErrNoLeader) {
		return fmt.Errorf("%w (%w)", unwrapUntouched(last), end)
	}
	return fmt.Errorf("%w (%w): %w", state.ErrNoLeader, end, last)
}

func unwrapUntouched(err error) error {
	if u, ok := err.(*untouchedError); ok {
		return u.err
	}
	return err
}

// tryLeader makes one attempt.
func (s *Store) tryLeader(ctx context.Context, r request) (uint64, error) {
	e := s.engine.Load()
	if e == nil {
		return 0, &untouchedError{fmt.Errorf("%w: the store of this server is not running", state.ErrNoLeader)}
	}
	if e.raft.State() == raft.Leader {
		return r.here(ctx)
	}
	address, id := e.raft.LeaderWithID()
	if address == "" || string(id) == s.config.NodeID {
		return 0, &untouchedError{fmt.Errorf("%w: %s", state.ErrNoLeader, s.situation(e))}
	}
	if now := s.addressOf(string(id)); now != "" {
		address = raft.ServerAddress(now)
	}
	var a answer
	var err error
	switch r.path {
	case pathPropose:
		a, err = e.forwards.carry(ctx, string(address), string(id), r.body)
	case pathReadIndex:
		a.Index, err = e.forwards.readIndex(ctx, string(address), string(id))
	default:
		a, err = e.client.inquire(ctx, string(address), r.path, bytes.NewReader(r.body))
	}
	if r.keep != nil {
		r.keep(a)
	}
	index := a.Index
	if err == nil || untouched(err) || index != 0 || isResult(err) {
		return index, err
	}
	if r.write && !errors.Is(err, state.ErrUnknownOutcome) {
		err = fmt.Errorf("%w: the leader %s: %w", state.ErrUnknownOutcome, s.nameOf(string(id)), err)
	}
	return 0, err
}

// proposeHere appends a command as the leader and waits until it is applied.
func (s *Store) proposeHere(ctx context.Context, command []byte) (uint64, error) {
	e := s.engine.Load()
	if e == nil {
		return 0, &untouchedError{fmt.Errorf("%w: the store of this server is not running", state.ErrNoLeader)}
	}
	if err := state.MayPropose(command, s.state.Snapshot().Level()); err != nil {
		return 0, err
	}
	fails := e.ahead.fails()
	if closed(fails) {
		return 0, &untouchedError{fmt.Errorf("%w: this server still leads, but can't write to its disk", state.ErrNoLeader)}
	}
	type applied struct {
		index    uint64
		response any
		err      error
	}
	done := make(chan applied, 1)
	go func() { // ends at the latest when Raft does
		f := e.raft.Apply(command, s.times.hold)
		a := applied{err: f.Error()}
		if a.index = f.Index(); a.err == nil {
			a.response = f.Response()
		}
		done <- a
	}()
	limit := time.NewTimer(s.times.outcome)
	defer limit.Stop()
	select {
	case a := <-done:
		if a.err != nil {
			return 0, applyError(a.err)
		}
		r, _ := a.response.(result)
		return a.index, r.err
	case <-fails:
		return 0, fmt.Errorf("%w: this server could not write to its disk", state.ErrUnknownOutcome)
	case <-limit.C:
		return 0, fmt.Errorf("%w: nothing came of it in %v", state.ErrUnknownOutcome, s.times.outcome)
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %w", state.ErrUnknownOutcome, ctx.Err())
	}
}

// applyError says what a failed Apply means for the command.
func applyError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return &untouchedError{fmt.Errorf("%w: %w", state.ErrNoLeader, err)}
	case errors.Is(err, raft.ErrAbortedByRestore):
		// It is gone here, but not if this leader is lost before the others
		// have the restored state.
		return fmt.Errorf("%w: a snapshot was restored meanwhile: %w", state.ErrUnknownOutcome, err)
	}
	return fmt.Errorf("%w: %w", state.ErrUnknownOutcome, err)
}
