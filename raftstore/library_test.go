package raftstore

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// tapped is a transport whose heartbeats the test hands to Raft, as
// raft.NetworkTransport does it: past Raft's own loop.
type tapped struct {
	*raft.InmemTransport
	heartbeat func(raft.RPC)
}

func (t *tapped) SetHeartbeatHandler(f func(raft.RPC)) { t.heartbeat = f }

// leads hands a heartbeat of fb2, which leads in the term, to Raft.
func (t *tapped) leads(term uint64) {
	answer := make(chan raft.RPCResponse, 1)
	t.heartbeat(raft.RPC{RespChan: answer, Command: &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("fb2"), Addr: []byte("fb2")}, Term: term,
	}})
	<-answer
}

// scripted is a server of the library, of which the test plays the other two.
type scripted struct {
	*raft.Raft
	own    *tapped
	log    *raft.InmemStore
	others []*raft.InmemTransport
}

func newScripted(t *testing.T) *scripted {
	t.Helper()
	config := raft.DefaultConfig()
	config.LocalID, config.LogOutput = "self", io.Discard
	config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = time.Second, time.Second, time.Second
	_, inmem := raft.NewInmemTransport("self")
	s := &scripted{own: &tapped{InmemTransport: inmem}, log: raft.NewInmemStore()}
	servers := []raft.Server{{ID: "self", Address: "self"}}
	for _, name := range []string{"fb2", "fb3"} {
		_, f := raft.NewInmemTransport(raft.ServerAddress(name))
		inmem.Connect(raft.ServerAddress(name), f)
		s.others = append(s.others, f)
		servers = append(servers, raft.Server{ID: raft.ServerID(name), Address: raft.ServerAddress(name)})
	}
	snapshots := raft.NewDiscardSnapshotStore()
	if err := raft.BootstrapCluster(config, s.log, s.log, snapshots, s.own, raft.Configuration{Servers: servers}); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.Raft, err = raft.NewRaft(config, &raft.MockFSM{}, s.log, s.log, snapshots, s.own); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		inmem.Close() // whom nobody answers any more
		_ = s.Shutdown().Error()
	})
	return s
}

// next is a message to one of the others.
func (s *scripted) next(t *testing.T) raft.RPC {
	t.Helper()
	select {
	case rpc := <-s.others[0].Consumer():
		return rpc
	case rpc := <-s.others[1].Consumer():
		return rpc
	case <-time.After(20 * time.Second):
		t.Fatal("no message for 20 s")
		return raft.RPC{}
	}
}

// scriptedFollowers are of a leader, and accept everything until it leads.
func scriptedFollowers(t *testing.T) (*raft.Raft, []*raft.InmemTransport) {
	t.Helper()
	s := newScripted(t)
	s.lead(t)
	return s.Raft, s.others
}

// lead has it elected, and its first entry on a majority.
func (s *scripted) lead(t *testing.T) {
	t.Helper()
	for s.CommitIndex() < 2 {
		accept(s.next(t))
	}
}

// Why heartbeats that change something wait for Raft's loop: of a newer leader's, that
// comes while the loop of the old one waits for work, the library makes a follower in
// the new term whose loop is still the leader's. It appends the next command in the
// term of its successor, who has another entry of that index and term. When this or
// the next one fails the library was mended.
func TestLibraryAppendsInTheTermOfItsSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScripted(t)
		s.lead(t)
		synctest.Wait() // its loop waits for work
		term := s.CurrentTerm()
		s.own.leads(term + 1)
		if s.State() != raft.Follower || s.CurrentTerm() != term+1 {
			t.Fatalf("it is %v in term %d", s.State(), s.CurrentTerm())
		}
		outcome := s.Apply([]byte("a client's"), time.Second).Error()
		last, err := s.log.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		var entry raft.Log
		if err := s.log.GetLog(last, &entry); err != nil {
			t.Fatal(err)
		}
		if entry.Type != raft.LogCommand || entry.Term != term+1 {
			t.Errorf("%v; entry %d is %v of term %d; is transport.SetHeartbeatHandler still needed?", outcome, entry.Index, entry.Type, entry.Term)
		}
	})
}

// The same with a candidate: votes of its own term make it a leader in a term that
// another has won.
func TestLibraryLeadsInATermThatAnotherHasWon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScripted(t)
		var votes []raft.RPC // under way
		for len(votes) < 2 {
			rpc := s.next(t)
			if _, ok := rpc.Command.(*raft.RequestVoteRequest); ok {
				votes = append(votes, rpc)
				continue
			}
			accept(rpc)
		}
		synctest.Wait()
		term := s.CurrentTerm()
		s.own.leads(term + 1)
		accept(votes[0])
		synctest.Wait()
		if s.State() != raft.Leader || s.CurrentTerm() != term+1 {
			t.Errorf("it is %v in term %d; is transport.SetHeartbeatHandler still needed?", s.State(), s.CurrentTerm())
		}
	})
}
