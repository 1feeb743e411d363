package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// errUnproven: a majority did not confirm that this server still leads.
var errUnproven = errors.New("a majority does not confirm that this server leads")

// prove returns nil when this server led, in the term, at some moment after
// the call: a majority of the voters has taken part in no later election when
// it answers a question that was put after the call. It blocks for a round
// trip to the nearest majority, at most times.transport.
//
// raft.VerifyLeader does not show this. It counts the next answer of each
// follower, which may be one to a heartbeat that was sent before the question.
// A leader that stood still for a while (a stopped process, a virtual machine
// that was moved) finds such answers waiting, counts them, and reads what its
// successor has overwritten meanwhile.
func (e *engine) prove(ctx context.Context, term uint64) error {
	if !e.questions.Begin() {
		return raft.ErrRaftShutdown
	}
	defer e.questions.End()
	return e.proofs.join(ctx, func() error {
		ctx, cancel := context.WithTimeout(e.net.ending, e.store.times.transport)
		defer cancel()
		return e.askElectorate(ctx, term)
	})
}

// askElectorate asks all voters for their terms and returns when a majority,
// this server included, is in term, or none can be had.
func (e *engine) askElectorate(ctx context.Context, term uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var voters []member
	votes := tally{}
	for _, m := range e.members() {
		if !m.Voter {
			continue
		}
		votes.voters++
		if m.ID != e.store.config.NodeID {
			voters = append(voters, m)
			continue
		}
		votes.count(e.raft.CurrentTerm() == term && e.raft.State() == raft.Leader)
	}
	answers := make(chan bool, len(voters))
	for _, m := range voters {
		go func() { // ends with ctx
			p, err := e.askProgress(ctx, m)
			answers <- err == nil && p.Term == term
		}()
	}
	for votes.open() {
		votes.count(<-answers)
	}
	if !votes.won() {
		return fmt.Errorf("%w in term %d: %d of %d voters do", errUnproven, term, votes.yes, votes.voters)
	}
	return nil
}

// tally counts votes until they decide.
type tally struct{ voters, yes, no int }

func (t *tally) count(yes bool) {
	if yes {
		t.yes++
	} else {
		t.no++
	}
}

func (t *tally) won() bool { return 2*t.yes > t.voters }

// open tells whether the votes that are still out matter.
func (t *tally) open() bool { return !t.won() && 2*(t.voters-t.no) > t.voters }

// rounds lets many callers share one run of something, if it begins after all
// of them called.
type rounds struct {
	mu   sync.Mutex
	busy bool
	next *round // has not begun
}

type round struct {
	ask  func() error
	done chan struct{}
	err  error
}

// join waits for a run of ask that begins after the call, or for the end of
// ctx. Runs follow each other; each is the ask of the first who waits for it.
func (r *rounds) join(ctx context.Context, ask func() error) error {
	r.mu.Lock()
	if r.next == nil {
		r.next = &round{ask: ask, done: make(chan struct{})}
	}
	mine := r.next
	if !r.busy {
		r.busy = true
		go r.run()
	}
	r.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run answers who waits until nobody does.
func (r *rounds) run() {
	for {
		r.mu.Lock()
		now := r.next
		r.next, r.busy = nil, now != nil
		r.mu.Unlock()
		if now == nil {
			return
		}
		now.err = now.ask()
		close(now.done)
	}
}
