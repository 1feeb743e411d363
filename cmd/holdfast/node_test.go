package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/api"
	"holdfast/internal/admin"
	"holdfast/internal/state"
	"holdfast/lb"
	"holdfast/vrrp"
)

// drainable is a net unit that writes down what it is told.
type drainable struct {
	oneRouter
	mu   sync.Mutex
	said []string
}

func (d *drainable) note(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.said = append(d.said, what)
}

func (d *drainable) Yield(ctx context.Context, name string) error {
	d.note("yield " + name)
	return d.oneRouter.Yield(ctx, name)
}

func (d *drainable) Release(_ context.Context, name string) error {
	d.note("release " + name)
	return nil
}

// told is what it was told since the last call.
func (d *drainable) told() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	said := strings.Join(d.said, ", ")
	d.said = nil
	return said
}

// listen answers on a socket for virtual addresses and the load balancer;
// refuse is the status that a drain gets, or 0.
func (d *drainable) listen(t *testing.T, refuse *int) (socket string) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(vrrp.AdminPath, vrrp.NewAdmin(vrrp.AdminDeps{Node: "fbservice1", Routers: d}))
	mux.HandleFunc("POST "+lb.AdminPath+"{verb}/{node}", func(w http.ResponseWriter, r *http.Request) {
		if *refuse != 0 {
			http.Error(w, "refused", *refuse)
			return
		}
		d.note("lb " + r.PathValue("verb") + " " + r.PathValue("node") + " " + r.FormValue("message"))
		_, _ = w.Write([]byte("{}")) // the client is gone
	})
	socket = filepath.Join(t.TempDir(), "net.sock")
	listenAdmin(t, socket, mux)
	return socket
}

// hook writes a program of the site.
func hook(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// drainedInCatalog tells whether the store says that the node is in maintenance.
func drainedInCatalog(t *testing.T, n *node) bool {
	t.Helper()
	out, _ := n.run(t, "", "status", "--json")
	return strings.Contains(out, "_node_maintenance")
}

func TestANodeIsDrainedFromAllThatItDoesAndPutBack(t *testing.T) {
	n := startNode(t, "web: {on: fbservice1, port: 80, check: {ttl: 1h}}")
	n.until(t, "the service is registered", func() bool {
		out, _ := n.run(t, "", "services")
		return strings.Contains(out, "web")
	})
	refuse, units := 0, &drainable{oneRouter: oneRouter{state: vrrp.Active}}
	t.Setenv("HOLDFAST_NET_SOCKET", units.listen(t, &refuse))
	hooks, ran := t.TempDir(), filepath.Join(t.TempDir(), "ran")
	t.Setenv("HOLDFAST_DRAIN_HOOKS", hooks)
	hook(t, hooks, "10-slurm", "echo 10 $* >>"+ran)
	hook(t, hooks, "20-mail", "echo 20 $* >>"+ran)
	if err := os.WriteFile(filepath.Join(hooks, "README"), nil, 0o644); err != nil {
		t.Fatal(err)
	}

	n.expect(t, exitUsage, "this is fbservice1", "node", "drain", "fbservice2")
	if told := units.told(); told != "" {
		t.Errorf("a wrong name changed something: %s", told)
	}
	n.expect(t, exitOK, "holds             dns1\n", "node", "status")
	out := n.expect(t, exitOK, "", "node", "drain", "fbservice1", "--message", "kernel", "--json")
	var reports []stepReport
	if err := json.Unmarshal([]byte(out), &reports); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, want := range []stepReport{
		{"instances", true, "all its services go on elsewhere"}, {"lb", true, "nobody new is sent to it"}, {"hooks", true, fmt.Sprintf("2 programs of %s ran", hooks)},
		{"dns", true, "its services are in no answer"}, {"vip", true, "1 addresses handed over"}, {"leader", true, "it is the only server"},
	} {
		if i >= len(reports) || reports[i] != want {
			t.Fatalf("step %d is not %v in %v", i, want, reports)
		}
	}
	if told := units.told(); told != "lb drain fbservice1 kernel, yield dns1" {
		t.Errorf("the net unit was told %s", told)
	}
	if text, err := os.ReadFile(ran); err != nil || string(text) != "10 drain fbservice1\n20 drain fbservice1\n" {
		t.Errorf("the hooks wrote %q, %v", text, err)
	}
	n.until(t, "its services are in maintenance", func() bool { return drainedInCatalog(t, n) })
	n.until(t, "its status tells why", func() bool {
		out, status := n.run(t, "", "node", "status", "fbservice1")
		return status == exitDegraded && strings.Contains(out, "maintenance       drained: kernel\n")
	})

	n.expect(t, exitOK, "0 addresses handed over", "node", "drain", "fbservice1") // again: nothing is left to do
	units.told()
	n.expect(t, exitOK, "it gets new people again", "node", "undrain", "fbservice1")
	if told := units.told(); told != "release dns1, lb undrain fbservice1 " {
		t.Errorf("the net unit was told %s", told)
	}
	n.until(t, "its services are back", func() bool { return !drainedInCatalog(t, n) })
}

func TestADrainEndsAtTheFirstStepThatFails(t *testing.T) {
	n := startNode(t, "")
	n.until(t, "the store answers", func() bool {
		_, status := n.run(t, "", "kv", "put", "a", "b")
		return status == exitOK
	})
	refuse, units := http.StatusConflict, &drainable{oneRouter: oneRouter{state: vrrp.Active}}
	t.Setenv("HOLDFAST_NET_SOCKET", units.listen(t, &refuse))
	hooks := t.TempDir()
	t.Setenv("HOLDFAST_DRAIN_HOOKS", hooks)
	hook(t, hooks, "10-no", "echo jobs are running >&2; exit 3")

	n.expect(t, exitFailed, "lb: refused; what stands above was done", "node", "drain", "fbservice1")
	refuse = http.StatusNotFound // no real server: that is no failure
	n.expect(t, exitFailed, "jobs are running", "node", "drain", "fbservice1")
	if told := units.told(); told != "" {
		t.Errorf("after a hook that failed the net unit was told %s", told)
	}
	if drainedInCatalog(t, n) {
		t.Error("after a hook that failed the node is in maintenance")
	}
	if err := os.Chmod(filepath.Join(hooks, "10-no"), 0o777); err != nil { // whoever may write it would be root
		t.Fatal(err)
	}
	n.expect(t, exitFailed, "not allowed", "node", "drain", "fbservice1")
	if err := os.Remove(filepath.Join(hooks, "10-no")); err != nil {
		t.Fatal(err)
	}
	n.expect(t, exitOK, "safe to reboot", "node", "drain", "fbservice1", "--wait")
	units.told()
	n.expect(t, exitUnreachable, "vip", "node", "undrain", "fbservice1", "--net-socket", filepath.Join(hooks, "none.sock"))
}

// The agent's answers, made up: three real servers vote anew by themselves on a
// busy machine, and who leads would be chance.
func TestALeaderThatIsDrainedHandsOver(t *testing.T) {
	three := []state.RaftServer{{Name: "fbservice1"}, {Name: "fbservice2"}, {Name: "fbservice3"}}
	for name, test := range map[string]struct {
		leader  string // when the drain begins
		servers []state.RaftServer
		refuse  bool   // the order to hand over is
		after   string // who leads then
		status  int
		words   string
		ordered int
	}{
		"the leader":                      {"fbservice1", three, false, "fbservice2", exitOK, "another server leads", 1},
		"another":                         {"fbservice2", three, false, "", exitOK, "it does not lead", 0},
		"the only server":                 {"fbservice1", three[:1], false, "", exitOK, "it is the only server", 0},
		"who can't":                       {"fbservice1", three, true, "fbservice1", exitFailed, "leader: nobody has caught up", 1},
		"who lost it before it was asked": {"fbservice1", three, true, "fbservice3", exitOK, "another server leads", 1},
	} {
		t.Run(name, func(t *testing.T) {
			leader, ordered := test.leader, 0
			mux := http.NewServeMux()
			mux.HandleFunc("GET /v1/holdfast/status", func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(api.Status{Node: "fbservice1", Leader: &api.LeaderStatus{Name: leader}, Raft: test.servers}) // the client is gone
			})
			mux.HandleFunc("PUT /v1/agent/maintenance", func(http.ResponseWriter, *http.Request) {})
			mux.HandleFunc("POST /v1/operator/raft/transfer-leader", func(w http.ResponseWriter, _ *http.Request) {
				ordered, leader = ordered+1, test.after
				if test.refuse {
					http.Error(w, "nobody has caught up", http.StatusInternalServerError)
				}
			})
			none := http.StatusNotFound
			n := &node{dir: t.TempDir()}
			listenAdmin(t, filepath.Join(n.dir, "run", "core.sock"), mux)
			t.Setenv("HOLDFAST_NET_SOCKET", new(drainable).listen(t, &none))
			t.Setenv("HOLDFAST_DRAIN_HOOKS", t.TempDir())
			n.expect(t, test.status, test.words, "node", "drain", "fbservice1")
			if ordered != test.ordered {
				t.Errorf("it was told %d times to hand over, want %d", ordered, test.ordered)
			}
		})
	}
}

// listenAdmin answers on a unit's socket until the test ends.
func listenAdmin(t *testing.T, socket string, handler http.Handler) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	server, err := admin.New(admin.Config{Unit: strings.TrimSuffix(filepath.Base(socket), ".sock"), Path: socket},
		admin.Deps{Handler: handler, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, server)
}

// fakeAgent is an agent whose status is made up.
func fakeAgent(t *testing.T, st api.Status) *node {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/holdfast/status", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(st) // the client is gone
	})
	mux.HandleFunc("PUT /v1/agent/maintenance", func(http.ResponseWriter, *http.Request) {})
	n := &node{dir: t.TempDir()}
	listenAdmin(t, filepath.Join(n.dir, "run", "core.sock"), mux)
	return n
}

func instance(node string, status state.Status) api.InstanceStatus {
	return api.InstanceStatus{Node: node, Status: status}
}

func TestADrainDoesNotTakeTheLastInstanceOfAService(t *testing.T) {
	units, none := &drainable{oneRouter: oneRouter{state: vrrp.Backup}}, http.StatusNotFound
	t.Setenv("HOLDFAST_NET_SOCKET", units.listen(t, &none))
	hooks, ran := t.TempDir(), filepath.Join(t.TempDir(), "ran")
	t.Setenv("HOLDFAST_DRAIN_HOOKS", hooks)
	hook(t, hooks, "10", "echo $* >>"+ran)
	n := fakeAgent(t, api.Status{Node: "fbservice1", Services: []api.ServiceStatus{
		{Name: "apt", Instances: []api.InstanceStatus{instance("fbservice1", state.Passing), instance("fbservice2", state.Passing)}},
		{Name: "licenses", Instances: []api.InstanceStatus{instance("fbservice1", state.Passing), instance("fbservice2", state.Critical)}},
		{Name: "mail", Instances: []api.InstanceStatus{instance("fbservice1", state.Passing)}},
		{Name: "web", Instances: []api.InstanceStatus{instance("fbservice1", state.Critical)}},
	}})
	n.expect(t, exitFailed, "the last healthy instance of licenses, mail:", "node", "drain", "fbservice1")
	n.expect(t, exitFailed, "the last healthy instance of mail:", "node", "drain", "fbservice1", "--accept", "licenses")
	if _, err := os.Stat(ran); err == nil || units.told() != "" {
		t.Error("a drain that was refused had begun")
	}
	n.expect(t, exitOK, "go on elsewhere", "node", "drain", "fbservice1", "--accept", "licenses", "--accept", "mail")
	n.expect(t, exitOK, "nobody else has a healthy instance of licenses, mail", "node", "drain", "fbservice1", "--force")
}

func TestTheStatusOfANodeTellsItsDutiesAndWhatIsTakenFromIt(t *testing.T) {
	n := fakeAgent(t, api.Status{
		Node:    "fbservice1",
		Leader:  &api.LeaderStatus{Name: "fbservice2"},
		Members: []api.MemberStatus{{Name: "fbservice1", Liveness: state.Alive}, {Name: "fbservice2", Liveness: state.Failed}},
		Services: []api.ServiceStatus{
			{Name: "apt", Instances: []api.InstanceStatus{instance("fbservice1", state.Passing), instance("fbservice2", state.Passing)}},
			{Name: "mail", Instances: []api.InstanceStatus{instance("fbservice1", state.Passing)}},
		},
		Failing: []api.FailingCheck{{Node: "fbservice2", ID: api.NodeMaintenance, Output: "drained: kernel"}},
	})
	mux := http.NewServeMux()
	mux.Handle(vrrp.AdminPath, vrrp.NewAdmin(vrrp.AdminDeps{Node: "fbservice1", Routers: &oneRouter{state: vrrp.Active}}))
	mux.HandleFunc("GET "+lb.AdminPath+"status", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(lb.Status{Drains: map[string]lb.Drain{"fbservice2": {}}}) // the client is gone
	})
	socket := filepath.Join(n.dir, "net.sock")
	listenAdmin(t, socket, mux)
	t.Setenv("HOLDFAST_NET_SOCKET", socket)

	for _, test := range []struct {
		node   string
		status int
		want   duties
	}{
		{"fbservice1", exitOK, duties{
			Node: "fbservice1", Member: "alive", Services: []string{"apt", "mail"}, Last: []string{"mail"}, Addresses: []string{"dns1"},
			Yielded: []string{}, Unknown: []string{},
		}},
		{"fbservice2", exitDegraded, duties{
			Node: "fbservice2", Member: "failed", Maintenance: "drained: kernel", Services: []string{"apt"}, Last: []string{}, Addresses: []string{},
			Yielded: []string{}, Leads: true, LB: "fbservice2 has not told yet who is logged in", Unknown: []string{},
		}},
	} {
		var got duties
		out := n.expect(t, test.status, "", "node", "status", test.node, "--json") // and what it says of a drain
		if err := json.NewDecoder(strings.NewReader(out)).Decode(&got); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%+v, want %+v (%v)", got, test.want, err)
		}
	}
	n.expect(t, exitNotFound, "is no member", "node", "status", "fbservice9")
	n.expect(t, exitOK, "not known         virtual addresses: ", "node", "status", "--net-socket", filepath.Join(n.dir, "none.sock"))
}
