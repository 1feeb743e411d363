package raftstore

import (
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// playedPeers is a leader in virtual time, with the log and the stable store that
// an engine gives it, and two followers that the test plays.
type playedPeers struct {
	t     *testing.T
	raft  *raft.Raft
	fsm   *raft.MockFSM
	terms *termStable
	trans *transport
	peers []*transport
}

func newPlayedPeers(t *testing.T) *playedPeers {
	t.Helper()
	w, ended, end := newWires(), make(chan struct{}), make(chan struct{})
	p := &playedPeers{t: t, fsm: &raft.MockFSM{}}
	var running atomic.Pointer[raft.Raft]
	for _, address := range []string{"fb2", "fb3"} {
		peer := w.transport(address, nil)
		p.peers = append(p.peers, peer)
		go func() {
			for {
				select {
				case rpc := <-peer.Consumer():
					accept(rpc)
				case <-end:
					return
				}
			}
		}()
	}
	disk := raft.NewInmemStore()
	log := newAheadLog(disk, func() bool { r := running.Load(); return r != nil && r.State() == raft.Leader }, func() {}, ended)
	p.terms = &termStable{StableStore: disk, raft: running.Load}
	p.trans = w.transport("fb1", func(uint64, raft.ServerID) (raft.ServerAddress, bool) { return "", false })
	p.trans.ahead, p.trans.beside = log, p.terms.beside
	times, rc := Config{Timing: 1}.timings(), raft.DefaultConfig()
	rc.LocalID = "id1"
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout, rc.CommitTimeout = times.heartbeat, times.heartbeat, times.lease, times.commit
	rc.Logger = newRaftLog(slog.New(slog.DiscardHandler), new(atomic.Bool))
	var err error
	if p.raft, err = raft.NewRaft(rc, p.fsm, log, p.terms, raft.NewInmemSnapshotStore(), p.trans); err != nil {
		t.Fatal(err)
	}
	running.Store(p.raft)
	t.Cleanup(func() {
		close(ended)
		if err := p.raft.Shutdown().Error(); err != nil {
			t.Error(err)
		}
		close(end)
		log.close()
		for _, tr := range append(p.peers, p.trans) {
			tr.Close()
			tr.CloseStreams()
		}
	})
	servers := []raft.Server{{ID: "id1", Address: "fb1"}, {ID: "id2", Address: "fb2"}, {ID: "id3", Address: "fb3"}}
	if err := p.raft.BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		t.Fatal(err)
	}
	for p.raft.State() != raft.Leader {
		time.Sleep(time.Millisecond)
	}
	if err := p.raft.Apply([]byte("before"), time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return p
}

// send has fb2 send a message in a term, as its leader.
func (p *playedPeers) send(term uint64, args *raft.AppendEntriesRequest) {
	p.t.Helper()
	args.RPCHeader = raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("id2"), Addr: []byte("fb2")}
	args.Term, args.Leader = term, []byte("fb2")
	var resp raft.AppendEntriesResponse
	if err := p.peers[0].NetworkTransport.AppendEntries("id1", "id1@fb1", args, &resp); err != nil || !resp.Success || resp.Term != term {
		p.t.Fatalf("%+v in term %d: %+v, %v", args, term, resp, err)
	}
}

// A leader that was stopped, or cut off, hears of its successor first by a
// heartbeat. Were that taken up beside its loop (mutation: SetHeartbeatHandler
// hands all to Raft), it would append what it is given next in the successor's
// term, and keep it where the successor has another entry of that term.
func TestDeposedLeaderAppendsNothingInTheTermOfItsSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlayedPeers(t)
		term, last := p.raft.CurrentTerm(), p.raft.LastIndex()
		p.send(term+1, &raft.AppendEntriesRequest{})
		if err := p.raft.Apply([]byte("of the deposed leader"), time.Second).Error(); err != raft.ErrNotLeader {
			t.Errorf("the deposed leader took a write: %v", err)
		}
		first := &raft.Log{Index: last + 1, Term: term + 1, Type: raft.LogNoop}
		p.send(term+1, &raft.AppendEntriesRequest{PrevLogEntry: last, PrevLogTerm: term, Entries: []*raft.Log{first}})
		p.send(term+1, &raft.AppendEntriesRequest{PrevLogEntry: last + 1, PrevLogTerm: term + 1, LeaderCommitIndex: last + 1})
		synctest.Wait()
		for _, applied := range p.fsm.Logs()[1:] {
			t.Errorf("it applied as committed what nobody else has: %q", applied)
		}
	})
}

// A follower answers the heartbeats of its leader beside Raft's own goroutine, and
// that goroutine begins no term meanwhile (mutations: no look at the state, at the
// term; a term that is written while a heartbeat is taken up).
func TestHeartbeatIsTakenUpBesideRaftOnlyWhereItChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlayedPeers(t)
		term := p.raft.CurrentTerm()
		if _, ok := p.terms.beside(term); ok {
			t.Error("the leader itself")
		}
		if _, ok := p.terms.beside(term + 1); ok {
			t.Error("a leader, by its successor")
		}
		p.send(term+1, &raft.AppendEntriesRequest{})
		if _, ok := p.terms.beside(term + 2); ok {
			t.Error("a follower, by the next leader")
		}
		if _, ok := p.terms.beside(term); ok {
			t.Error("a follower, by a former leader")
		}
		done, ok := p.terms.beside(term + 1)
		if !ok {
			t.Fatal("not the follower by its leader")
		}
		if err := p.terms.SetUint64([]byte(keyTerm), term+1); err != nil { // what Raft does if it became a candidate
			t.Error(err)
		}
		began := make(chan error)
		go func() { began <- p.terms.SetUint64([]byte(keyTerm), term+2) }()
		for { // until another term is about to begin: then no heartbeat is taken up any more
			also, ok := p.terms.beside(term + 1)
			if !ok {
				break
			}
			also()
			runtime.Gosched()
		}
		if kept, err := p.terms.GetUint64([]byte(keyTerm)); kept != term+1 || err != nil {
			t.Errorf("term %d, %v, began while a heartbeat was taken up", kept, err)
		}
		done()
		if err := <-began; err != nil {
			t.Error(err)
		}
		if kept, err := p.terms.GetUint64([]byte(keyTerm)); kept != term+2 || err != nil {
			t.Errorf("term %d, %v after the heartbeat", kept, err)
		}
	})
}
