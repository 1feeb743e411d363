package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
	"holdfast/lab/stall"
)

// wires connect transports in one process, in virtual time, and can be cut.
type wires struct {
	mu    sync.Mutex
	ends  map[string]*wireEnd // by address
	cut   map[string]bool
	conns map[net.Conn][2]string
}

// wireEnd is one server's raft.StreamLayer.
type wireEnd struct {
	*wires
	address  string
	arriving chan net.Conn
	done     chan struct{}
	once     sync.Once
	dialled  atomic.Value // the last address
}

func newWires() *wires {
	return &wires{ends: map[string]*wireEnd{}, cut: map[string]bool{}, conns: map[net.Conn][2]string{}}
}

func (w *wires) end(address string) *wireEnd {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends[address] = &wireEnd{wires: w, address: address, arriving: make(chan net.Conn), done: make(chan struct{})}
	return w.ends[address]
}

// set cuts a server off, or connects it again.
func (w *wires) set(address string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[address] = cut
	for conn, ends := range w.conns {
		if w.cut[ends[0]] || w.cut[ends[1]] {
			conn.Close()
			delete(w.conns, conn)
		}
	}
}

func (e *wireEnd) Dial(address raft.ServerAddress, _ time.Duration) (net.Conn, error) {
	_, target, _ := strings.Cut(string(address), "@")
	e.dialled.Store(target)
	e.mu.Lock()
	to := e.ends[target]
	if to == nil || e.cut[target] || e.cut[e.address] {
		e.mu.Unlock()
		return nil, &dialError{to: target, err: errors.New("the cable is out")}
	}
	ours, theirs := net.Pipe()
	e.conns[ours] = [2]string{e.address, target}
	e.mu.Unlock()
	select {
	case to.arriving <- theirs:
		return ours, nil
	case <-to.done:
		return nil, &dialError{to: target, err: net.ErrClosed}
	}
}

func (e *wireEnd) Accept() (net.Conn, error) {
	select {
	case conn := <-e.arriving:
		return conn, nil
	case <-e.done:
		return nil, net.ErrClosed
	}
}

func (e *wireEnd) Close() error {
	e.once.Do(func() { close(e.done) })
	return nil
}

func (e *wireEnd) Addr() net.Addr { return wireAddr(e.address) }

type wireAddr string

func (wireAddr) Network() string  { return "wire" }
func (a wireAddr) String() string { return string(a) }

func (w *wires) transport(address string, pursues func(uint64, raft.ServerID) (raft.ServerAddress, bool)) *transport {
	return &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: w.end(address), MaxPool: 3, Timeout: 2 * time.Second, Logger: newRaftLog(slog.New(slog.DiscardHandler), new(atomic.Bool)),
		}),
		locate: func(string) string { return "" }, pursues: pursues,
	}
}

// appendTo calls AppendEntries and tells how long it took.
func appendTo(t *transport, address string, args *raft.AppendEntriesRequest) (time.Duration, error) {
	start := time.Now()
	err := t.AppendEntries("id2", raft.ServerAddress(address), args, new(raft.AppendEntriesResponse))
	return time.Since(start), err
}

func TestEntriesAreBroughtUntilNobodyPursuesThem(t *testing.T) {
	entry := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 7, PrevLogTerm: 3}
	for name, c := range map[string]struct {
		args     *raft.AppendEntriesRequest
		pursues  func(start time.Time) (raft.ServerAddress, bool)
		at, most time.Duration
		wantErr  bool
	}{
		"the server comes back after 15 s": {entry, func(time.Time) (raft.ServerAddress, bool) { return "fb2", true }, 15 * time.Second, 16 * time.Second, false},
		"it comes back at another address": {entry, func(start time.Time) (raft.ServerAddress, bool) {
			if time.Since(start) < 5*time.Second {
				return "fb2", true
			}
			return "fb2moved", true
		}, 5 * time.Second, 6 * time.Second, false},
		"the office, or the server's place in it, is lost": {entry, func(start time.Time) (raft.ServerAddress, bool) {
			return "fb2", time.Since(start) < 5*time.Second
		}, 5 * time.Second, 5*time.Second + 2*retryDial, true},
		"a heartbeat is not patient": {&raft.AppendEntriesRequest{Term: 3}, func(time.Time) (raft.ServerAddress, bool) { return "fb2", true }, 0, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWires()
				start := time.Now()
				leader := w.transport("fb1", func(of uint64, id raft.ServerID) (raft.ServerAddress, bool) {
					if of != 3 || id != "id2" {
						t.Errorf("asked for %s in term %d", id, of)
					}
					return c.pursues(start)
				})
				end := make(chan struct{})
				all := []*transport{leader}
				for _, address := range []string{"fb2", "fb2moved"} {
					follower := w.transport(address, nil)
					all = append(all, follower)
					go func() {
						for {
							select {
							case rpc := <-follower.Consumer():
								rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
							case <-end:
								return
							}
						}
					}()
				}
				w.set("fb2", true)
				back := time.AfterFunc(15*time.Second, func() { w.set("fb2", false) })
				defer back.Stop()
				took, err := appendTo(leader, "fb2", c.args)
				if (err != nil) != c.wantErr || took < c.at || took > c.most {
					t.Errorf("%v after %v; want it after %v to %v, an error: %v", err, took, c.at, c.most, c.wantErr)
				}
				close(end)
				for _, tr := range all {
					tr.Close()
					tr.CloseStreams()
				}
			})
		})
	}
}

// virtualServer is Raft with our transport, in virtual time.
type virtualServer struct {
	engine
	address string
	fsm     *raft.MockFSM
}

func newVirtualServers(t *testing.T, w *wires, n int) []*virtualServer {
	var servers []*virtualServer
	var c raft.Configuration
	for i := range n {
		s := &virtualServer{address: fmt.Sprint("fb", i+1), fsm: &raft.MockFSM{}}
		s.trans = w.transport(s.address, s.pursues)
		servers = append(servers, s)
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(fmt.Sprint("id", i+1)), Address: raft.ServerAddress(s.address)})
	}
	times := Config{Timing: 1}.timings()
	for i, s := range servers {
		rc := raft.DefaultConfig()
		rc.LocalID = c.Servers[i].ID
		rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout, rc.CommitTimeout = times.heartbeat, times.heartbeat, times.lease, times.commit
		rc.Logger = newRaftLog(slog.New(slog.DiscardHandler), new(atomic.Bool))
		disk := raft.NewInmemStore()
		var err error
		if s.raft, err = raft.NewRaft(rc, s.fsm, disk, disk, raft.NewInmemSnapshotStore(), s.trans); err != nil {
			t.Fatal(err)
		}
		s.running.Store(s.raft)
		if err := s.raft.BootstrapCluster(c).Error(); err != nil {
			t.Fatal(err)
		}
	}
	return servers
}

// TestServerThatWasAwayHasTheLogWithinASecond: with Raft's own pauses it
// would wait for up to 10 s.
func TestServerThatWasAwayHasTheLogWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires()
		servers := newVirtualServers(t, w, 3)
		time.Sleep(3 * time.Second) // virtual: an election
		var leader, away *virtualServer
		for _, s := range servers {
			if s.raft.State() == raft.Leader {
				leader = s
			} else {
				away = s
			}
		}
		if leader == nil {
			t.Fatal("no leader after 3 s")
		}
		w.set(away.address, true)
		for i := range 15 {
			if err := leader.raft.Apply(fmt.Append(nil, i), time.Second).Error(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if away.raft.LastIndex() >= leader.raft.LastIndex() {
			t.Fatal("the cut had no effect")
		}
		w.set(away.address, false)
		time.Sleep(time.Second)
		if got, want := away.raft.LastIndex(), leader.raft.LastIndex(); got != want || leader.raft.State() != raft.Leader {
			t.Errorf("a second after it is back the server has %d of %d entries; the leader is now %v", got, want, leader.raft.State())
		}
		// The end: nobody waits for a server that is gone.
		w.set(away.address, true)
		time.Sleep(5 * time.Second)
		for _, s := range servers {
			start := time.Now()
			if err := s.raft.Shutdown().Error(); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("%s took %v to stop", s.address, took)
			}
			s.trans.Close()
			s.trans.CloseStreams()
		}
	})
}

func TestNobodyIsDialledAfterTheEnd(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ending, cancel := context.WithCancel(t.Context())
	n := &network{
		ending: ending, cancel: cancel, times: timings{transport: time.Hour},
		self: func() hello { return hello{} }, open: map[*stream]struct{}{},
	}
	failed := make(chan error, 1)
	go func() {
		_, err := n.dial(context.Background(), kindRaft, silent.Addr().String(), "", "")
		failed <- err
	}()
	if _, err := silent.Accept(); err != nil { // and then nothing, as a server that hangs
		t.Fatal(err)
	}
	n.hangUp()
	select {
	case err := <-failed:
		if err == nil {
			t.Error("connected to a server that says nothing")
		}
	case <-time.After(soon):
		t.Error("still dialling after the end")
	}
	if len(n.open) > 0 {
		t.Errorf("connections are left: %v", n.open)
	}
}

// unreadable is age's answer about a state that no leader confirmed.
const unreadable = time.Duration(1<<63 - 1)

func age(snap *state.Snapshot) time.Duration {
	if a, ok := snap.Age(time.Now()); ok {
		return a
	}
	return unreadable
}

// A follower hears the heartbeats of its leader also while it gets no entry.
func TestHeartbeatsAloneMakeNoStateFresh(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.hung = 0
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	leader := h.leader()
	behind := h.besides(leader)[0]
	behind.stop()
	leader.put("k", "v")
	hang := make(chan struct{})
	release := sync.OnceFunc(func() { close(hang) })
	t.Cleanup(release)
	var disk *stuckLog
	behind.disk = func(l raft.LogStore) raft.LogStore {
		disk = &stuckLog{LogStore: l, hang: hang}
		return disk
	}
	behind.start()
	honest := func() (*state.Snapshot, error) {
		snap := behind.state.Snapshot()
		entry, _ := snap.Entry(nil, "k")
		if entry == nil && age(snap) != unreadable {
			t.Fatalf("the state is said to be %v old, and lacks what was acknowledged before the start", age(snap))
		}
		if age(snap) == unreadable {
			return snap, errors.New("not fresh")
		}
		return snap, nil
	}
	r := behind.store.engine.Load().raft
	first := time.Time{}
	eventually(t, "a second of heartbeats", func() error {
		honest()
		if first.IsZero() {
			first = r.LastContact()
		}
		if first.IsZero() || r.LastContact().Sub(first) < time.Second {
			return errors.New("not yet")
		}
		return nil
	})
	disk.set(nil)
	release()
	eventually(t, "a fresh state", func() error { _, err := honest(); return err })

	again := make(chan struct{})
	releaseAgain := sync.OnceFunc(func() { close(again) })
	t.Cleanup(releaseAgain)
	disk.set(again)
	leader.put("k", "w")
	eventually(t, "an ageing state in contact with the leader", func() error {
		snap := behind.state.Snapshot()
		if entry, _ := snap.Entry(nil, "k"); string(entry.Value) == "w" {
			t.Fatal("the disk does not hang")
		}
		if age(snap) < time.Second || time.Since(r.LastContact()) > time.Second {
			return fmt.Errorf("%v old, last contact %v ago", age(snap), time.Since(r.LastContact()))
		}
		return nil
	})
	disk.set(nil)
	releaseAgain()
	h.everywhere("k", "w")
}

// Writers go on while a snapshot is restored: each learns the truth, and the
// replicas agree.
func TestRestoreWhileWritesGoOn(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm // as in TestRestoreThroughAFollowerReachesAllServers
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	follower := h.follower()
	follower.put("k", "old")
	backup := saved(t, follower)
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	var restored atomic.Bool
	var mu sync.Mutex
	var after []string // acknowledged, and begun after the restore
	for w, o := range h.running() {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key, late := fmt.Sprintf("w%d/%d", w, i), restored.Load()
				_, err := o.tryPut(key, "v")
				if err != nil && !errors.Is(err, state.ErrUnknownOutcome) && !errors.Is(err, state.ErrNoLeader) {
					t.Errorf("write during a restore: %v", err)
				}
				if err == nil && late {
					mu.Lock()
					after = append(after, key)
					mu.Unlock()
				}
			}
		})
	}
	eventually(t, "writes", func() error {
		if follower.get("w0/5") == "" || follower.get("w1/5") == "" {
			return errors.New("none yet")
		}
		return nil
	})
	if err := follower.store.RestoreSnapshot(t.Context(), bytes.NewReader(backup)); err != nil {
		t.Fatal(err)
	}
	restored.Store(true)
	if follower.get("w0/5") != "" || follower.get("k") != "old" {
		t.Error("the snapshot was not restored on the server that asked")
	}
	eventually(t, "writes after the restore", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(after) < 20 {
			return fmt.Errorf("%d", len(after))
		}
		return nil
	})
	cancel()
	writers.Wait()
	for _, o := range h.running() {
		o.barrier()
		for _, key := range after {
			if o.get(key) != "v" {
				t.Errorf("%s lost the acknowledged %s", o.name, key)
			}
		}
		if o.get("w0/5") != "" {
			t.Errorf("%s has what the restore replaced", o.name)
		}
	}
}

// The disk hangs for good: the process must still come to its end.
func TestServerWhoseDiskHangsStops(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.hung = 0
	machine := stall.Test(t, t.TempDir())
	var disk *stuckLog
	victim := h.all["fb1"]
	victim.disk = func(l raft.LogStore) raft.LogStore {
		disk = &stuckLog{LogStore: l}
		return disk
	}
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	hang := make(chan struct{})
	defer close(hang)
	disk.set(hang)
	outcome := make(chan error, 1)
	go func() { // meets the disk, as leader or as follower
		_, err := victim.tryPut("k", "v")
		outcome <- err
	}()
	eventually(t, "the disk is noticed", func() error {
		for _, c := range victim.board.Conditions() {
			if c.Name == conditionDisk {
				return nil
			}
		}
		return errors.New("no condition")
	})
	start := time.Now()
	victim.stop()
	t.Logf("stopped after %v", time.Since(start))
	machine.Judge(t, "the stop", stopTimeout, start, time.Now())
	<-outcome
	h.running()[0].put("after", "1")
}
