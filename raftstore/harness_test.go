package raftstore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
	"holdfast/internal/peer"
	"holdfast/internal/state"
	"holdfast/lab/stall"
)

// TestMain lets more tests run at once than there are processors: nearly all
// of them wait for elections most of the time.
func TestMain(m *testing.M) {
	if os.Getenv(powerEnv) != "" {
		os.Exit(runPowered(os.Stderr))
	}
	flag.Parse()
	parallel := flag.Lookup("test.parallel")
	if parallel.Value.String() == parallel.DefValue {
		if err := parallel.Value.Set("4"); err != nil {
			panic(err)
		}
	}
	m.Run()
}

// hosts is a cluster of servers on loopback with certificates, and a gossip
// that the test plays: after every start, kill and wipe each server's state is
// told what its gossip would see.
type hosts struct {
	t       *testing.T
	ca      string
	cluster string
	voters  int
	timing  float64       // 2 unless a test is about times: the machine may be busy
	commit  time.Duration // of Raft, and linger, if a test needs other ones
	hung    time.Duration // until a write hangs: long, for disks that stand still are few tests' matter; 0: as in production
	order   []string
	mu      sync.Mutex
	all     map[string]*host
}

// host is one server and its disk.
type host struct {
	hosts   *hosts
	name    string
	dir     string
	pki     string
	address netip.AddrPort
	id      string

	// Of the running server; nil while it is down.
	store  *Store
	state  *state.Store
	board  *health.Board
	log    *logBuffer
	cancel context.CancelFunc
	done   chan error

	disk      func(raft.LogStore) raft.LogStore
	wire      wire
	look      func(string) look
	verify    time.Duration  // between two comparisons of the states; as in production when 0
	marked    *atomic.Uint64 // entry of the last mark that the state has
	clusterID string         // as announced
	absent    state.Liveness
	feature   int // level that the program reads; as in production when 0
}

// newHosts makes servers fb1..fbN, all down. The test runs beside others: it
// mostly waits.
func newHosts(t *testing.T, servers, voters int) *hosts {
	t.Helper()
	t.Parallel()
	return newHostsAlone(t, servers, voters)
}

func newHostsAlone(t *testing.T, servers, voters int) *hosts {
	t.Helper()
	h := &hosts{t: t, ca: filepath.Join(t.TempDir(), "ca"), cluster: "foobar", voters: voters, timing: 2, hung: soon, all: map[string]*host{}}
	if err := peer.Init(h.ca, h.cluster); err != nil {
		t.Fatal(err)
	}
	for i := range servers {
		h.add(fmt.Sprintf("fb%d", i+1))
	}
	t.Cleanup(h.stopAll)
	return h
}

func (h *hosts) add(name string) *host {
	h.t.Helper()
	one := &host{hosts: h, name: name, dir: h.t.TempDir(), pki: filepath.Join(h.t.TempDir(), name), address: freePort(h.t), id: newUUID()}
	err := peer.Issue(h.ca, one.pki, peer.Request{Identity: peer.Identity{Name: name, Role: peer.RoleServer}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.order = append(h.order, name)
	h.all[name] = one
	return one
}

// freePort finds an address of its own on loopback: nothing else binds there,
// neither a test beside this one nor an outgoing connection.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	for range 100 {
		ip := netip.AddrFrom4([4]byte{127, byte(16 + rand.N(200)), byte(rand.N(256)), byte(1 + rand.N(254))})
		address := netip.AddrPortFrom(ip, DefaultPort)
		l, err := net.Listen("tcp", address.String())
		if err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no address on loopback is free")
	return netip.AddrPort{}
}

func (o *host) config() Config {
	trust, err := peer.Load(o.pki)
	if err != nil {
		o.hosts.t.Fatal(err)
	}
	return Config{
		Node: o.name, NodeID: o.id, DataDir: o.dir, Listen: o.address, Cluster: o.hosts.cluster,
		Servers: slices.Clone(o.hosts.order), Voters: o.hosts.voters, Timing: o.hosts.timing, Trust: trust, Announce: o.announced, Feature: o.feature,
	}
}

func (o *host) announced(id string) {
	o.hosts.mu.Lock()
	o.clusterID = id
	o.hosts.mu.Unlock()
	o.hosts.gossip()
}

// start boots a server; change may alter its configuration.
func (o *host) start(change ...func(*Config)) *host {
	o.hosts.t.Helper()
	c := o.config()
	for _, f := range change {
		f(&c)
	}
	log := &logBuffer{}
	replica, board := state.New(), health.NewBoard(time.Now, nil, nil)
	store, err := New(c, replica, Deps{
		Log:     slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", o.name),
		Metrics: prometheus.NewPedanticRegistry(), Board: board,
	})
	if err != nil {
		o.hosts.t.Fatal(err)
	}
	store.disk = o.disk
	store.wire = o.wire
	if o.look != nil {
		store.look = o.look
	}
	if o.verify > 0 {
		store.times.verify = o.verify
	}
	if o.hosts.commit > 0 {
		store.times.commit, store.times.linger = o.hosts.commit, o.hosts.commit
	}
	if o.hosts.hung > 0 {
		store.times.disk = o.hosts.hung
	}
	marked := new(atomic.Uint64)
	store.fsm.mark = func(index uint64, s *state.Snapshot) {
		store.verifier.mark(index, s)
		marked.Store(index)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	o.hosts.mu.Lock()
	o.store, o.state, o.board, o.log, o.cancel, o.done, o.absent, o.marked = store, replica, board, log, cancel, done, "", marked
	o.hosts.mu.Unlock()
	go func() { done <- store.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		done <- err
		if !closed(ready) { // else it ended since, which may be what the test is about
			o.hosts.t.Fatalf("%s: %v", o.name, err)
		}
	case <-time.After(soon):
		o.hosts.t.Fatalf("%s is not ready after %v", o.name, soon)
	}
	o.hosts.gossip()
	return o
}

func (o *host) up() bool { return o.store != nil }

// stop ends a server in an orderly way.
func (o *host) stop() {
	o.hosts.t.Helper()
	o.cancel()
	o.wait()
}

// wait waits for the end of Run, for which the agent gives stopTimeout too
// (run.Group.Grace). The hand-over and the requests under way, which come first,
// have more where the test's timing is slower.
func (o *host) wait() {
	o.hosts.t.Helper()
	began, tell := time.Now(), o.hosts.t.Errorf
	machine, err := stall.Start(filepath.Dir(o.hosts.ca))
	if err != nil {
		o.hosts.t.Fatal(err)
	}
	select {
	case err = <-o.done:
	case <-time.After(soon):
		err, tell = errors.New("it does not stop"), o.hosts.t.Fatalf
	}
	bound := stopTimeout + o.store.times.transfer + o.store.times.heartbeat
	machine.Judge(o.hosts.t, o.name+"'s stop", bound, began, time.Now())
	if err := errors.Join(err, machine.Close()); err != nil {
		tell("%s: Run: %v; goroutines:\n%s", o.name, err, stacks())
	}
	o.down(state.Failed)
}

// kill ends a server as kill -9 does for the others: its connections break
// first, so that it can neither hand over nor say goodbye.
func (o *host) kill() {
	o.hosts.t.Helper()
	o.store.engine.Load().net.stop()
	o.cancel()
	o.wait()
}

func (o *host) down(as state.Liveness) {
	o.hosts.mu.Lock()
	o.store, o.absent = nil, as
	o.hosts.mu.Unlock()
	o.hosts.gossip()
}

// wipe empties the disk of a server that is down.
func (o *host) wipe() {
	o.hosts.mu.Lock()
	o.dir, o.id, o.clusterID = o.hosts.t.TempDir(), newUUID(), ""
	o.hosts.mu.Unlock()
}

// beforeRestore is what a restore replaced, which who led then keeps.
func (h *hosts) beforeRestore() *state.Store {
	h.t.Helper()
	for _, o := range h.running() {
		f, err := os.Open(filepath.Join(o.dir, "raft", beforeRestore))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			h.t.Fatal(err)
		}
		defer f.Close()
		before := state.New()
		if err := before.Restore(f); err != nil {
			h.t.Fatal(err)
		}
		return before
	}
	h.t.Fatal("what the restore replaced was not kept: no server has " + beforeRestore)
	return nil
}

// gossip tells every running server what the others are.
func (h *hosts) gossip() {
	h.mu.Lock()
	defer h.mu.Unlock()
	var members []state.Member
	for _, name := range h.order {
		o := h.all[name]
		if !o.up() && o.absent == "" {
			continue // never seen
		}
		m := state.Member{
			Name: name, ID: o.id, Address: o.address.Addr(), Liveness: state.Alive,
			Server: true, RPC: o.address, ClusterID: o.clusterID, Feature: o.feature,
		}
		if !o.up() {
			m.Liveness = o.absent
		}
		members = append(members, m)
	}
	for _, o := range h.all {
		if o.up() {
			o.state.SetMembers(members)
		}
	}
}

// nameOf finds the server with an ID or address.
func (h *hosts) nameOf(to string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, o := range h.all {
		if o.id == to || o.address.String() == to {
			return name
		}
	}
	return ""
}

func (h *hosts) startAll() {
	h.t.Helper()
	for _, name := range h.order {
		h.all[name].start()
	}
}

func (h *hosts) running() []*host {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*host
	for _, name := range h.order {
		if h.all[name].up() {
			list = append(list, h.all[name])
		}
	}
	return list
}

// besides are the running servers but one.
func (h *hosts) besides(one *host) []*host {
	return slices.DeleteFunc(h.running(), func(o *host) bool { return o == one })
}

func (h *hosts) stopAll() {
	for _, o := range h.running() {
		o.stop()
	}
	if h.t.Failed() {
		for _, name := range h.order {
			if log := h.all[name].log; log != nil {
				h.t.Logf("log of %s:\n%s", name, log.tail(60))
			}
		}
	}
}

// leader waits until all running servers agree on an established leader.
func (h *hosts) leader() *host {
	h.t.Helper()
	var leader *host
	eventually(h.t, "a leader that all know", func() error {
		leader = nil
		for _, o := range h.running() {
			if o.store.IsLeader() {
				leader = o
			}
		}
		if leader == nil {
			return errors.New("nobody leads")
		}
		for _, o := range h.running() {
			if name, _, ok := o.store.Leader(); !ok || name != leader.name {
				return fmt.Errorf("%s says that %q leads, not %s", o.name, name, leader.name)
			}
		}
		return nil
	})
	return leader
}

// follower is some running server that does not lead.
func (h *hosts) follower() *host {
	h.t.Helper()
	leader := h.leader()
	for _, o := range h.running() {
		if o != leader {
			return o
		}
	}
	h.t.Fatal("there is no follower")
	return nil
}

// handOver has the leadership handed over, through this server. A busy machine may
// need more than one attempt.
func (o *host) handOver(to string) {
	o.hosts.t.Helper()
	eventually(o.hosts.t, "the leadership is handed over", func() error {
		return o.store.TransferLeadership(o.hosts.t.Context(), to)
	})
}

// settled waits until the configuration has the given voters and non-voters.
func (h *hosts) settled(voters, others string) {
	h.t.Helper()
	eventually(h.t, "voters "+voters+", others "+others, func() error {
		leader := h.leader()
		var v, n []string
		for _, s := range leader.store.Status().Servers {
			if s.Voter {
				v = append(v, s.Name)
			} else {
				n = append(n, s.Name)
			}
		}
		slices.Sort(v)
		slices.Sort(n)
		if got := strings.Join(v, " "); got != voters {
			return fmt.Errorf("voters: %s", got)
		}
		if got := strings.Join(n, " "); got != others {
			return fmt.Errorf("others: %s", got)
		}
		return nil
	})
}

// put writes a key through a server and fails the test if it can't. On a busy
// machine a leader can lose its lease under a write; setting the key again is
// harmless.
func (o *host) put(key, value string) uint64 {
	o.hosts.t.Helper()
	var index uint64
	err := asked(func() (err error) {
		index, err = o.tryPut(key, value)
		return err
	})
	if err != nil {
		o.hosts.t.Fatalf("%s: put %s: %v", o.name, key, err)
	}
	return index
}

// barrier makes the next get of a server one of all that was acknowledged.
func (o *host) barrier() {
	o.hosts.t.Helper()
	if err := asked(func() error { return o.store.ReadBarrier(o.hosts.t.Context()) }); err != nil {
		o.hosts.t.Fatalf("%s: read barrier: %v", o.name, err)
	}
}

func (o *host) tryPut(key, value string) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	return o.store.Propose(ctx, state.KV{Verb: state.Set, Entry: state.Entry{Key: key, Value: []byte(value)}})
}

// get reads a key of a server's own state; "" when absent.
func (o *host) get(key string) string {
	entry, _ := o.state.Snapshot().Entry(nil, key)
	if entry == nil {
		return ""
	}
	return string(entry.Value)
}

// everywhere waits until all running servers have key at value.
func (h *hosts) everywhere(key, value string) {
	h.t.Helper()
	eventually(h.t, key+" on all servers", func() error {
		for _, o := range h.running() {
			if got := o.get(key); got != value {
				return fmt.Errorf("%s has %q", o.name, got)
			}
		}
		return nil
	})
}
