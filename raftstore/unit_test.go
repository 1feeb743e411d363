package raftstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/cluster"
	"holdfast/internal/peer"
	"holdfast/internal/state"
)

func TestConfigRefusesWhatCannotWork(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca")
	if err := peer.Init(ca, "foobar"); err != nil {
		t.Fatal(err)
	}
	trust := func(role peer.Role, name string) *peer.Trust {
		dir := filepath.Join(t.TempDir(), name)
		if err := peer.Issue(ca, dir, peer.Request{Identity: peer.Identity{Name: name, Role: role}}); err != nil {
			t.Fatal(err)
		}
		loaded, err := peer.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return loaded
	}
	good := Config{
		Node: "fb1", NodeID: ourStore, DataDir: t.TempDir(), Cluster: "foobar", Servers: []string{"fb1", "fb2", "fb3"},
		Listen: netip.MustParseAddrPort("10.1.0.1:8300"), Trust: trust(peer.RoleServer, "fb1"),
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"as it should be":               {func(*Config) {}, ""},
		"another case":                  {func(c *Config) { c.Servers[0] = "FB1" }, ""},
		"no name":                       {func(c *Config) { c.Node = "" }, "none may be empty"},
		"no UUID":                       {func(c *Config) { c.NodeID = "1" }, `node ID "1" is not a UUID`},
		"not a server":                  {func(c *Config) { c.Servers = []string{"fb2"} }, "node fb1 is not among the servers"},
		"a server twice":                {func(c *Config) { c.Servers = []string{"fb1", "fb2", "FB2"} }, "listed twice"},
		"more voters than servers":      {func(c *Config) { c.Voters = 5 }, "5 voters: must be 1 to 3"},
		"too slow":                      {func(c *Config) { c.Timing = 100 }, "must be 0.1 to 20"},
		"no address":                    {func(c *Config) { c.Listen = netip.AddrPort{} }, "both need an address"},
		"every address, none to show":   {func(c *Config) { c.Listen = netip.MustParseAddrPort("0.0.0.0:8300") }, "the advertised one must be a real one"},
		"no certificate":                {func(c *Config) { c.Trust = nil }, "no certificates"},
		"an agent's certificate":        {func(c *Config) { c.Trust = trust(peer.RoleAgent, "fb1") }, "that of agent fb1 of cluster foobar, needed is that of server fb1"},
		"another server's certificate":  {func(c *Config) { c.Trust = trust(peer.RoleServer, "fb2") }, "that of server fb2"},
		"another cluster's certificate": {func(c *Config) { c.Cluster = "other" }, "needed is that of server fb1 of cluster other"},
		"plain text on a real address":  {func(c *Config) { c.Insecure, c.Trust = true, nil }, "refused to serve 10.1.0.1:8300 in plain text"},
		"plain text, and meant":         {func(c *Config) { c.Insecure, c.Trust, c.AllowInsecureAddress = true, nil, true }, ""},
		"plain text on loopback":        {func(c *Config) { c.Insecure, c.Trust, c.Listen = true, nil, netip.MustParseAddrPort("127.0.0.1:8300") }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			config := good
			config.Servers = append([]string(nil), good.Servers...)
			c.change(&config)
			_, err := New(config, state.New(), Deps{})
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Fatalf("New: %v, want %q", err, c.want)
			}
		})
	}
}

func TestInsecureServersSayIt(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start(func(c *Config) { c.Insecure, c.Trust = true, nil })
	h.leader()
	o.put("k", "v")
	if !strings.Contains(o.log.String(), "level=WARN msg=\"INSECURE:") {
		t.Error("no warning in the log")
	}
	o.onlyCondition(conditionInsecure)
}

// example is the configuration in README.md.
func example(t *testing.T) *cluster.File {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(readme)
	if found == nil {
		t.Fatal("README.md has no example")
	}
	f, err := cluster.Parse("README.md", found[1], map[string]cluster.SectionValidator{"raft": ValidateSection})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestTheExampleOfTheREADMEWorks(t *testing.T) {
	f := example(t)
	c, err := ConfigFrom(f, f.Section("raft"))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Cluster: "foobar", Servers: []string{"fbservice1", "fbservice2", "fbservice3", "fbservice4"}, Voters: 3, Timing: 2, Backups: Backups{"/srv/backup/holdfast", 6 * time.Hour, 24 * time.Hour}}
	if diff := cmp.Diff(want, c, cmp.Comparer(func(a, b *peer.Trust) bool { return a == b }), cmp.Comparer(func(a, b func(string)) bool { return a == nil && b == nil }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestSectionRefusesABadTiming(t *testing.T) {
	text := strings.Replace("schema: 1\ncluster: c\ndomain: d.example\nnetworks:\n  a: {prefix: 10.1.0.0/24}\nroles:\n  service: {voters: 1}\nnodes:\n  xservice1: {role: service, addresses: {a: 10.1.0.1}}\nraft: {timing: T}\n", "T", "50", 1)
	_, err := cluster.Parse("f", []byte(text), map[string]cluster.SectionValidator{"raft": ValidateSection})
	if err == nil || !strings.Contains(err.Error(), "timing 50: must be 0.1 to 20") || !strings.Contains(err.Error(), "f:10:") {
		t.Fatalf("Parse: %v", err)
	}
}

func TestMetricsAreLintedAndInTheREADME(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	m, err := newMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	m.proposals.WithLabelValues("applied").Inc()
	m.changes.WithLabelValues(string(changeAdd)).Inc()
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !bytes.Contains(readme, []byte("`"+f.GetName()+"`")) {
			t.Errorf("README.md does not list %s", f.GetName())
		}
	}
	for _, c := range []string{conditionNoLeader, conditionHalted, conditionOtherStore, conditionDisk, conditionInsecure, conditionRefused, conditionRestore, conditionDamaged} {
		if !bytes.Contains(readme, []byte("`"+c+"`")) {
			t.Errorf("README.md does not list the condition %s", c)
		}
	}
	if _, err := newMetrics(registry); err == nil {
		t.Error("the same metrics were registered twice")
	}
}

// stuckLog is a log whose disk can hang.
type stuckLog struct {
	raft.LogStore
	mu   sync.Mutex
	hang chan struct{} // nil: the disk is fine
}

func (l *stuckLog) set(hang chan struct{}) {
	l.mu.Lock()
	l.hang = hang
	l.mu.Unlock()
}

func (l *stuckLog) StoreLogs(entries []*raft.Log) error {
	l.mu.Lock()
	hang := l.hang
	l.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return l.LogStore.StoreLogs(entries)
}

func entries(first, last, term uint64) (list []*raft.Log) {
	for i := first; i <= last; i++ {
		list = append(list, &raft.Log{Index: i, Term: term})
	}
	return list
}

func TestWatchdogTakesBackWhatWasWrittenLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &stuckLog{LogStore: raft.NewInmemStore()}
		var hung, answered atomic.Int32
		w := &watchdog{LogStore: disk, limit: 2 * time.Second, onHung: func() { hung.Add(1) }, onAnswer: func() { answered.Add(1) }}
		if err := w.StoreLogs(entries(1, 3, 1)); err != nil {
			t.Fatal(err)
		}
		hang := make(chan struct{})
		disk.set(hang)
		start := time.Now()
		if err := w.StoreLogs(entries(4, 8, 1)); !errors.Is(err, errHung) || time.Since(start) != 2*time.Second || hung.Load() != 1 {
			t.Fatalf("a write that hangs: %v after %v, %d times noted", err, time.Since(start), hung.Load())
		}
		if err := w.StoreLog(entries(4, 4, 2)[0]); !errors.Is(err, errHung) {
			t.Errorf("a write behind one that hangs: %v", err)
		}
		if err := w.DeleteRange(1, 2); !errors.Is(err, errHung) {
			t.Errorf("a deletion behind a write that hangs: %v", err)
		}
		disk.set(nil)
		close(hang) // the write reaches the disk after all
		synctest.Wait()
		if last, _ := disk.LastIndex(); last != 3 || answered.Load() != 1 {
			t.Fatalf("entries up to %d are on the disk; Raft was told that 4 to 8 are not", last)
		}
		if err := w.StoreLogs(entries(4, 4, 2)); err != nil {
			t.Errorf("the disk answers again: %v", err)
		}
	})
}

func TestLeaderWhoseDiskHangsStepsDown(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.hung = 0
	disks := map[string]*stuckLog{}
	for name, o := range h.all {
		o.disk = func(l raft.LogStore) raft.LogStore {
			disks[name] = &stuckLog{LogStore: l}
			return disks[name]
		}
	}
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	old := h.leader()
	survivor := h.besides(old)[0]
	hang := make(chan struct{})
	disks[old.name].set(hang)
	outcome := make(chan error, 1)
	go func() { // meets the disk
		_, err := old.tryPut("k", "v")
		outcome <- err
	}()
	start := time.Now()
	eventually(t, "another leader", func() error {
		if name, _, ok := survivor.store.Leader(); !ok || name == old.name {
			return errors.New(name)
		}
		return nil
	})
	t.Logf("another leader %v after the disk stopped to answer", time.Since(start))
	survivor.put("after", "1")
	if err := <-outcome; !errors.Is(err, state.ErrUnknownOutcome) && !errors.Is(err, state.ErrNoLeader) {
		t.Errorf("the write that met the disk: %v", err)
	}
	old.onlyCondition(conditionDisk)
	disks[old.name].set(nil)
	close(hang)
	h.everywhere("after", "1") // the server is of use again
	eventually(t, "no condition", func() error {
		if c := old.board.Conditions(); len(c) > 0 {
			return errors.New(c[0].Message)
		}
		return nil
	})
}

func TestLimiterLetsOneThroughInEveryInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(time.Minute)
		if !l.allow("a") || l.allow("a") || !l.allow("b") {
			t.Error("the first of each is let through, and no more")
		}
		time.Sleep(time.Minute)
		if !l.allow("a") {
			t.Error("after a minute the next is let through")
		}
		for i := range 3 * maxLimited {
			l.allow(string(rune(i)))
		}
		if len(l.last) > maxLimited {
			t.Errorf("%d sources are remembered", len(l.last))
		}
	})
}

func TestRaftsLogIsOneLevelQuieter(t *testing.T) {
	var out bytes.Buffer
	var quiet atomic.Bool
	l := newRaftLog(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})), &quiet)
	l.Info("entering follower state", "follower", hclog.Fmt("%s-%d", "fb", 1))
	l.Warn("failed to contact", "server-id", "a", "odd")
	l.Warn("failed to contact", "server-id", "a")
	l.Warn("failed to contact", "server-id", "b")
	l.With("term", 3).Named("net").Error("broken")
	l.Error("failed to appendEntries to", "peer", "a", "error", errDeposed)
	log.New(l.StandardWriter(nil), "", 0).Print("from a standard logger")
	quiet.Store(true)
	l.Error("stopping")
	want := `level=DEBUG msg="raft: entering follower state" follower=fb-1
level=INFO msg="raft: failed to contact" server-id=a
level=DEBUG msg="raft: failed to contact" server-id=a
level=INFO msg="raft: failed to contact" server-id=b
level=WARN msg="raft: broken" term=3
level=DEBUG msg="raft: failed to appendEntries to" peer=a error="this server no longer leads in the term of the message"
level=INFO msg="raft: from a standard logger"
level=DEBUG msg="raft: stopping"
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if !l.IsTrace() || l.GetLevel() != hclog.Debug || l.Name() != "raft" {
		t.Errorf("level %v, name %q", l.GetLevel(), l.Name())
	}
}

// fakeHandler answers everything.
type fakeHandler struct{ got atomic.Value }

func (f *fakeHandler) proposeHere(_ context.Context, b []byte) (uint64, error) {
	f.got.Store(string(b))
	return 7, state.ErrConflict
}
func (f *fakeHandler) readIndexHere(context.Context) (uint64, error) {
	return 0, &untouchedError{state.ErrNoLeader}
}
func (f *fakeHandler) progressHere() progress { return progress{ID: "x", Applied: 3} }
func (f *fakeHandler) removeHere(_ context.Context, s string) (uint64, error) {
	return 0, errNotServer(s)
}
func (f *fakeHandler) transferHere(_ context.Context, to string) error {
	f.got.Store(to)
	return nil
}
func (f *fakeHandler) restoreHere(_ context.Context, r io.Reader) (uint64, error) {
	n, err := io.Copy(io.Discard, r)
	return uint64(n), err
}
func (f *fakeHandler) digestHere(context.Context, uint64) digest    { return digest{} }
func (f *fakeHandler) rebuildHere(context.Context, io.Reader) error { return nil }
func (f *fakeHandler) operateHere(context.Context, operation) (json.RawMessage, error) {
	return nil, nil
}
func (f *fakeHandler) formHere(req formRequest) (formReply, error) {
	return formReply{OK: true, Promised: req.Ballot}, nil
}

func TestAnswersSurviveTheWire(t *testing.T) {
	server := httptest.NewServer(routes(&fakeHandler{}, 100))
	defer server.Close()
	client := &rpcClient{}
	client.via.Store(server.Client().Transport.(*http.Transport))
	address := strings.TrimPrefix(server.URL, "http://")
	ctx := t.Context()
	if index, err := client.ask(ctx, address, pathPropose, strings.NewReader("cmd")); index != 7 || !errors.Is(err, state.ErrConflict) || untouched(err) {
		t.Errorf("propose: %d, %v", index, err)
	}
	if _, err := client.ask(ctx, address, pathReadIndex, nil); !errors.Is(err, state.ErrNoLeader) || !untouched(err) {
		t.Errorf("read index: %v, untouched %v", err, untouched(err))
	}
	if _, err := client.ask(ctx, address, pathRemove, jsonBody(target{"fb9"})); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("remove: %v", err)
	}
	if _, err := client.ask(ctx, address, pathRemove, strings.NewReader("{")); err == nil || !untouched(err) {
		t.Errorf("a message cut short: %v", err)
	}
	if _, err := client.ask(ctx, address, pathRestore, strings.NewReader(strings.Repeat("x", 200))); err == nil {
		t.Error("200 bytes passed where 100 are allowed")
	}
	if _, err := client.ask(ctx, address, "/v1/abdicate", nil); err == nil || !strings.Contains(err.Error(), "404") || untouched(err) {
		t.Errorf("an unknown path: %v", err)
	}
	server.Close()
	if _, err := client.ask(ctx, address, pathReadIndex, nil); err == nil {
		t.Error("an answer from a server that is gone")
	}
}

func FuzzRequests(f *testing.F) {
	for _, path := range []string{pathPropose, pathReadIndex, pathProgress, pathRemove, pathTransfer, pathRestore, pathForm} {
		f.Add(path, []byte(`{"server":"fb1","step":"prepare","electorate":["fb1"],"ballot":{"round":1,"server":"fb1"}}`))
	}
	electorate := []string{"fb1", "fb2", "fb3"}
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		memory := &acceptor{}
		h := routes(&formingHandler{acceptor: memory, electorate: electorate}, 1000)
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.URL.Path = path
		h.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%s %q: %d", path, body, w.Code)
		}
		for _, d := range []*decree{memory.Accepted, memory.Decided} {
			if d != nil && d.validate() != nil {
				t.Fatalf("%q made an acceptor take %+v", body, d)
			}
		}
	})
}

// formingHandler answers like fakeHandler, but its acceptor is real.
type formingHandler struct {
	fakeHandler
	acceptor   *acceptor
	electorate []string
}

func (f *formingHandler) formHere(req formRequest) (formReply, error) {
	reply, _ := f.acceptor.handle(f.electorate, req)
	return reply, nil
}

func TestErrorsOfApply(t *testing.T) {
	for err, want := range map[error]struct {
		is        error
		untouched bool
	}{
		raft.ErrNotLeader:                    {state.ErrNoLeader, true},
		raft.ErrLeadershipTransferInProgress: {state.ErrNoLeader, true},
		raft.ErrEnqueueTimeout:               {state.ErrNoLeader, true},
		raft.ErrLeadershipLost:               {state.ErrUnknownOutcome, false},
		raft.ErrRaftShutdown:                 {state.ErrUnknownOutcome, false},
		raft.ErrAbortedByRestore:             {state.ErrUnknownOutcome, false},
		errHung:                              {state.ErrUnknownOutcome, false},
	} {
		if got := applyError(err); !errors.Is(got, want.is) || !errors.Is(got, err) || untouched(got) != want.untouched {
			t.Errorf("%v became %v, untouched %v", err, got, untouched(got))
		}
	}
}
