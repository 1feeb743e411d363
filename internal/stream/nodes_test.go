package stream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

const storeID = "6ae058a7-a97e-47ed-a39b-e11083b0642a"

// server is a source for nodes, with a state of its own.
type server struct {
	name  string
	store *state.Store
	web   *httptest.Server
	at    *pipes
	src   *Source
}

// newServer has a store that a leader has confirmed now, at an index.
func newServer(t *testing.T, name string, index uint64) *server {
	t.Helper()
	s := &server{name: name, store: state.New()}
	if err := s.store.Apply(1, state.SetCluster{Cluster: state.Cluster{ID: storeID, Name: "foobar"}}); err != nil {
		t.Fatal(err)
	}
	s.register(t, index, name)
	s.store.Touch(time.Now())
	var err error
	s.src, err = NewSource(SourceDeps{State: s.store, Proposer: &proposer{store: s.store}, Leader: func() string { return name },
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	nodes := s.src.ForNodes(part, func(r *http.Request) (string, error) {
		if r.Header.Get("Stranger") != "" {
			return "", errors.New("a stranger")
		}
		return "front1", nil
	}, func(node string, d state.PutDocument) error {
		if d.Document.Key != node {
			return errors.New("not its own")
		}
		return nil
	})
	s.web, s.at = serve(t, name, nodes)
	return s
}

func (s *server) register(t *testing.T, index uint64, node string) {
	t.Helper()
	if err := s.store.Apply(index, state.Register{Node: state.Node{Name: node, Address: netip.MustParseAddr("10.1.0.1")}}); err != nil {
		t.Fatal(err)
	}
}

// confirmed has a leader confirm its state all the time, until stop.
func (s *server) confirmed(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			s.store.Touch(time.Now())
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// follow runs a node that has these servers, until the test, or stop, ends it; hold
// keeps its connections from saying anything more, as those of a stopped server.
func follow(t *testing.T, path string, servers ...*server) (r *Replica, hold func(*server), stop func()) {
	t.Helper()
	var list []Server
	var listeners []*pipes
	for _, s := range servers {
		list, listeners = append(list, Server{s.name, s.web.URL}), append(listeners, s.at)
	}
	var mu sync.Mutex
	held := map[*pipes]bool{}
	web := client(t, func(at *pipes, conn net.Conn) net.Conn {
		return &holdable{conn, func() bool { mu.Lock(); defer mu.Unlock(); return held[at] }}
	}, listeners...)
	r, err := New(Config{Unit: NodeUnit, Web: web, Path: path, Sources: func() []Server { return list }, OwnGossip: true},
		Deps{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Board: health.NewBoard(time.Now, nil, nil)})
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
	return r, func(s *server) {
		mu.Lock()
		defer mu.Unlock()
		held[s.at] = true
	}, stop
}

// holdable is a connection that can be made silent without an end.
type holdable struct {
	net.Conn
	held func() bool
}

func (h *holdable) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	for err == nil && h.held() {
		n, err = h.Conn.Read(b) // lost, until it is closed
	}
	return n, err
}

func from(r *Replica, s *server) func() bool {
	return func() bool { st := r.Status(); return st.Connected && st.Source == s.name && st.Confirmed }
}

func TestANodeGoesOnWithAnotherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newServer(t, "fb1", 10), newServer(t, "fb2", 10)
		one.confirmed(t)
		two.confirmed(t)
		r, hold, _ := follow(t, filepath.Join(t.TempDir(), "state.node"), one, two)
		until(t, "the preferred server streams", from(r, one))
		began := time.Now()
		hold(one)
		until(t, "the other streams when the first is silent", from(r, two))
		if took := time.Since(began); took < silenceNode-beatNodes || took > silenceNode+time.Second {
			t.Errorf("the other streams after %v; a server is given up that was silent for %v", took, silenceNode)
		}
		two.register(t, 11, "fb9")
		until(t, "a command of the other", has(r, "fb9"))
	})
}

func TestANodeLeavesAServerThatHearsOfNoLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newServer(t, "fb1", 10), newServer(t, "fb2", 10)
		stop := one.confirmed(t)
		two.confirmed(t)
		r, _, _ := follow(t, filepath.Join(t.TempDir(), "state.node"), one, two)
		until(t, "the preferred server streams", from(r, one))
		stop()
		until(t, "the other streams", from(r, two))
	})
}

// TestThePreferredServerIsWaitedForAMoment: as long as askRest, once another has
// answered.
func TestThePreferredServerIsWaitedForAMoment(t *testing.T) {
	for far, want := range map[time.Duration]string{askRest * 9 / 10: "fb1", askRest * 11 / 10: "fb2"} {
		synctest.Test(t, func(t *testing.T) {
			one, two := newServer(t, "fb1", 10), newServer(t, "fb2", 10)
			one.at.far = far
			r, _, _ := follow(t, filepath.Join(t.TempDir(), "state.node"), one, two)
			until(t, "it streams", func() bool { return r.Status().Connected })
			if got := r.Status().Source; got != want {
				t.Errorf("where the preferred one takes %v to answer, %s streams, want %s", far, got, want)
			}
		})
	}
}

func TestAServerThatGossipCallsDeadIsLeftBeforeItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newServer(t, "fb1", 10), newServer(t, "fb2", 10)
		one.confirmed(t)
		two.confirmed(t)
		r, hold, _ := follow(t, filepath.Join(t.TempDir(), "state.node"), one, two)
		until(t, "the preferred server streams", from(r, one))
		r.Store().SetMembers([]state.Member{{Name: "fb1", Liveness: state.Failed}})
		select {
		case <-r.News():
			t.Fatal("a server that streams was left because of gossip alone")
		case <-time.After(10 * muteBeat):
		}
		began := time.Now()
		hold(one)
		until(t, "the other streams", from(r, two))
		if took := time.Since(began); took > silenceNode-beatNodes {
			t.Errorf("the other streams after %v, as if nobody had called the first one dead", took)
		}
	})
}

func TestANodeNeverGoesBackToAnOlderState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.node")
		one, two := newServer(t, "fb1", 20), newServer(t, "fb2", 10)
		two.at.far = time.Millisecond // so that what it says is the last of all
		one.confirmed(t)
		// A leader confirmed fb2 before the node had entry 20, and none since.
		r, _, _ := follow(t, path, one, two)
		until(t, "the newer server streams", from(r, one))
		one.web.Listener.Close()
		one.web.CloseClientConnections()
		until(t, "the older one is refused", func() bool { return strings.Contains(r.Status().Error, "older state is not taken") })
		if s := r.Status(); s.Connected || !has(r, "fb1")() || has(r, "fb2")() {
			t.Errorf("an older state is shown: %+v", s)
		}
		// As after a recovery that lost the end of the log.
		two.store.Touch(time.Now())
		until(t, "a leader has confirmed the shorter log since", from(r, two))
		if has(r, "fb1")() {
			t.Error("what the recovery lost is shown still")
		}
	})
}

func TestNewerThan(t *testing.T) {
	t0 := time.Unix(1000, 0)
	have := mark{store: "a", index: 10, at: t0}
	for name, c := range map[string]struct {
		have  mark
		where Where
		asked time.Duration // after t0
		want  bool
	}{
		"nothing here":                         {mark{}, Where{"b", 1, true, 0, ""}, 0, false},
		"as far":                               {have, Where{"a", 10, true, time.Hour, ""}, 0, false},
		"older":                                {have, Where{"a", 9, true, time.Second, ""}, 500 * time.Millisecond, true},
		"older, and no leader has confirmed":   {have, Where{"a", 9, false, 0, ""}, time.Hour, true},
		"shorter, and confirmed since":         {have, Where{"a", 9, true, time.Second, ""}, 2 * time.Second, false},
		"shorter, and confirmed at our moment": {have, Where{"a", 9, true, time.Second, ""}, time.Second, true},
		"another store":                        {have, Where{"b", 1, true, 0, ""}, 0, false},
		"of no store":                          {have, Where{"", 1, true, 0, ""}, time.Hour, true},
	} {
		if got := c.have.newerThan(c.where, t0.Add(c.asked)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestANodeThatStartsWithoutServersHasWhatWasOnTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.node")
		one := newServer(t, "fb1", 20)
		one.confirmed(t)
		r, _, stop := follow(t, path, one)
		until(t, "it streams", from(r, one))
		stop() // and it writes its last
		one.web.Listener.Close()
		one.web.CloseClientConnections()
		two := newServer(t, "fb2", 10) // older
		r, _, _ = follow(t, path, one, two)
		until(t, "the older server is refused", func() bool { return strings.Contains(r.Status().Error, "fb") })
		s := r.Status()
		if !has(r, "fb1")() || !s.FromDisk || !s.Confirmed || s.Connected {
			t.Errorf("%+v", s)
		}
	})
}

func TestANodeWritesWhatIsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newServer(t, "fb1", 10)
		one.confirmed(t)
		one.src.deps.Proposer.(*proposer).index.Store(10)
		r, _, _ := follow(t, filepath.Join(t.TempDir(), "state.node"), one)
		until(t, "it streams", from(r, one))
		node := state.Node{Name: "front1", Address: netip.MustParseAddr("10.1.0.11")}
		own := state.Register{Node: node, Services: []state.Service{{ID: "login", Name: "login"}},
			Checks: []state.Check{{ID: "service:login", Name: "login", ServiceID: "login", Status: state.Critical}}}
		for _, cmd := range []state.Command{
			own,
			state.UpdateCheck{Node: "FRONT1", Updates: []state.CheckState{{ID: "service:login", Status: state.Passing}}},
			state.PutDocument{Verb: state.Set, Document: state.Document{Kind: "dns/record", Key: "front1", Value: []byte("1")}},
		} {
			if _, err := r.Propose(t.Context(), cmd); err != nil {
				t.Errorf("%T: %v", cmd, err)
			}
		}
		if found, _ := r.Store().Snapshot().NodeChecks(nil, "front1"); len(found) != 1 || found[0].Status != state.Passing {
			t.Errorf("its check is %+v", found)
		}
		foreign := []state.Command{
			state.Register{Node: state.Node{Name: "fb1", Address: netip.MustParseAddr("10.1.0.99")}},
			state.Register{Node: node, Services: []state.Service{{Node: "fb1", ID: "a", Name: "a"}}},
			state.Register{Node: node, Checks: []state.Check{{Node: "fb1", ID: "a", Name: "a"}}},
			state.Register{Node: node, Checks: []state.Check{{ID: state.SerfHealth, Name: "a", Status: state.Passing}}},
			state.Deregister{Node: "fb1"},
			state.Deregister{Node: "front1", Checks: []string{state.SerfHealth}},
			state.UpdateCheck{Node: "fb1", Updates: []state.CheckState{{ID: "a", Status: state.Critical}}},
			state.UpdateCheck{Node: "front1", Updates: []state.CheckState{{ID: state.SerfHealth, Status: state.Passing}}},
			state.PutDocument{Verb: state.Set, Document: state.Document{Kind: "dns/record", Key: "other", Value: []byte("1")}},
			state.KV{Verb: state.Set, Entry: state.Entry{Key: "a"}},
			state.SetCluster{Cluster: state.Cluster{ID: storeID, Name: "foobar", Feature: 9}},
			state.CreateSession{},
		}
		for _, cmd := range foreign {
			if _, err := r.Propose(t.Context(), cmd); !errors.Is(err, state.ErrInvalid) || !strings.Contains(err.Error(), "403") {
				t.Errorf("%T %+v: %v", cmd, cmd, err)
			}
		}
		if got := testutil.ToFloat64(one.src.refused.WithLabelValues("grant")); got != float64(len(foreign)) {
			t.Errorf("%v refusals were counted", got)
		}
		request, _ := http.NewRequest(http.MethodGet, one.web.URL+pathFollow, nil)
		request.Header.Set("Stranger", "yes")
		response, err := client(t, nil, one.at).Do(request)
		if err == nil {
			response.Body.Close()
		}
		if err != nil || response.StatusCode != http.StatusForbidden || testutil.ToFloat64(one.src.refused.WithLabelValues("who")) != 1 {
			t.Errorf("a stranger: %v, %v", response, err)
		}
	})
}

// A write that was sent may have been done, whatever became of the source since;
// one that was not sent was not.
func TestAWriteThatWasSentIsOfUnknownOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		taken, gone := make(chan struct{}), make(chan struct{})
		web, at := serve(t, "core", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // nothing of it counts
			close(taken)
			<-gone
			panic(http.ErrAbortHandler)
		}))
		r, err := New(Config{Unit: "dns", Base: web.URL, Web: client(t, nil, at), Path: filepath.Join(t.TempDir(), "state.dns")},
			Deps{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Board: health.NewBoard(time.Now, nil, nil)})
		if err != nil {
			t.Fatal(err)
		}
		cmd := state.PutDocument{Verb: state.Set, Document: state.Document{Kind: "dns/record", Key: "a", Value: []byte("1")}}
		go func() {
			<-taken
			close(gone) // the stream was never there: the replica knows that its source is gone
		}()
		if _, err := r.Propose(t.Context(), cmd); !errors.Is(err, state.ErrUnknownOutcome) {
			t.Errorf("a write that was taken: %v", err)
		}
		web.Close()
		if _, err := r.Propose(t.Context(), cmd); !errors.Is(err, state.ErrNoLeader) {
			t.Errorf("a write to nobody: %v", err)
		}
	})
}

// What is withheld is nowhere in what a node is sent, nor on its disk.
func TestNothingThatIsWithheldLeavesTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newServer(t, "fb1", 10)
		secret := "hunter2-hunter2"
		apply := func(index uint64, cmd state.Command) {
			t.Helper()
			if err := one.store.Apply(index, cmd); err != nil {
				t.Fatal(err)
			}
		}
		apply(11, state.KV{Verb: state.Set, Entry: state.Entry{Key: secret, Value: []byte(secret)}})
		apply(12, state.PutDocument{Verb: state.Set, Document: state.Document{Kind: "acl/token", Key: secret, Value: []byte(secret)}})
		one.confirmed(t)
		path := filepath.Join(t.TempDir(), "state.node")
		r, _, stop := follow(t, path, one)
		until(t, "it streams", from(r, one))
		apply(13, state.KV{Verb: state.Set, Entry: state.Entry{Key: secret, Value: []byte(secret + "2")}})
		apply(14, state.PutDocument{Verb: state.Set, Document: state.Document{Kind: "acl/token", Key: secret, Value: []byte(secret + "3")}})
		one.register(t, 15, "fb9")
		until(t, "what came behind it", has(r, "fb9"))
		if r.Store().Snapshot().Index() != 15 {
			t.Errorf("at %d", r.Store().Snapshot().Index())
		}
		stop()
		recorded := record(t, one)
		for where, text := range map[string]string{"the stream": recorded, "the disk": read(t, path)} {
			if !strings.Contains(text, "fb9") {
				t.Errorf("%s has nothing: %d bytes", where, len(text))
			}
			if strings.Contains(text, "hunter2") {
				t.Errorf("%s has what is withheld", where)
			}
		}
	})
}

// record is what a server streams up to its first beat.
func record(t *testing.T, s *server) string {
	t.Helper()
	response, err := client(t, nil, s.at).Get(s.web.URL + pathFollow)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var text strings.Builder
	for {
		kind, body, err := readFrame(response.Body, nil)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(body)
		if kind == frameBeat {
			return text.String()
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
