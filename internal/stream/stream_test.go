package stream

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// proposer applies at once.
type proposer struct {
	store *state.Store
	index atomic.Uint64
}

func (p *proposer) Propose(_ context.Context, cmd state.Command) (uint64, error) {
	index := p.index.Add(1)
	return index, p.store.Apply(index, cmd)
}

type bed struct {
	store    *state.Store
	proposer *proposer
	source   *Source
	server   *httptest.Server
	at       *pipes
}

var part = state.Part{Kinds: []string{"dns/record"}}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{store: state.New()}
	b.proposer = &proposer{store: b.store}
	var err error
	b.source, err = NewSource(SourceDeps{State: b.store, Proposer: b.proposer, Leader: func() string { return "fb1" },
		Grants: Grants{"dns": part}, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	b.server, b.at = serve(t, "core", b.source)
	return b
}

func (b *bed) register(t *testing.T, node string) {
	t.Helper()
	if _, err := b.proposer.Propose(t.Context(), state.Register{Node: state.Node{Name: node, Address: netip.MustParseAddr("10.1.0.1")}}); err != nil {
		t.Fatal(err)
	}
}

// replica follows the bed until the test, or stop, ends it.
func (b *bed) replica(t *testing.T, unit, path string) (r *Replica, board *health.Board, stop func()) {
	t.Helper()
	board = health.NewBoard(time.Now, nil, nil)
	r, err := New(Config{Unit: unit, Base: b.server.URL, Web: client(t, nil, b.at), Path: path},
		Deps{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Board: board})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, func() {}) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return r, board, stop
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func has(r *Replica, node string) func() bool {
	return func() bool { n, _ := r.Store().Snapshot().Node(nil, node); return n != nil }
}

func TestAReplicaFollowsAndComesBackFromTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, path := newBed(t), filepath.Join(t.TempDir(), "state.dns")
		b.register(t, "fb1")
		r, _, stop := b.replica(t, "dns", path)
		until(t, "a beat of a source that no leader has confirmed", func() bool { return r.Status().Connected })
		if has(r, "fb1")() {
			t.Error("a state that no leader has confirmed was streamed")
		}
		b.store.Touch(time.Now())
		until(t, "the snapshot", has(r, "fb1"))
		b.register(t, "fb2")
		b.store.SetMembers([]state.Member{{Name: "fb2", Liveness: state.Failed}})
		until(t, "a command", has(r, "fb2"))
		until(t, "the gossip", func() bool { m, ok := r.Store().Snapshot().Member("fb2"); return ok && m.Liveness == state.Failed })
		if got := testutil.ToFloat64(r.applied.WithLabelValues("snapshot")); got != 1 {
			t.Errorf("%v snapshots came", got)
		}
		until(t, "the leader", func() bool { return r.Leader() == "fb1" })
		stop() // it writes its last

		b.server.CloseClientConnections()
		b.server.Config.Handler = http.NotFoundHandler()
		again, _, _ := b.replica(t, "dns", path)
		if !has(again, "fb1")() || !has(again, "fb2")() {
			t.Error("what the disk has is not there at once")
		}
		s := again.Status()
		if !s.FromDisk || !s.Confirmed || s.Age <= 0 || s.Age > time.Minute {
			t.Errorf("status %+v", s)
		}
		if _, ok := again.Store().Snapshot().Member("fb2"); !ok {
			t.Error("the gossip is not on the disk")
		}
		if other, _, _ := b.replica(t, "ntp", path); has(other, "fb1")() {
			t.Error("a unit read the file of another")
		}
	})
}

func TestAUnitWritesItsOwnDocumentsAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.store.Touch(time.Now())
		r, _, _ := b.replica(t, "dns", filepath.Join(t.TempDir(), "state.dns"))
		own := state.PutDocument{Verb: state.Set, Document: state.Document{Kind: "dns/record", Key: "a", Value: []byte("1")}}
		until(t, "the stream", func() bool { return r.Status().Connected })
		if _, err := r.Propose(t.Context(), own); err != nil {
			t.Fatal(err)
		}
		if d, _ := r.Store().Snapshot().Document(nil, "dns/record", "a"); d == nil {
			t.Error("what was written is not in the replica that wrote it")
		}
		own.Verb, own.Document.ModifyIndex = state.CAS, 99
		if _, err := r.Propose(t.Context(), own); !errors.Is(err, state.ErrConflict) {
			t.Errorf("a conflict came as %v", err)
		}
		for _, cmd := range []state.Command{
			state.PutDocument{Verb: state.Set, Document: state.Document{Kind: "acl/token", Key: "a", Value: []byte("1")}},
			state.KV{Verb: state.Set, Entry: state.Entry{Key: "a"}},
			state.Deregister{Node: "fb1"},
			state.Register{Node: state.Node{Name: "evil", Address: netip.MustParseAddr("10.1.0.9")}},
		} {
			if _, err := r.Propose(t.Context(), cmd); !errors.Is(err, state.ErrInvalid) || !strings.Contains(err.Error(), "403") {
				t.Errorf("%T: %v", cmd, err)
			}
		}
		if got := testutil.ToFloat64(b.source.refused.WithLabelValues("grant")); got != 4 {
			t.Errorf("%v refusals were counted", got)
		}
		response, err := client(t, nil, b.at).Get(b.server.URL + pathFollow + "?unit=evil")
		if err == nil {
			response.Body.Close()
		}
		if err != nil || response.StatusCode != http.StatusForbidden {
			t.Errorf("an unknown unit: %v, %v", response, err)
		}
	})
}

func TestADamagedFileIsLeftOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.dns")
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.register(t, "fb1")
		b.store.Touch(time.Now())
		r, _, stop := b.replica(t, "dns", path)
		until(t, "the snapshot", has(r, "fb1"))
		until(t, "a beat", func() bool { return r.Status().Confirmed })
		stop()
	})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fresh := func(data []byte) bool {
		r := &Replica{config: Config{Unit: "dns"}, store: state.New()}
		return r.read(bytes.NewReader(data)) != nil && !has(r, "fb1")()
	}
	for i := range whole {
		damaged := bytes.Clone(whole)
		damaged[i] ^= 1
		if !fresh(damaged) {
			t.Fatalf("a file with a bit of byte %d turned was taken", i)
		}
		if !fresh(whole[:i]) {
			t.Fatalf("a file cut at byte %d was taken", i)
		}
	}
}

func FuzzStream(f *testing.F) {
	var b bytes.Buffer
	_ = writeFrame(&b, frameWhere, []byte(`{"index":1,"confirmed":true}`))
	_ = writeFrame(&b, frameStart, nil)
	_ = state.New().Snapshot().WritePart(pieces{&b}, part)
	_ = writeFrame(&b, frameEnd, nil)
	_ = writeFrame(&b, frameMembers, []byte(`[{"Name":"a"}]`))
	_ = writeFrame(&b, frameCommand, []byte("\x00\x00\x00\x00\x00\x00\x00\x01"))
	_ = writeFrame(&b, frameBeat, []byte(`{"position":1,"confirmed":true}`))
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &Replica{deps: Deps{Log: slog.New(slog.DiscardHandler)}, store: state.New(), arrived: make(chan struct{}), news: make(chan struct{}),
			applied: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "a"}, []string{"kind"})}
		in, s := bytes.NewReader(data), &session{asked: time.Now()}
		for {
			kind, body, err := readFrame(in, nil)
			if err != nil || r.take(s, kind, body, &snapshotReader{r: in, seen: func() {}}) != nil {
				return
			}
		}
	})
}

func FuzzDisk(f *testing.F) {
	r := &Replica{config: Config{Unit: "dns"}, store: state.New()}
	var b bytes.Buffer
	if err := r.write(&b, r.store.Snapshot(), time.Unix(1, 0)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &Replica{config: Config{Unit: "dns"}, store: state.New()}
		_ = r.read(bytes.NewReader(data))
	})
}
