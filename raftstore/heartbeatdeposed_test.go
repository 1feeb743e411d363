package raftstore

import (
	"testing"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// The same with all that stands between: certificates, the log of a leader that
// runs ahead, the disk. A write that a follower brings is not asked whether this
// server leads before Raft is.
func TestWriteAtADeposedLeaderIsRefused(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	leader := h.leader()
	leader.put("k", "before")
	e := leader.store.engine.Load()
	successor := h.besides(leader)[0].store.engine.Load()
	command, err := state.Encode(state.KV{Verb: state.Set, Entry: state.Entry{Key: "k", Value: []byte("of the deposed leader")}})
	if err != nil {
		t.Fatal(err)
	}
	term, last := e.raft.CurrentTerm(), e.raft.LastIndex()
	args := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(successor.store.config.NodeID), Addr: []byte(successor.advertise)},
		Term:      term + 1, Leader: []byte(successor.advertise),
	}
	var resp raft.AppendEntriesResponse
	if err := successor.trans.AppendEntries(raft.ServerID(leader.id), raft.ServerAddress(e.advertise), args, &resp); err != nil || !resp.Success {
		t.Fatalf("the heartbeat of the successor: %+v, %v", resp, err)
	}
	index, err := leader.store.proposeHere(t.Context(), command)
	if !untouched(err) {
		t.Errorf("entry %d, %v; want it refused", index, err)
	}
	for i := last + 1; ; i++ { // the leader's own duties may have written, too
		var entry raft.Log
		if e.logs.GetLog(i, &entry) != nil {
			break
		}
		if entry.Term == term+1 && entry.Type == raft.LogCommand {
			t.Errorf("it appended entry %d in term %d, which is another's: %q", i, entry.Term, entry.Data)
		}
	}
}
