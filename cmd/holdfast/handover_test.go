package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/admin"
	"holdfast/internal/run"
	"holdfast/logrelay"
	"holdfast/vrrp"
)

// heldRouters are three routers, of which this node has the first two.
type heldRouters struct {
	vrrp.Routers
	mu      sync.Mutex
	said    []string
	looked  int
	reports []vrrp.RouterReport // instead of those
}

func (r *heldRouters) Status(context.Context) ([]vrrp.RouterReport, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.looked++; r.reports != nil {
		return slices.Clone(r.reports), nil
	}
	return []vrrp.RouterReport{
		standing("logs", vrrp.Active, "10.1.0.101/24", "fd00::101/64"), standing("dns1", vrrp.Active, "10.1.0.102/24"),
		standing("away", vrrp.Backup, "10.1.0.103/24"),
	}, nil
}

// standing is of a router that is to be on fb1, then fb2, then fb3.
func standing(name string, state vrrp.State, prefixes ...string) (r vrrp.RouterReport) {
	r.Settings.Name, r.Settings.Preempt, r.Status.State = name, true, state
	r.Settings.Order = []string{"fb1", "fb2", "fb3"}
	r.Settings.Nodes = map[netip.Addr]string{}
	for i, node := range r.Settings.Order {
		r.Settings.Nodes[heldBy(i+1)] = node
	}
	for _, p := range prefixes {
		r.Held = append(r.Held, vrrp.AddressReport{Prefix: netip.MustParsePrefix(p)})
	}
	return r
}

// heldBy is the address of a node.
func heldBy(node int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 0, byte(node)}) }

func (r *heldRouters) say(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, what)
}

func (r *heldRouters) Yield(_ context.Context, router string) error {
	r.say("yield " + router)
	return nil
}

func (r *heldRouters) Release(_ context.Context, router string) error {
	r.say("release " + router)
	return nil
}

// handing makes a handover of them, on fb2; what its relay answers, and other nodes.
func handing(answer error) (*handover, *heldRouters) {
	routers := &heldRouters{}
	return &handover{
		Routers: routers, node: "fb2", log: slog.New(slog.DiscardHandler), every: time.Millisecond,
		relay: func(_ context.Context, addrs []netip.Addr) error {
			routers.say(fmt.Sprint("relay ", addrs))
			return answer
		},
		ask: func(_ context.Context, node, router string) error {
			routers.say("ask " + node + " " + router)
			return answer
		},
	}, routers
}

// TestARouterTakesItsGroupAlong: the addresses of a sync group go together, and so
// are heard out together. It fails if only the named router's are.
func TestARouterTakesItsGroupAlong(t *testing.T) {
	h, routers := handing(nil)
	routers.reports = []vrrp.RouterReport{
		standing("logs", vrrp.Active, "10.1.0.101/24"), standing("front", vrrp.Active, "10.1.0.102/24"), standing("dns1", vrrp.Active, "10.1.0.103/24"),
	}
	routers.reports[0].Settings.Group, routers.reports[1].Settings.Group = "one", "one"
	if err := h.Yield(t.Context(), "logs"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"relay [10.1.0.101 10.1.0.102]", "yield logs"}, routers.said); diff != "" {
		t.Error(diff)
	}
}

// TestAReleaseByWhichAnAddressGoesIsHeardFirst: fb1 takes it back from fb2, which
// held it by order, or fb2 from fb3, for which it had stood back. It fails if the
// node that loses it hears of it late or not at all, and if one does that keeps it:
// its clients would wait for nothing.
func TestAReleaseByWhichAnAddressGoesIsHeardFirst(t *testing.T) {
	held := standing("logs", vrrp.Active, "10.1.0.101/24")
	held.Status.Pulled = true
	first := held
	first.Settings.Order = []string{"fb2", "fb1"}
	back := standing("logs", vrrp.Backup, "10.1.0.101/24")
	back.Status.Yielded, back.Status.Active = true, heldBy(3)
	worse := back
	worse.Status.Active = heldBy(1)
	plain, later, keeps := held, back, held
	plain.Status.Pulled = false
	later.Settings.PreemptDelay = time.Minute // told before that is over
	keeps.Settings.Preempt = false
	for name, test := range map[string]struct {
		report vrrp.RouterReport
		want   []string
	}{
		"held here, and another's":  {held, []string{"relay [10.1.0.101]", "release logs"}},
		"held here, and ours":       {first, []string{"release logs"}},
		"held here, by priority":    {plain, []string{"release logs"}},
		"held here, and kept":       {keeps, []string{"release logs"}},
		"stood back, and ours":      {back, []string{"ask fb3 logs", "release logs"}},
		"stood back, and another's": {worse, []string{"release logs"}},
		"stood back, for later":     {later, []string{"release logs"}},
	} {
		h, routers := handing(errors.New("it is busy"))
		routers.reports = []vrrp.RouterReport{test.report}
		if err := h.Release(t.Context(), "logs"); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(test.want, routers.said); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestAReturningNodeTellsTheHolderBeforeItPreempts: once, when little of
// preempt_delay is left. It fails if the holder is not told, is told again at each
// look, or long before; and if what it answers ends the watch.
func TestAReturningNodeTellsTheHolderBeforeItPreempts(t *testing.T) {
	h, routers := handing(errors.New("no route to host"))
	soon, late, never := standing("soon", vrrp.Backup), standing("late", vrrp.Backup), standing("never", vrrp.Backup)
	for _, r := range []*vrrp.RouterReport{&soon, &late, &never} {
		r.Status.Active = heldBy(3)
	}
	soon.Status.PreemptAt, late.Status.PreemptAt = time.Now().Add(preemptLead/2), time.Now().Add(time.Hour)
	routers.reports = []vrrp.RouterReport{soon, late, never}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.watch(ctx)
	}()
	looks := func(what string, more int, told func([]string) bool) {
		t.Helper()
		began := -1
		deadline := time.After(20 * time.Second)
		for {
			routers.mu.Lock()
			looked, said := routers.looked, slices.Clone(routers.said)
			routers.mu.Unlock()
			if began < 0 && told(said) {
				began = looked
			}
			if began >= 0 && looked >= began+more {
				return
			}
			select {
			case <-deadline:
				t.Fatalf("%s: %q after %d looks", what, said, looked)
			case <-time.After(time.Millisecond):
			}
		}
	}
	looks("the holder is told", 10, func(said []string) bool { return len(said) > 0 })
	routers.mu.Lock()
	again := soon
	again.Status.PreemptAt = time.Now().Add(preemptLead / 2) // it came back once more
	routers.reports = []vrrp.RouterReport{again}
	routers.mu.Unlock()
	looks("the holder is told of the next time", 10, func(said []string) bool { return len(said) > 1 })
	end()
	<-ended
	if diff := cmp.Diff([]string{"ask fb3 soon", "ask fb3 soon"}, routers.said); diff != "" {
		t.Error(diff)
	}
}

// TestAUnitWithoutACertificateAsksByCore: core asks the other node, and passes all
// else on to the unit. It fails if core sends the question back to the unit, which
// can't ask, or keeps to itself that the other node does not answer.
func TestAUnitWithoutACertificateAsksByCore(t *testing.T) {
	var asked []string
	unit := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = append(asked, "unit "+r.URL.Path) })
	core := tellsOthers(func(_ context.Context, node, router string) error {
		if asked = append(asked, node+" "+router); router == "dns2" {
			return errors.New("no route to host")
		}
		return nil
	}, unit)
	socket := filepath.Join(t.TempDir(), "core.sock")
	server, err := admin.New(admin.Config{Unit: "core", Path: socket}, admin.Deps{Handler: core, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, server)
	ask := leaveByCore(socket)
	if err := ask(t.Context(), "fb3", "dns1"); err != nil {
		t.Error(err)
	}
	if err := ask(t.Context(), "fb3", "dns2"); err == nil || !strings.Contains(err.Error(), "no route to host") {
		t.Errorf("a node that does not answer: %v", err)
	}
	core.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", vrrp.AdminPath+"hold/dns1", nil))
	if diff := cmp.Diff([]string{"fb3 dns1", "fb3 dns2", "unit " + vrrp.AdminPath + "hold/dns1"}, asked); diff != "" {
		t.Error(diff)
	}
}

// TestAMoveSaysThatTheHolderCouldNotBeTold: and is done.
func TestAMoveSaysThatTheHolderCouldNotBeTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "net.sock")
	server, err := admin.New(admin.Config{Unit: "net", Path: socket}, admin.Deps{
		Handler: vrrp.NewAdmin(vrrp.AdminDeps{
			Node: "fbservice1", Routers: &oneRouter{state: vrrp.Backup},
			HearOut: func(context.Context, string, string) error { return errors.New("no route to host") },
		}),
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, server)
	var out bytes.Buffer
	status := execute(t.Context(), []string{"vip", "hold", "dns1", "--socket", socket}, strings.NewReader(""), &out, &out)
	want := "fbservice1 holds dns1; the holder fbservice2 could not be told before: some log lines may come twice: no route to host\n"
	if status != exitOK || out.String() != want {
		t.Errorf("exit status %d: %q, want %q", status, out.String(), want)
	}
}

// TestTheRelayHearsOfAPlannedMoveFirst: of the addresses that this node has, and
// what it answers stops no move.
func TestTheRelayHearsOfAPlannedMoveFirst(t *testing.T) {
	for _, answer := range []error{nil, errors.New("it is busy")} {
		h, routers := handing(answer)
		for _, name := range []string{"logs", "away", "dns1"} {
			if err := h.Yield(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
		want := []string{"relay [10.1.0.101 fd00::101]", "yield logs", "yield away", "relay [10.1.0.102]", "yield dns1"}
		if diff := cmp.Diff(want, routers.said); diff != "" {
			t.Errorf("the relay answers %v: %s", answer, diff)
		}
	}
}

// TestTheRelayHearsOfTheEndBeforeTheRoutersDo: of all addresses at once. In the
// other order they are another node's when its clients hear of it.
func TestTheRelayHearsOfTheEndBeforeTheRoutersDo(t *testing.T) {
	h, routers := handing(nil)
	tasks := (&network{given: h}).tasks()
	if last := tasks[len(tasks)-1]; last != run.Task(h) {
		t.Errorf("%s is stopped first", last)
	}
	moves := run.Func("routers", func(ctx context.Context, ready func()) error {
		ready()
		<-ctx.Done()
		routers.say("addresses go")
		return nil
	})
	ctx, end := context.WithCancel(t.Context())
	group := run.Group{Log: slog.New(slog.DiscardHandler)}
	if err := group.Run(ctx, end, moves, h); err != nil {
		t.Fatal(err)
	}
	want := []string{"relay [10.1.0.101 fd00::101 10.1.0.102]", "addresses go"}
	if diff := cmp.Diff(want, routers.said); diff != "" {
		t.Error(diff)
	}
}

// TestTheRelayIsToldByItsSocket, if there is one.
func TestTheRelayIsToldByItsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs.sock")
	addrs := []netip.Addr{netip.MustParseAddr("10.1.0.101"), netip.MustParseAddr("fd00::101")}
	tell := tellRelay(path)
	if err := tell(t.Context(), addrs); err != nil {
		t.Errorf("no relay runs here: %v", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path+" "+strings.Join(r.URL.Query()["address"], " "))
		if len(asked) > 1 {
			http.Error(w, "it is full", http.StatusTeapot)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	first, second := tell(t.Context(), addrs), tell(t.Context(), addrs)
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	<-served
	want := "POST " + logrelay.LeavePath + " 10.1.0.101 fd00::101"
	if first != nil || !slices.Equal(asked, []string{want, want}) {
		t.Errorf("asked %q: %v", asked, first)
	}
	if second == nil || !strings.Contains(second.Error(), "it is full") {
		t.Errorf("a relay that refuses: %v", second)
	}
}
