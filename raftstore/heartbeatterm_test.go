package raftstore

import (
	"log/slog"
	"runtime"
	"sync"
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
	mute  atomic.Bool // the peers do not answer for now
	log   *heldLog

	mu  sync.Mutex
	got []*raft.AppendEntriesRequest // what the peers were sent

	unanswered []raft.RPC
}

// heldLog holds up who first reads an entry, from when it is told to until it is let go.
type heldLog struct {
	raft.LogStore
	index atomic.Uint64 // 0: nobody
	held  chan struct{}
	letGo chan struct{}
}

func (l *heldLog) GetLog(index uint64, entry *raft.Log) error {
	if index != 0 && l.index.CompareAndSwap(index, 0) {
		l.held <- struct{}{}
		<-l.letGo
	}
	return l.LogStore.GetLog(index, entry)
}

func newPlayedPeers(t *testing.T) *playedPeers {
	t.Helper()
	w, ended, end := newWires(), make(chan struct{}), make(chan struct{})
	p := &playedPeers{t: t, fsm: &raft.MockFSM{}}
	var e engine // of which only what asks about Raft is used
	for _, address := range []string{"fb2", "fb3"} {
		peer := w.transport(address, nil)
		p.peers = append(p.peers, peer)
		go func() {
			for {
				select {
				case rpc := <-peer.Consumer():
					if args, ok := rpc.Command.(*raft.AppendEntriesRequest); ok {
						p.mu.Lock()
						p.got = append(p.got, args)
						p.mu.Unlock()
					}
					if !p.mute.Load() {
						accept(rpc)
						continue
					}
					p.mu.Lock()
					p.unanswered = append(p.unanswered, rpc)
					p.mu.Unlock()
				case <-end:
					return
				}
			}
		}()
	}
	disk := raft.NewInmemStore()
	log := newAheadLog(disk, e.appends, func() {}, ended)
	p.terms = &termStable{StableStore: disk, raft: e.running.Load}
	p.trans = w.transport("fb1", func(uint64, raft.ServerID) (raft.ServerAddress, bool) { return "", false })
	p.trans.ahead, p.trans.beside, p.trans.leads, p.trans.patience = log, p.terms.beside, e.leadsIn, time.Second
	times, rc := Config{Timing: 1}.timings(), raft.DefaultConfig()
	rc.LocalID = "id1"
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout, rc.CommitTimeout = times.heartbeat, times.heartbeat, times.lease, times.commit
	rc.Logger = newRaftLog(slog.New(slog.DiscardHandler), new(atomic.Bool))
	var err error
	p.log = &heldLog{LogStore: log, held: make(chan struct{}), letGo: make(chan struct{})}
	if p.raft, err = raft.NewRaft(rc, p.fsm, p.log, p.terms, raft.NewInmemSnapshotStore(), p.trans); err != nil {
		t.Fatal(err)
	}
	e.running.Store(p.raft)
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
	for deadline := time.Now().Add(soon); p.raft.State() != raft.Leader; time.Sleep(time.Millisecond) { // in virtual time
		if time.Now().After(deadline) {
			t.Fatalf("no leader after %v", soon)
		}
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
	args.Term = term
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
		if done, ok := p.terms.beside(term); ok {
			done()
			t.Error("the leader itself")
		}
		if done, ok := p.terms.beside(term + 1); ok {
			done()
			t.Error("a leader, by its successor")
		}
		p.send(term+1, &raft.AppendEntriesRequest{})
		if done, ok := p.terms.beside(term + 2); ok {
			done()
			t.Error("a follower, by the next leader")
		}
		if done, ok := p.terms.beside(term); ok {
			done()
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
		for _, of := range []uint64{term + 1, term + 2} { // which is written, and Raft does not know of it yet
			if done, ok := p.terms.beside(of); ok {
				done()
				t.Errorf("a follower, in term %d, between the write of term %d and Raft's memory of it", of, term+2)
			}
		}
	})
}

// What a sender of a deposed leader finds in the log is the successor's, from one
// entry to the next; it may be of a later term or of an earlier one (mutation: mine is
// always true).
func TestADeposedLeaderSendsNoEntryOfItsSuccessor(t *testing.T) {
	for name, successors := range map[string]func(last, term uint64) (prev uint64, entries []*raft.Log){
		"of a later term": func(last, term uint64) (uint64, []*raft.Log) {
			return last, entriesOf(last+1, last+2, term+1)
		},
		"of an earlier term": func(last, term uint64) (uint64, []*raft.Log) {
			return 1, append(entriesOf(2, last+2, term-1), entriesOf(last+3, last+3, term+1)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { sendsNothingOfAnother(t, successors) })
		})
	}
}

func sendsNothingOfAnother(t *testing.T, successors func(last, term uint64) (prev uint64, entries []*raft.Log)) {
	t.Helper()
	p := newPlayedPeers(t)
	term, last := p.raft.CurrentTerm(), p.raft.LastIndex()
	p.mute.Store(true)
	p.raft.Apply([]byte("sent"), time.Second)
	synctest.Wait()
	p.log.index.Store(last + 2)
	p.raft.Apply([]byte("being sent"), time.Second)
	<-p.log.held // behind it is the entry before
	prev, entries := successors(last, term)
	var before raft.Log
	if err := p.log.GetLog(prev, &before); err != nil {
		t.Fatal(err)
	}
	p.send(term+1, &raft.AppendEntriesRequest{PrevLogEntry: prev, PrevLogTerm: before.Term, Entries: entries})
	close(p.log.letGo)
	p.mu.Lock()
	for _, rpc := range p.unanswered { // a peer takes the next message when it has answered
		accept(rpc)
	}
	p.mu.Unlock()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, args := range p.got {
		for _, entry := range args.Entries {
			if entry.Term != term && entry.Index > last {
				t.Errorf("in term %d, behind entry %d of term %d, it sent entry %d of term %d", args.Term, args.PrevLogEntry, args.PrevLogTerm, entry.Index, entry.Term)
			}
		}
	}
}
