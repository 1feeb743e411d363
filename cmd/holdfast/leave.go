package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/discovery"
	"holdfast/internal/state"
	"holdfast/raftstore"
)

// removalTimeout is how long a server that left waits to be taken out of Raft.
// The leader does it as soon as it hears of the leave: some 100 ms.
const removalTimeout = 10 * time.Second

// leaver takes this node out of the cluster and then ends the agent. The
// order matters: a leader that goes without handing over, or a server that
// goes before its vote is gone, can take the majority along.
type leaver struct {
	*discovery.Agent
	store   *raftstore.Store
	replica *state.Store
	id      string
	end     context.CancelFunc
}

// Leave refuses when the servers that stay could not go on. It returns before
// the agent has ended, so that whoever asked gets the answer.
func (l leaver) Leave(ctx context.Context) error {
	servers := l.store.Status().Servers
	if _, _, known := l.store.Leader(); !known {
		return fmt.Errorf("%w: nobody can take this server out of the store; to end the agent, stop it", state.ErrNoLeader)
	}
	if err := mayLeave(l.id, servers, l.replica.Snapshot().Members()); err != nil {
		return err
	}
	if l.store.IsLeader() && len(servers) > 1 {
		if err := l.store.TransferLeadership(ctx, ""); err != nil {
			return fmt.Errorf("leave: %w; nothing was changed", err)
		}
	}
	if err := l.Agent.Leave(ctx); err != nil {
		return err
	}
	defer l.end()
	if len(servers) == 1 {
		return nil // there is nobody to take it out
	}
	return l.removed(ctx)
}

// mayLeave refuses when, of the voters that stay, no majority is up.
func mayLeave(id string, servers []state.RaftServer, members []state.Member) error {
	voters, up := 0, 0
	var down []string
	for _, s := range servers {
		if !s.Voter || s.ID == id {
			continue
		}
		voters++
		if slices.ContainsFunc(members, func(m state.Member) bool { return m.ID == s.ID && m.Liveness == state.Alive }) {
			up++
		} else {
			down = append(down, s.Name)
		}
	}
	if voters == 0 || 2*up > voters {
		return nil
	}
	return fmt.Errorf("%w: refused: without this server no majority of the voters is up; start %s first, or take it out with holdfast raft remove-peer",
		state.ErrInvalid, strings.Join(down, ", "))
}

// removed waits until this server is out of Raft's configuration.
func (l leaver) removed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removalTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for slices.ContainsFunc(l.store.Status().Servers, func(s state.RaftServer) bool { return s.ID == l.id }) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("this node left the gossip and its agent ends, but it was not taken out of the store within %v: look at holdfast raft list-peers on another server", removalTimeout)
		}
	}
	return nil
}
