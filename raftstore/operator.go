package raftstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// Status is what this server knows of the consensus; it works without a
// leader and never blocks. How far the other servers are only the leader knows.
func (s *Store) Status() state.RaftStatus {
	st := state.RaftStatus{Node: s.config.Node, State: "shutdown"}
	e := s.engine.Load()
	if e == nil {
		return st
	}
	applied, _ := s.fsm.progress()
	st.State = strings.ToLower(e.raft.State().String())
	st.Term, st.LastIndex = e.raft.CurrentTerm(), e.raft.LastIndex()
	st.CommitIndex, st.AppliedIndex = e.raft.CommitIndex(), applied
	st.Stats = e.raft.Stats()
	s.mu.Lock()
	leader := s.leader
	s.mu.Unlock()
	for _, m := range e.members() {
		server := e.status(m, leader)
		st.Servers = append(st.Servers, server)
		if server.Leader {
			st.Leader = server
		}
	}
	return st
}

func (e *engine) status(m member, leader leadership) state.RaftServer {
	r := state.RaftServer{ID: m.ID, Name: m.Name, Address: m.Address, Voter: m.Voter, Leader: m.ID == leader.id}
	if m.ID == e.store.config.NodeID {
		r.LastIndex = e.raft.LastIndex()
		if contact := e.raft.LastContact(); !r.Leader && !contact.IsZero() {
			r.LastContact = time.Since(contact)
		}
		r.Known = leader.self || r.LastContact > 0
		return r
	}
	if seen, ok := e.tracker.sighting(m.ID); ok {
		r.Known, r.LastContact, r.LastIndex = true, time.Since(seen.at), seen.got.LastIndex
	}
	return r
}

// RemovePeer takes a dead server, named by ID, name or address, out of the
// configuration. It refuses, in a sentence, to remove one that is alive (it
// would come back), the leader, and one without which the voters that are up
// are no majority.
func (s *Store) RemovePeer(ctx context.Context, server string) error {
	return s.atLeader(ctx, pathRemove, target{server}, func(ctx context.Context) (uint64, error) { return s.removeHere(ctx, server) })
}

// TransferLeadership gives the leadership to a voter, named by ID, name or
// address; "" chooses one that answers and has the whole log.
func (s *Store) TransferLeadership(ctx context.Context, to string) error {
	return s.atLeader(ctx, pathTransfer, target{to}, func(ctx context.Context) (uint64, error) { return 0, s.transferHere(ctx, to) })
}

func (s *Store) atLeader(ctx context.Context, path string, t target, here func(context.Context) (uint64, error)) error {
	ctx, cancel := context.WithTimeout(ctx, s.times.hold+s.times.outcome)
	defer cancel()
	_, err := s.viaLeader(ctx, request{here: here, path: path, body: mustJSON(t), write: true})
	return err
}

// errNotServer: no server of the configuration is called so.
func errNotServer(server string) error {
	return fmt.Errorf("%w: no server of the store has the name, ID or address %q", state.ErrNotFound, server)
}

func (e *engine) find(v view, server string) (member, error) {
	for _, m := range v.Servers {
		if server != "" && (m.ID == server || m.Address == server || foldName(m.Name) == foldName(server)) {
			return m, nil
		}
	}
	return member{}, errNotServer(server)
}

// inOffice refuses what only the leader can do.
func (s *Store) inOffice() (*engine, error) {
	e := s.engine.Load()
	if e == nil || e.raft.State() != raft.Leader {
		return nil, &untouchedError{fmt.Errorf("%w: this server does not lead", state.ErrNoLeader)}
	}
	return e, nil
}

func (s *Store) removeHere(ctx context.Context, server string) (uint64, error) {
	e, err := s.inOffice()
	if err != nil {
		return 0, err
	}
	e.poll(ctx)
	e.mayLead.Lock()
	defer e.mayLead.Unlock()
	v := e.view()
	m, err := e.find(v, server)
	if err != nil {
		return 0, err
	}
	gossip, ok := v.gossip(m.ID)
	switch {
	case m.ID == v.Self:
		return 0, refuseRequest("%s is the leader: transfer the leadership first", m.Name)
	case ok && gossip.Liveness == state.Alive:
		return 0, refuseRequest("%s is alive and would be taken in again: stop it, or let it leave", m.Name)
	case m.Voter && !v.safeWithout(m):
		return 0, refuseRequest("without %s the servers that are up would be no majority any more", m)
	}
	if err := e.apply(ctx, change{changeRemove, m, "an admin asked for it"}); err != nil {
		return 0, changeError(err)
	}
	s.log.Info("membership changed", "change", string(changeRemove), "server", m.String(), "why", "an admin asked for it")
	return 0, nil
}

// refuseRequest says that a request can't be granted as things are.
func refuseRequest(format string, args ...any) error {
	return fmt.Errorf("%w: refused: "+format, append([]any{state.ErrInvalid}, args...)...)
}

// changeError says whether a failed change may have happened.
func changeError(err error) error {
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) || errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		return &untouchedError{fmt.Errorf("%w: %w", state.ErrNoLeader, err)}
	}
	return fmt.Errorf("%w: %w", state.ErrUnknownOutcome, err)
}

func (s *Store) transferHere(ctx context.Context, to string) error {
	e, err := s.inOffice()
	if err != nil {
		return err
	}
	e.poll(ctx)
	v := e.view()
	if len(v.voters()) < 2 {
		return refuseRequest("there is no other voter")
	}
	m, found := v.successor()
	if to != "" {
		if m, err = e.find(v, to); err != nil {
			return err
		}
	}
	switch {
	case to == "" && !found:
		return refuseRequest("no other voter answers")
	case m.ID == v.Self:
		return nil
	case !m.Voter:
		return refuseRequest("%s has no vote and cannot lead", m.Name)
	case !v.Reachable[m.ID]:
		return refuseRequest("%s does not answer", m.Name)
	}
	return e.transfer(ctx, m)
}

// transfer hands the leadership to a voter.
func (e *engine) transfer(ctx context.Context, to member) error {
	err := await(ctx, func() error {
		return e.raft.LeadershipTransferToServer(raft.ServerID(to.ID), raft.ServerAddress(to.Address)).Error()
	})
	if err != nil {
		return fmt.Errorf("transfer the leadership to %v: %w", to, err)
	}
	return nil
}
