package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// network counts the loopback addresses that the tests of this process took.
var network atomic.Uint32

// bed is a cluster of agents in this process: the gossip is real, on loopback
// addresses of its own; the store is one log that is applied to the replicas
// of all nodes.
type bed struct {
	t    *testing.T
	net  [2]byte
	key  []byte
	mu   sync.Mutex
	log  []state.Command
	reps map[string]*state.Store
	// leader is the name of the node that leads; "" none. changed is closed
	// when that changes.
	leader  string
	changed chan struct{}
	failure error // of every proposal
}

func newBed(t *testing.T) *bed {
	t.Helper()
	n := network.Add(1)
	return &bed{
		t: t, key: []byte("0123456789abcdef0123456789abcdef"),
		// Apart from other packages' tests, which run at the same time.
		net:     [2]byte{byte(20 + os.Getpid()%200), byte(n)},
		reps:    map[string]*state.Store{},
		changed: make(chan struct{}),
	}
}

func (b *bed) address(host int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, b.net[0], b.net[1], byte(host)})
}

// lead makes a node the leader; "" takes the leader away.
func (b *bed) lead(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leader = name
	close(b.changed)
	b.changed = make(chan struct{})
}

// Propose applies a command everywhere. It is the bed's half of state.Proposer.
func (b *bed) Propose(ctx context.Context, c state.Command) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if b.leader == "" {
		return 0, state.ErrNoLeader
	}
	if b.failure != nil {
		return 0, b.failure
	}
	b.log = append(b.log, c)
	var err error
	for _, store := range b.reps {
		err = store.Apply(uint64(len(b.log)), c)
	}
	return uint64(len(b.log)), err
}

// failWith makes every proposal fail; nil ends that.
func (b *bed) failWith(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failure = err
}

// proposed counts the commands so far that match.
func (b *bed) proposed(match func(state.Command) bool) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, c := range b.log {
		if match(c) {
			n++
		}
	}
	return n
}

// replica returns a node's store, with the log so far.
func (b *bed) replica(name string) *state.Store {
	b.mu.Lock()
	defer b.mu.Unlock()
	store := state.New()
	b.catchUp(name, store)
	return store
}

// catchUp applies the log so far, as far as it was not, and has the leader
// confirm it; mu is held.
func (b *bed) catchUp(name string, store *state.Store) {
	for i, c := range b.log {
		_ = store.Apply(uint64(i)+1, c) // a refused command is refused again
	}
	b.reps[name] = store
	store.Touch(time.Now())
}

// host is one agent of the bed.
type host struct {
	*Agent
	bed      *bed
	config   Config
	store    *state.Store
	board    *health.Board
	registry *prometheus.Registry
	stop     func() // ends Run and waits; may be called again
}

// IsLeader and LeaderChanged are the bed's half of Leadership.
func (h *host) IsLeader() bool {
	h.bed.mu.Lock()
	defer h.bed.mu.Unlock()
	return h.bed.leader == h.config.Node
}

func (h *host) LeaderChanged() <-chan struct{} {
	h.bed.mu.Lock()
	defer h.bed.mu.Unlock()
	return h.bed.changed
}

// config is that of fbserviceN; its data directory is kept for the whole test.
func (b *bed) config(n int) Config {
	b.t.Helper()
	dir := b.t.TempDir()
	id, err := NodeID(dir)
	if err != nil {
		b.t.Fatal(err)
	}
	return Config{
		Node: fmt.Sprintf("fbservice%d", n), NodeID: id, Address: b.address(n),
		Server: true, RPC: netip.AddrPortFrom(b.address(n), 8300),
		Cluster: "foobar", Key: b.key, DataDir: dir, Version: "1.2.3", Feature: 1,
		Join: []netip.AddrPort{
			netip.AddrPortFrom(b.address(1), DefaultPort), netip.AddrPortFrom(b.address(2), DefaultPort),
			netip.AddrPortFrom(b.address(3), DefaultPort),
		},
	}
}

// start runs an agent until the test ends.
func (b *bed) start(config Config) *host {
	b.t.Helper()
	return b.startWith(config, b.replica(config.Node))
}

// startBehind is start, as after a real start: the replica is empty until
// catchUp is called.
func (b *bed) startBehind(config Config) (h *host, catchUp func()) {
	b.t.Helper()
	store := state.New()
	b.mu.Lock()
	delete(b.reps, config.Node)
	b.mu.Unlock()
	return b.startWith(config, store), func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.catchUp(config.Node, store)
	}
}

func (b *bed) startWith(config Config, store *state.Store) *host {
	b.t.Helper()
	h := &host{bed: b, config: config, store: store, registry: prometheus.NewRegistry()}
	h.board = health.NewBoard(time.Now, nil, nil)
	agent, err := New(config, Deps{
		State: h.store, Proposer: b, Leadership: h, Board: h.board, Metrics: h.registry,
		Log: testLog(b.t).With("on", config.Node),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	h.Agent = agent
	ctx, cancel := context.WithCancel(b.t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- agent.Run(ctx, func() { close(ready) }) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run of %s: %v", config.Node, err)
		}
	})
	b.t.Cleanup(h.stop)
	select {
	case <-ready:
	case err := <-done:
		b.t.Fatalf("Run of %s: %v", config.Node, err)
	}
	return h
}

// servers starts n agents that find each other, with the first as the leader.
func (b *bed) servers(n int) []*host {
	b.t.Helper()
	var hosts []*host
	b.lead("fbservice1")
	for i := 1; i <= n; i++ {
		hosts = append(hosts, b.start(b.config(i)))
	}
	for _, h := range hosts {
		for i := 1; i <= n; i++ {
			h.awaitMember(fmt.Sprintf("fbservice%d", i), state.Alive)
		}
	}
	return hosts
}

func (h *host) awaitMember(name string, want state.Liveness) {
	h.bed.t.Helper()
	eventually(h.bed.t, fmt.Sprintf("%s sees %s %s", h.config.Node, name, want), func() bool {
		m, _ := h.store.Snapshot().Member(name)
		return m.Liveness == want
	})
}

// status is a check's state in the catalog; "" when it is not there.
func (h *host) status(node, check string) state.Status {
	if row := h.check(node, check); row != nil {
		return row.Status
	}
	return ""
}

func (h *host) check(node, id string) *state.Check {
	return rowsOf(h.store.Snapshot(), node).checks[id]
}

func (h *host) awaitCheck(node, check string, want state.Status) {
	h.bed.t.Helper()
	eventually(h.bed.t, fmt.Sprintf("%s/%s is %q", node, check, want), func() bool { return h.status(node, check) == want })
}

func (h *host) serviceIDs(node string) []string {
	services, _ := h.store.Snapshot().NodeServices(nil, node)
	ids := []string{}
	for _, s := range services {
		ids = append(ids, s.ID)
	}
	return ids
}

func (h *host) hasCondition(name string) bool {
	return slices.ContainsFunc(h.board.Conditions(), func(c health.Condition) bool { return c.Name == name })
}

// patience is for a machine that is slow, or stands still for seconds now and
// then. It is shorter than the 52.5 s after which a node compares itself with the
// catalog in any case (syncInterval, less an eighth), which Timing does not scale:
// what comes by that alone was not woken, and is a bug.
const patience = 45 * time.Second

// eventually polls. What it waits for comes, or never.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

// testLog writes into the test's log, until the test ends.
func testLog(t *testing.T) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() { w.mu.Lock(); defer w.mu.Unlock(); w.t = nil })
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct {
	mu sync.Mutex
	t  *testing.T
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Logf("%s", p)
	}
	return len(p), nil
}
