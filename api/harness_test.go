package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/check"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

// cell is a node for tests: a real store and a real server on real sockets,
// with a consensus of one that can lose its leader, and an agent that only
// remembers.
type cell struct {
	t        *testing.T
	store    *state.Store
	raft     *fakeRaft
	agent    *fakeAgent
	file     *fakeConfig
	registry *prometheus.Registry
	server   *Server
	stop     func()

	url    string // plain HTTP
	socket string
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

type option func(*Config, *Deps)

// patience bounds waits for what must come. It is no promise of the product's.
const patience = time.Minute

func newCell(t *testing.T, options ...option) *cell {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	store := state.New()
	c := &cell{
		t: t, store: store, socket: filepath.Join(dir, "core.sock"), registry: prometheus.NewRegistry(),
		raft: &fakeRaft{store: store, leader: "n1"}, agent: &fakeAgent{}, file: &fakeConfig{sum: "aaaa"},
	}
	store.Touch(time.Now())
	config := Config{
		Node: "n1", NodeID: "id-1", Datacenter: "foobar", Version: "1.2.3", Server: true, Socket: c.socket,
		Names:  []string{"n1", "n1.hpc.example.com"},
		Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")},
	}
	deps := Deps{
		State: store, Outcomes: store, Proposer: c.raft, Agent: c.agent, Raft: c.raft, Config: c.file,
		Conditions: func() []health.Condition {
			return []health.Condition{{Name: "config.skew", Severity: health.Warning, Message: "n2 runs another file"}}
		},
		Gatherer: c.registry, Metrics: c.registry, Log: discard(),
	}
	for _, o := range options {
		o(&config, &deps)
	}
	c.server, err = New(config, deps)
	if err != nil {
		t.Fatal(err)
	}
	c.run()
	return c
}

func (c *cell) run() {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	tasks := []func(context.Context, func()) error{c.server.Socket().Run, c.server.Run}
	ready, done := make(chan struct{}, len(tasks)), make(chan error, len(tasks))
	for _, task := range tasks {
		go func() { done <- task(ctx, func() { ready <- struct{}{} }) }()
		select {
		case <-ready:
		case err := <-done:
			c.t.Fatalf("Run: %v", err)
		case <-time.After(patience):
			c.t.Fatal("Run did not call ready")
		}
	}
	c.url = "http://" + c.server.Addresses()[0].String()
	c.stop = sync.OnceFunc(func() {
		cancel()
		for range tasks {
			if err := <-done; err != nil {
				c.t.Errorf("Run: %v", err)
			}
		}
	})
	c.t.Cleanup(c.stop)
}

// consul is the real client, over plain HTTP on loopback.
func (c *cell) consul() *consul.Client { return c.consulAt(strings.TrimPrefix(c.url, "http://")) }

// admin is the real client, over the admin socket.
func (c *cell) admin() *consul.Client { return c.consulAt("unix://" + c.socket) }

func (c *cell) consulAt(address string) *consul.Client {
	c.t.Helper()
	config := consul.DefaultConfig()
	config.Address = address
	client, err := consul.NewClient(config)
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

// apply changes the state as a committed entry does.
func (c *cell) apply(commands ...state.Command) uint64 {
	c.t.Helper()
	var index uint64
	for _, command := range commands {
		var err error
		if index, err = c.raft.Propose(c.t.Context(), command); err != nil {
			c.t.Fatalf("apply %+v: %v", command, err)
		}
	}
	return index
}

// get makes a plain request, with headers given in pairs.
func (c *cell) get(path string, headers ...string) (int, http.Header, string) {
	return c.do("GET", path, nil, headers...)
}

func (c *cell) do(method, path string, body io.Reader, headers ...string) (int, http.Header, string) {
	c.t.Helper()
	request, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			request.Host = headers[i+1]
			continue
		}
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return response.StatusCode, response.Header, string(text)
}

// counted is the value of a counter.
func (c *cell) counted(counter *prometheus.CounterVec, labels ...string) int {
	return int(testutil.ToFloat64(counter.WithLabelValues(labels...)))
}

// eventually polls with a deadline.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.After(patience); !done(); {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never: %s", what)
		}
	}
}

func node(name, address string) state.Node {
	return state.Node{ID: "id-" + name, Name: name, Address: netip.MustParseAddr(address), Meta: map[string]string{"room": "a"}}
}

// web registers an instance of web on a node, with the checks that the leader
// and the agent would give it.
func web(name, address string, status state.Status, tags ...string) state.Register {
	return state.Register{
		Node:     node(name, address),
		Services: []state.Service{{ID: "web", Name: "web", Port: 80, Tags: tags}},
		Checks: []state.Check{
			{ID: state.SerfHealth, Name: "Serf Health Status", Status: state.Passing, Output: "Agent alive and reachable"},
			{ID: "service:web", Name: "web is up", Status: status, ServiceID: "web", Type: "http"},
		},
	}
}

func member(name, address string, l state.Liveness) state.Member {
	return state.Member{
		Name: name, ID: "id-" + name, Address: netip.MustParseAddr(address), Liveness: l, Server: true,
		RPC: netip.AddrPortFrom(netip.MustParseAddr(address), 8300), Version: "1.2.3", ConfigSum: "aaaa",
	}
}

// fakeRaft applies at once, as a consensus of one.
type fakeRaft struct {
	store   *state.Store
	hanging atomic.Int32

	mu          sync.Mutex
	index       uint64
	leader      string // "" none
	proposeErr  error
	barrierErr  error
	barriers    int
	removed     []string
	transferred []string
	restored    []byte
	saveErr     error // after half of the snapshot
}

func (r *fakeRaft) Propose(ctx context.Context, command state.Command) (uint64, error) {
	if kv, ok := command.(state.KV); ok && kv.Entry.Key == "hangs" {
		r.hanging.Add(1)
		<-ctx.Done() // as a write that no quorum confirms
		return 0, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proposeErr != nil {
		return 0, r.proposeErr
	}
	r.index++
	return r.index, r.store.Apply(r.index, command)
}

func (r *fakeRaft) set(change func(*fakeRaft)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

func (r *fakeRaft) Leader() (string, netip.AddrPort, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leader, netip.MustParseAddrPort("10.1.0.1:8300"), r.leader != ""
}

func (r *fakeRaft) ReadBarrier(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.barriers++
	return r.barrierErr
}

func (r *fakeRaft) Operation(_ context.Context, name string, args url.Values, write bool) (any, error) {
	if name == "refused" {
		return nil, fmt.Errorf("%w: refused: because", state.ErrInvalid)
	}
	return fmt.Sprint(name, " ", args.Get("server"), " ", write), nil
}

func (r *fakeRaft) Status() state.RaftStatus {
	return state.RaftStatus{
		Node: "n1", State: "leader", Term: 3, LastIndex: 42, CommitIndex: 41, AppliedIndex: 40,
		Servers: []state.RaftServer{
			{ID: "id-n1", Name: "n1", Address: "10.1.0.1:8300", Voter: true, Leader: true, LastIndex: 42},
			{ID: "id-n2", Address: "10.1.0.2:8300"},
		},
		Stats: map[string]string{"num_peers": "1"},
	}
}

func (r *fakeRaft) RemovePeer(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id == "last" {
		return errors.New("the quorum would be lost")
	}
	r.removed = append(r.removed, id)
	return nil
}

func (r *fakeRaft) TransferLeadership(_ context.Context, to string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.transferred = append(r.transferred, to)
	return nil
}

func (r *fakeRaft) SaveSnapshot(_ context.Context, w io.Writer) error {
	r.mu.Lock()
	failure := r.saveErr
	r.mu.Unlock()
	if failure == nil {
		_, err := r.store.Snapshot().WriteTo(w)
		return err
	}
	var whole bytes.Buffer
	if _, err := r.store.Snapshot().WriteTo(&whole); err != nil {
		return err
	}
	if _, err := w.Write(whole.Bytes()[:whole.Len()/2]); err != nil {
		return err
	}
	return failure
}

func (r *fakeRaft) RestoreSnapshot(_ context.Context, in io.Reader) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	data, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	r.restored = data
	return r.store.Restore(bytes.NewReader(data))
}

// fakeAgent remembers what it was told.
type fakeAgent struct {
	mu       sync.Mutex
	services []state.Service
	checks   []state.Check
	made     []check.Definition
	joined   []string
	left     int
	forced   []string
	events   []state.UserEvent
	heard    chan struct{}
	keys     []string
	err      error
}

func (a *fakeAgent) RegisterService(svc state.Service, checks []check.Definition) error {
	if err := a.DeregisterService(svc.ID); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.services = append(a.services, svc)
	a.add(svc.Name, checks...)
	return nil
}

func (a *fakeAgent) add(service string, checks ...check.Definition) {
	for _, d := range checks {
		a.made = append(a.made, d)
		a.checks = append(a.checks, state.Check{
			ID: d.ID, Name: d.Name, Notes: d.Notes, Status: d.Initial, ServiceID: d.ServiceID, ServiceName: service, Type: d.Type(),
		})
	}
}

func (a *fakeAgent) DeregisterService(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.err
	}
	a.services = slices.DeleteFunc(a.services, func(s state.Service) bool { return s.ID == id })
	a.checks = slices.DeleteFunc(a.checks, func(c state.Check) bool { return c.ServiceID == id })
	return nil
}

func (a *fakeAgent) RegisterCheck(d check.Definition) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.add("", d)
	return a.err
}

func (a *fakeAgent) DeregisterCheck(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checks = slices.DeleteFunc(a.checks, func(c state.Check) bool { return c.ID == id })
	return a.err
}

func (a *fakeAgent) UpdateTTL(id string, status state.Status, output string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.checks {
		if a.checks[i].ID != id {
			continue
		}
		if a.checks[i].Type != "ttl" {
			return fmt.Errorf("%w: check %s is no TTL check", state.ErrInvalid, id)
		}
		a.checks[i].Status, a.checks[i].Output = status, output
	}
	return a.err
}

func (a *fakeAgent) LocalServices() []state.Service {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.services)
}

func (a *fakeAgent) LocalChecks() []state.Check {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.checks)
}

func (a *fakeAgent) Join(_ context.Context, addresses []string) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if addresses[0] == "10.9.9.9" {
		return 0, nil
	}
	a.joined = append(a.joined, addresses...)
	return 1, a.err
}

func (a *fakeAgent) Leave(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left++
	return a.err
}

func (a *fakeAgent) ForceLeave(_ context.Context, node string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forced = append(a.forced, node)
	return a.err
}

func (a *fakeAgent) FireEvent(_ context.Context, e state.UserEvent) (state.UserEvent, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(e.Payload) > 500 {
		return e, fmt.Errorf("%w: too large", state.ErrInvalid)
	}
	e.ID = fmt.Sprintf("00000000-0000-4000-8000-%012d", len(a.events)+1)
	a.events = append(a.events, e)
	if a.heard != nil {
		close(a.heard)
	}
	a.heard = make(chan struct{})
	return e, a.err
}

func (a *fakeAgent) Events() ([]state.UserEvent, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.heard == nil {
		a.heard = make(chan struct{})
	}
	return slices.Clone(a.events), a.heard
}

func (a *fakeAgent) ListKeys(context.Context) (state.KeyringStatus, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return state.KeyringStatus{Nodes: 3, Keys: map[string]int{"old": 3}, Primary: map[string]int{"old": 3}}, a.err
}

func (a *fakeAgent) key(what, key string) (state.KeyringStatus, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if key == "" {
		return state.KeyringStatus{}, fmt.Errorf("%w: no key", state.ErrInvalid)
	}
	a.keys = append(a.keys, what+" "+key)
	return state.KeyringStatus{}, a.err
}

func (a *fakeAgent) InstallKey(_ context.Context, key string) (state.KeyringStatus, error) {
	return a.key("install", key)
}

func (a *fakeAgent) UseKey(_ context.Context, key string) (state.KeyringStatus, error) {
	return a.key("use", key)
}

func (a *fakeAgent) RemoveKey(_ context.Context, key string) (state.KeyringStatus, error) {
	return a.key("remove", key)
}
