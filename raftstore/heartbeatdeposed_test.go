package raftstore

import (
	"context"
	"testing"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// The same with all that stands between: certificates, the log of a leader that runs
// ahead, the disk. A write that a follower brings is not asked whether this server
// leads before Raft is.
func TestWriteAtADeposedLeaderIsRefused(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	for deposed := 0; deposed < 5; {
		leader := h.leader()
		successor := h.besides(leader)[0]
		e := leader.store.engine.Load()
		term := e.raft.CurrentTerm()
		resp := new(raft.AppendEntriesResponse)
		if err := beat(successor, leader, term+1, resp); err != nil {
			t.Fatal(err)
		}
		if !resp.Success || resp.Term != term+1 {
			continue // somebody else was elected meanwhile
		}
		deposed++
		data, err := state.Encode(state.KV{Verb: state.Set, Entry: state.Entry{Key: "phantom", Value: []byte("1")}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		_, err = leader.store.proposeHere(ctx, data) // as for another server, or after a look a moment before
		cancel()
		if err == nil {
			t.Fatal("a write by who does not lead is acknowledged")
		}
		for index := e.raft.LastIndex(); index > 0; index-- {
			var entry raft.Log
			if err := e.logs.GetLog(index, &entry); err != nil || entry.Term <= term {
				break
			}
			if entry.Type == raft.LogCommand && entry.Term == term+1 {
				t.Fatalf("it led in term %d, and entry %d of term %d is a write that it was given", term, index, entry.Term)
			}
		}
	}
}

// beat sends a heartbeat to a server, as if from had been elected in the term.
func beat(from, to *host, term uint64, resp *raft.AppendEntriesResponse) error {
	e := from.store.engine.Load()
	id := raft.ServerID(to.id)
	return e.trans.NetworkTransport.AppendEntries(id, e.trans.at(id, raft.ServerAddress(to.address.String())), &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(from.id), Addr: []byte(from.address.String())},
		Term:      term,
	}, resp)
}
