package raftstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// The shell around verify.go: every server takes the digest of its state after
// each mark in the log; the leader puts the marks there, compares, and gives
// the majority's state to who has another.

// verifier is what a server knows of its own state. Its methods may be called
// from any goroutine.
type verifier struct {
	mu      sync.Mutex
	next    *marked       // to be looked at; a later mark takes its place
	last    marked        // with its digest
	poked   chan struct{} // capacity 1: next is set
	done    chan struct{} // closed when last changes
	persist bool          // the snapshot on the disk is older than a rebuild
}

// marked is the state after a mark, an immutable view.
type marked struct {
	index uint64
	state *state.Snapshot
	sum   string
}

func newVerifier() *verifier {
	return &verifier{poked: make(chan struct{}, 1), done: make(chan struct{})}
}

// mark is called by the fsm, inside Raft: it must not block.
func (v *verifier) mark(index uint64, s *state.Snapshot) {
	v.mu.Lock()
	v.next = &marked{index: index, state: s}
	v.mu.Unlock()
	select {
	case v.poked <- struct{}{}:
	default:
	}
}

func (v *verifier) take() *marked {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.next
	v.next = nil
	return m
}

func (v *verifier) keep(m marked) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = m
	close(v.done)
	v.done = make(chan struct{})
}

// at waits until the digest of the mark at index, or of a later one, is there.
func (v *verifier) at(ctx context.Context, index uint64) (marked, error) {
	for {
		v.mu.Lock()
		last, done := v.last, v.done
		v.mu.Unlock()
		if last.index >= index {
			return last, nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return marked{}, ctx.Err()
		}
	}
}

// keepDigests takes the digests until ctx ends.
func (e *engine) keepDigests(ctx context.Context) {
	v := e.store.verifier
	for {
		select {
		case <-v.poked:
		case <-ctx.Done():
			return
		}
		m := v.take()
		if m == nil {
			continue
		}
		h := sha256.New()
		if _, err := m.state.WriteTo(&contextWriter{ctx, h}); err != nil {
			continue // only ctx's end
		}
		m.sum = hex.EncodeToString(h.Sum(nil))
		v.keep(*m)
		e.persistRebuilt()
	}
}

// digestHere answers the leader's question.
func (s *Store) digestHere(ctx context.Context, index uint64) digest {
	ctx, cancel := context.WithTimeout(ctx, s.times.outcome)
	defer cancel()
	d := digest{ID: s.config.NodeID, Version: s.config.Version}
	if m, err := s.verifier.at(ctx, index); err == nil {
		d.Index, d.Sum = m.index, m.sum
	}
	return d
}

// verify compares the states at every interval until ctx ends.
func (e *engine) verify(ctx context.Context) {
	defer e.store.board.Clear(conditionDisagree)
	for sleep(ctx, e.store.times.verify) {
		v, err := e.verifyOnce(ctx)
		if err != nil && ctx.Err() == nil {
			e.store.log.Warn("the servers' states were not compared; trying again", "error", err)
			continue
		}
		e.heal(ctx, v)
	}
}

// verifyOnce puts a mark into the log and asks everybody.
func (e *engine) verifyOnce(ctx context.Context) (Verdict, error) {
	data, err := state.Encode(verifyMark())
	if err != nil {
		return Verdict{}, err
	}
	index, err := e.store.proposeHere(ctx, data)
	if err != nil {
		return Verdict{}, err
	}
	var mu sync.Mutex
	var digests []digest
	var group sync.WaitGroup
	servers := e.members()
	for _, server := range servers {
		group.Go(func() {
			d := e.askDigest(ctx, server, index)
			mu.Lock()
			defer mu.Unlock()
			digests = append(digests, d)
		})
	}
	group.Wait()
	v := compare(index, servers, digests)
	e.store.metrics.verified.Set(float64(index))
	e.store.metrics.differing.Set(float64(len(v.differing())))
	return v, ctx.Err()
}

func (e *engine) askDigest(ctx context.Context, server member, index uint64) digest {
	if server.ID == e.store.config.NodeID {
		return e.store.digestHere(ctx, index)
	}
	ctx, cancel := context.WithTimeout(ctx, e.store.times.outcome)
	defer cancel()
	var d digest
	err := e.client.post(ctx, e.whereIs(server), pathDigest, jsonBody(digest{Index: index}), &d)
	if err != nil || d.ID != server.ID {
		return digest{ID: server.ID}
	}
	return d
}

// whereIs is a server's address: the gossip's first, Raft's second.
func (e *engine) whereIs(server member) string {
	if now := e.store.addressOf(server.ID); now != "" {
		return now
	}
	return server.Address
}

// heal does what a verdict asks for: a leader that differs gives the office to
// one that agrees, which then replaces what differs. Without a majority, and
// when the majority's state is not at hand, nothing is touched.
func (e *engine) heal(ctx context.Context, v Verdict) {
	s := e.store
	problem := v.Problem()
	if problem == "" {
		s.board.Clear(conditionDisagree)
		return
	}
	s.log.Error("the servers' states differ", "index", v.Index, "majority", v.Majority, "problem", problem)
	s.board.Raise(conditionDisagree, health.Error, problem)
	if v.Majority == "" {
		return
	}
	if v.of(s.config.NodeID) != Agrees {
		e.yield(ctx, v)
		return
	}
	m, err := s.verifier.at(ctx, v.Index)
	if err != nil || m.index != v.Index || m.sum != v.Majority {
		return // overtaken by another mark; the next comparison is soon
	}
	for _, server := range v.differing() {
		if err := e.replaceState(ctx, server.ID, m); err != nil && ctx.Err() == nil {
			s.log.Error("a server's state was not replaced; trying again", "server", server.Name, "error", err)
		}
	}
}

// yield hands the leadership to a voter with the majority's state.
func (e *engine) yield(ctx context.Context, v Verdict) {
	e.poll(ctx)
	to := e.view()
	to.Servers = slices.DeleteFunc(to.Servers, func(m member) bool { return v.of(m.ID) != Agrees })
	next, found := to.successor()
	if !found {
		e.store.log.Error("this leader's state is not that of the majority, and no voter that has it answers")
		return
	}
	handing, cancel := context.WithTimeout(e.net.ending, e.store.times.transfer) // ctx ends with the office
	defer cancel()
	if err := e.transfer(handing, next); err != nil {
		e.store.log.Error("this leader's state is not that of the majority, and the office was not handed over; trying again", "to", next.Name, "error", err)
		return
	}
	e.store.log.Warn("leadership handed over: this server's state is not that of the majority", "to", next.Name)
}

// replaceState sends a server the state that the majority has.
func (e *engine) replaceState(ctx context.Context, id string, m marked) error {
	i := slices.IndexFunc(e.members(), func(o member) bool { return o.ID == id })
	if i < 0 {
		return errNotServer(id)
	}
	server := e.members()[i]
	r, w := io.Pipe()
	go func() {
		_, err := fmt.Fprintf(w, "%s\n", mustJSON(digest{ID: id, Index: m.index, Sum: m.sum}))
		if err == nil {
			_, err = m.state.WriteTo(w)
		}
		w.CloseWithError(err)
	}()
	defer r.Close()
	_, err := e.client.ask(ctx, e.whereIs(server), pathRebuild, r)
	if err == nil {
		e.store.log.Warn("a server's state was replaced by the majority's", "server", server.String(), "index", m.index, "sha256", m.sum)
	}
	return err
}

// persistRebuilt makes a snapshot of a state that was replaced: the one on the
// disk may be as wrong as the state was.
func (e *engine) persistRebuilt() {
	v := e.store.verifier
	v.mu.Lock()
	wanted := v.persist
	v.mu.Unlock()
	if !wanted {
		return
	}
	err := e.raft.Snapshot().Error()
	if err != nil {
		if !errors.Is(err, raft.ErrNothingNewToSnapshot) {
			e.store.log.Warn("no snapshot of the replaced state; trying again", "error", err)
		}
		return // the next mark gives it something new
	}
	v.mu.Lock()
	v.persist = false
	v.mu.Unlock()
}
