package aptproxy

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/state"
	"holdfast/lab/aptorigin"
)

// shared is a store that all service nodes see.
type shared struct {
	*state.Store
	mu    sync.Mutex
	index uint64
}

func (s *shared) Propose(_ context.Context, cmd state.Command) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index++
	return s.index, s.Apply(s.index, cmd)
}

// startShared runs a proxy beside a store.
func startShared(t *testing.T, store *shared, apt string) *proxy {
	t.Helper()
	p := &proxy{t: t, clock: &clock{}}
	var err error
	p.Server, err = New(Config{Node: "fb1", Dir: t.TempDir(), Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}}, Deps{
		File: clusterFile(t, apt), Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Metrics: prometheus.NewRegistry(),
		Now: p.clock.now, State: store, Proposer: store,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() { ended <- p.Run(ctx, func() { close(ready) }) }()
	<-ready
	p.url = "http://" + p.Addrs()[0].String()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestFrozenClientsStayWhereTheyAreOnEveryServiceNode(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	store := &shared{Store: state.New(), index: 10}
	one, two := startShared(t, store, oneRepository(o.repo.Keyring, o)), startShared(t, store, oneRepository(o.repo.Keyring, o))
	one.update(o)
	oldRelease, oldIndex := o.file(t, inRelease), o.file(t, packages)
	list, err := one.Freeze(t.Context(), FreezeRequest{View: "all"})
	if err != nil || len(list) != 1 || list[0].Suite != "dists/test" {
		t.Fatalf("%+v, %v", list, err)
	}
	add(t, o.repo, "small1", "2.0", 4<<10)
	publish(t, o.repo, aptorigin.Release{})
	for _, p := range []*proxy{one, two} { // the second never saw the old one
		p.clock.pass(time.Hour)
		p.compileViews() // what its follower does a moment later
		if a := p.get("/debian/" + inRelease); !bytes.Equal(a.body, oldRelease) {
			t.Errorf("a frozen client sees another Release: status %d, %s", a.status, clip(string(a.body)))
		}
		if a := p.get("/debian/" + packages); !bytes.Equal(a.body, oldIndex) && p == one {
			t.Errorf("a frozen client sees another index: status %d", a.status)
		}
	}
	if err := two.Thaw(t.Context(), "all"); err != nil {
		t.Fatal(err)
	}
	one.compileViews()
	for _, p := range []*proxy{one, two} {
		p.update(o)
	}
	if err := two.Thaw(t.Context(), "all"); err == nil {
		t.Error("what is not frozen was thawed")
	}
}

func TestAViewHoldsItsNodesAndIsPromoted(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	store := &shared{Store: state.New(), index: 10}
	p := startShared(t, store, oneRepository(o.repo.Keyring, o))
	p.update(o)
	first := o.file(t, inRelease)
	if _, err := p.Freeze(t.Context(), FreezeRequest{View: "prod", Nodes: "fb1"}); err != nil {
		t.Fatal(err)
	}
	add(t, o.repo, "small1", "2.0", 4<<10)
	publish(t, o.repo, aptorigin.Release{})
	p.clock.pass(time.Hour)
	p.update(o) // 127.0.0.1 is no node of the view
	repo := p.active.Load().repositories[0]
	held := func(client string) string {
		g, err := p.frozen(repo, client, "dists/test")
		if err != nil {
			t.Fatal(err)
		}
		if g == nil {
			return ""
		}
		return g.id
	}
	oldID := held("192.0.2.1")
	if oldID == "" || held("192.0.2.9") != "" || held("127.0.0.1") != "" {
		t.Fatalf("held: %q %q", oldID, held("192.0.2.9"))
	}
	if _, err := p.Freeze(t.Context(), FreezeRequest{View: "test", Nodes: "fb1"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Thaw(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Freeze(t.Context(), FreezeRequest{View: "all"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Promote(t.Context(), "all", "prod", ""); err != nil {
		t.Fatal(err)
	}
	if id := held("192.0.2.1"); id == oldID || id == "" {
		t.Errorf("after the promotion the node is held at %q, before at %q", id, oldID)
	}
	for _, v := range p.Views() {
		if v.View == "prod" && v.Nodes != "fb1" {
			t.Errorf("the promotion changed the nodes: %+v", v)
		}
	}
	changes, err := p.Diff(DiffRequest{From: oldID[:8], To: held("192.0.2.1")[:8]})
	if err != nil || len(changes) != 1 || changes[0].Package != "small1" || changes[0].From != "1.0" {
		t.Errorf("%+v, %v", changes, err)
	}
	_ = first
}

func TestFreezingAtATimeTakesWhatWasServedThen(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	store := &shared{Store: state.New(), index: 10}
	p := startShared(t, store, oneRepository(o.repo.Keyring, o))
	p.update(o)
	first := o.file(t, inRelease)
	then := p.clock.now()
	add(t, o.repo, "small1", "2.0", 4<<10)
	publish(t, o.repo, aptorigin.Release{})
	p.clock.pass(time.Hour)
	p.update(o)
	if _, err := p.Freeze(t.Context(), FreezeRequest{View: "all", At: then}); err != nil {
		t.Fatal(err)
	}
	if a := p.get("/debian/" + inRelease); !bytes.Equal(a.body, first) {
		t.Error("not the Release of that time")
	}
	_, err := p.Freeze(t.Context(), FreezeRequest{View: "early", At: then.Add(-time.Hour)})
	if err == nil || !strings.Contains(err.Error(), "snapshots") {
		t.Errorf("a time from which nothing is kept: %v", err)
	}
}
