package raftstore

import (
	"bytes"
	"errors"
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
	deposed := 0
	eventually(t, "five leaders are deposed by a heartbeat", func() error {
		leader := h.leader()
		e := leader.store.engine.Load()
		term := e.raft.CurrentTerm()
		if !e.leadsIn(term) {
			return errors.New("not the leader any more")
		}
		if e.trans.mine(term - 1) {
			t.Fatalf("it leads in term %d or a later one, and senders of the one before go on", term)
		}
		var resp raft.AppendEntriesResponse
		if err := beat(h.besides(leader)[0], leader, term+1, &resp); err != nil || !resp.Success || resp.Term != term+1 {
			return errors.Join(err, errors.New("it is not deposed"))
		}
		if e.trans.mine(term) {
			t.Fatalf("its senders go on in term %d, in which it no longer leads", term)
		}
		data, err := state.Encode(state.KV{Verb: state.Set, Entry: state.Entry{Key: "phantom", Value: []byte(newUUID())}})
		if err != nil {
			t.Fatal(err)
		}
		_, refused := leader.store.proposeHere(t.Context(), data) // as for another server, or after a look a moment before
		for index := e.raft.LastIndex(); index > 0; index-- {
			var entry raft.Log
			if err := e.logs.GetLog(index, &entry); err != nil || entry.Term <= term {
				break
			}
			if entry.Term == term+1 && bytes.Equal(entry.Data, data) { // of a later one it may be the leader
				t.Fatalf("it led in term %d, and entry %d of term %d is a write that it was given (%v)", term, index, entry.Term, refused)
			}
		}
		if deposed++; deposed < 5 {
			return errors.New("not five")
		}
		return nil
	})
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
