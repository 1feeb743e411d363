package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/admin"
	"holdfast/internal/peer"
	"holdfast/internal/run"
	"holdfast/logrelay"
	"holdfast/vrrp"
)

// heldRouters are three routers, of which this node has the first two.
type heldRouters struct {
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

// handing makes a handover of them, on fb2; what its relay answers, and other nodes.
func handing(answer error) (*handover, *heldRouters) {
	routers := &heldRouters{}
	return &handover{
		routers: routers, node: "fb2", log: slog.New(slog.DiscardHandler), every: time.Millisecond,
		relay: func(_ context.Context, addrs []netip.Addr, _ vrrp.Departure) error {
			routers.say(fmt.Sprint("relay ", addrs))
			return answer
		},
		ask: func(_ context.Context, node string, d vrrp.Departure) error {
			if routers.say("ask " + node + " " + d.Router); d.In > preemptLead || d.By != "fb2" {
				routers.say(fmt.Sprint("of ", d))
			}
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
	if err := h.HearOut(t.Context(), "fb2", vrrp.Departure{Router: "logs"}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"relay [10.1.0.101 10.1.0.102]"}, routers.said); diff != "" {
		t.Error(diff)
	}
}

// TestHoldersOfSeveralAddressesAreHeardOutAtTheSameTime. It fails if one is asked after
// the other's answer, which may take four seconds.
func TestHoldersOfSeveralAddressesAreHeardOutAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := handing(nil)
		var asked, alone atomic.Int32
		both := make(chan struct{})
		h.ask = func(ctx context.Context, node string, d vrrp.Departure) error {
			if asked.Add(1) == 2 {
				close(both)
			}
			select {
			case <-both: // neither answers before the other is asked
				return nil
			case <-ctx.Done():
				alone.Add(1)
				return ctx.Err()
			}
		}
		h.together(t.Context(), map[string]string{"logs": "fb1", "dns1": "fb3"})
		if asked.Load() != 2 || alone.Load() != 0 {
			t.Errorf("%d were asked, of which %d while the other was not", asked.Load(), alone.Load())
		}
	})
}

// TestAReturningNodeTellsTheHolderBeforeItPreempts: once, when little of
// preempt_delay is left. It fails if the holder is not told, is told again at each
// look, or long before; if another that has it by then is not; and if what it answers ends the watch.
func TestAReturningNodeTellsTheHolderBeforeItPreempts(t *testing.T) {
	h, routers := handing(errors.New("no route to host"))
	soon, late, never := standing("soon", vrrp.Backup), standing("late", vrrp.Backup), standing("never", vrrp.Backup)
	for _, r := range []*vrrp.RouterReport{&soon, &late, &never} {
		r.Status.Active, r.Settings.PreemptDelay = heldBy(3), time.Minute
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
		deadline := time.After(patience)
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
	routers.mu.Lock()
	another := again
	another.Status.Active = heldBy(1) // it went to another meanwhile
	routers.reports = []vrrp.RouterReport{another}
	routers.mu.Unlock()
	looks("the next holder is told", 10, func(said []string) bool { return len(said) > 2 })
	end()
	<-ended
	if diff := cmp.Diff([]string{"ask fb3 soon", "ask fb3 soon", "ask fb1 soon"}, routers.said); diff != "" {
		t.Error(diff)
	}
}

// TestATakeoverThatIsDueIsNoOneThatWaits: a node that takes an address after
// preempt_delay waits for no answer, so the holder is to dismiss streams at once. It
// fails if the word says 0, by which it hears RELP out before.
func TestATakeoverThatIsDueIsNoOneThatWaits(t *testing.T) {
	h, routers := handing(nil)
	due := standing("due", vrrp.Backup)
	due.Status.Active, due.Settings.PreemptDelay, due.Status.PreemptAt = heldBy(3), time.Minute, time.Now()
	routers.reports = []vrrp.RouterReport{due}
	asked := make(chan vrrp.Departure, 1)
	h.ask = func(_ context.Context, _ string, d vrrp.Departure) error {
		asked <- d
		return nil
	}
	ctx, end := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	defer watch.Wait()
	defer end()
	watch.Go(func() { h.watch(ctx) })
	select {
	case d := <-asked:
		if said, err := vrrp.ParseDeparture(d.Router, d.Args()); err != nil || said.In <= 0 {
			t.Errorf("it goes in %v: %v", said.In, err)
		}
	case <-time.After(patience):
		t.Error("the holder is not told")
	}
}

// TestRoutersAreLookedAtAsOftenAsTheirDelaysNeed: each look takes their time. It fails
// if they are looked at each second while no delay runs, not before one of two seconds
// is over, or more often for shorter ones.
func TestRoutersAreLookedAtAsOftenAsTheirDelaysNeed(t *testing.T) {
	h := &handover{every: preemptEvery}
	for delay, want := range map[time.Duration]struct{ idle, runs time.Duration }{
		0:                           {preemptNever, preemptNever},
		time.Minute:                 {preemptNever, preemptEvery},
		preemptLead + 3*time.Second: {3 * time.Second, preemptEvery},
		2 * time.Second:             {preemptEvery, preemptEvery},
		100 * time.Millisecond:      {preemptEvery, preemptEvery},
	} {
		r := standing("logs", vrrp.Backup)
		r.Settings.PreemptDelay = delay
		all := []vrrp.RouterReport{standing("dns1", vrrp.Backup), r}
		if got := h.nextLook(all); got != want.idle {
			t.Errorf("delay %v: after %v, want %v", delay, got, want.idle)
		}
		all[1].Status.PreemptAt = time.Now().Add(delay)
		if got := h.nextLook(all); got != want.runs {
			t.Errorf("delay %v, which runs: after %v, want %v", delay, got, want.runs)
		}
	}
}

// TestANodeThatDoesNotHoldItWasNotTheOneToTell: what this node sees may be old. It
// fails if that counts as told.
func TestANodeThatDoesNotHoldItWasNotTheOneToTell(t *testing.T) {
	d := vrrp.Departure{Router: "dns1"}
	if err := wasTold("fb3", d, vrrp.Told{Name: "dns1", Holds: true}); err != nil {
		t.Error(err)
	}
	if err := wasTold("fb3", d, vrrp.Told{Name: "dns1"}); err == nil || !strings.Contains(err.Error(), "fb3 does not hold dns1") {
		t.Errorf("it says %v", err)
	}
}

// TestAUnitWithoutACertificateAsksByCore: core asks the other node, and passes all
// else on to the unit. It fails if core sends the question back to the unit, which
// can't ask, or keeps to itself that the other node does not answer.
func TestAUnitWithoutACertificateAsksByCore(t *testing.T) {
	var asked []string
	unit := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = append(asked, "unit "+r.URL.Path) })
	core := tellsOthers(func(_ context.Context, node string, d vrrp.Departure) error {
		if asked = append(asked, fmt.Sprint(node, " ", d)); d.Router == "dns2" {
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
	if err := ask(t.Context(), "fb3", vrrp.Departure{Router: "dns1", In: 3 * time.Second, By: "fb2"}); err != nil {
		t.Error(err)
	}
	if err := ask(t.Context(), "fb3", vrrp.Departure{Router: "dns2"}); err == nil || !strings.Contains(err.Error(), "no route to host") {
		t.Errorf("a node that does not answer: %v", err)
	}
	core.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", vrrp.AdminPath+"hold/dns1", nil))
	if diff := cmp.Diff([]string{"fb3 {dns1 3s fb2}", "fb3 {dns2 0s }", "unit " + vrrp.AdminPath + "hold/dns1"}, asked); diff != "" {
		t.Error(diff)
	}
}

// TestAMoveSaysThatTheHolderCouldNotBeTold: and is done.
func TestAMoveSaysThatTheHolderCouldNotBeTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "net.sock")
	server, err := admin.New(admin.Config{Unit: "net", Path: socket}, admin.Deps{
		Handler: vrrp.NewAdmin(vrrp.AdminDeps{
			Node: "fbservice1", Routers: &oneRouter{state: vrrp.Backup},
			HearOut: func(context.Context, string, vrrp.Departure) error { return errors.New("no route to host") },
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

// TestTheRelayHearsOfTheAddressesThatThisNodeHas, and what it answers is told.
func TestTheRelayHearsOfTheAddressesThatThisNodeHas(t *testing.T) {
	for _, answer := range []error{nil, errors.New("it is busy")} {
		h, routers := handing(answer)
		for _, name := range []string{"logs", "away", "dns1"} {
			want := answer
			if name == "away" {
				want = nil
			}
			if err := h.HearOut(t.Context(), "fb2", vrrp.Departure{Router: name}); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
		want := []string{"relay [10.1.0.101 fd00::101]", "relay [10.1.0.102]"}
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
	d := vrrp.Departure{Router: "logs", In: 3 * time.Second, By: "fb1"}
	if err := tell(t.Context(), addrs, d); err != nil {
		t.Errorf("no relay runs here: %v", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path+" "+strings.Join(r.URL.Query()["address"], " ")+" in "+r.URL.Query().Get("in")+" by "+r.URL.Query().Get("by"))
		if len(asked) > 1 {
			http.Error(w, "it is full", http.StatusTeapot)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	first, second := tell(t.Context(), addrs, d), tell(t.Context(), addrs, d)
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	<-served
	want := "POST " + logrelay.LeavePath + " 10.1.0.101 fd00::101 in 3s by fb1"
	if first != nil || !slices.Equal(asked, []string{want, want}) {
		t.Errorf("asked %q: %v", asked, first)
	}
	if second == nil || !strings.Contains(second.Error(), "it is full") {
		t.Errorf("a relay that refuses: %v", second)
	}
}

// TestWhoTellsIsNamedByItsCertificate: the relay's log says who had its clients sent
// away. It fails if a member can put that on another.
func TestWhoTellsIsNamedByItsCertificate(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	if err := peer.Init(ca, "foobar"); err != nil {
		t.Fatal(err)
	}
	trustOf := func(name string) *peer.Trust {
		t.Helper()
		out := filepath.Join(dir, name)
		if err := peer.Issue(ca, out, peer.Request{Identity: peer.Identity{Name: name, Role: peer.RoleServer}}); err != nil {
			t.Fatal(err)
		}
		trust, err := peer.Load(out)
		if err != nil {
			t.Fatal(err)
		}
		return trust
	}
	here := trustOf("fb1")
	server := httptest.NewUnstartedServer(saidBy(here, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.URL.Path, " in ", r.URL.Query().Get("in"), " by ", r.URL.Query().Get("by"))
	})))
	server.TLS = here.ServerOptional()
	server.StartTLS()
	defer server.Close()
	config := trustOf("fb2").ClientOf(peer.RoleServer, "fb1")
	nobody := config.Clone()
	nobody.Certificates, nobody.GetClientCertificate = nil, nil
	for _, one := range []struct {
		config     *tls.Config
		path, want string
	}{
		{config, vrrp.AdminPath + "leave/dns1", "fb2"}, {nobody, vrrp.AdminPath + "leave/dns1", "fb3"}, {config, vrrp.AdminPath + "hold/dns1", "fb3"},
	} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: one.config}}
		answer, err := client.Post(server.URL+one.path+"?in=3s&by=fb3", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		client.CloseIdleConnections()
		if want := one.path + " in 3s by " + one.want; err != nil || string(text) != want {
			t.Errorf("%q, %v; want %q", text, err, want)
		}
	}
	if saidBy(here, nil) != nil {
		t.Error("a tree where there is none")
	}
}
