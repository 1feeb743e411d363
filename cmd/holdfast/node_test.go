package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

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
	server, err := admin.New(admin.Config{Unit: "net", Path: socket}, admin.Deps{Handler: mux, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, server)
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
	out := n.expect(t, exitOK, "", "node", "drain", "fbservice1", "--message", "kernel", "--json")
	var reports []stepReport
	if err := json.Unmarshal([]byte(out), &reports); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, want := range []stepReport{
		{"lb", true, "nobody new is sent to it"}, {"hooks", true, fmt.Sprintf("2 programs of %s ran", hooks)},
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

func TestALeaderThatIsDrainedHandsOver(t *testing.T) {
	nodes := startThree(t)
	t.Setenv("HOLDFAST_DRAIN_HOOKS", t.TempDir())
	any := nodes["fbservice1"]
	var leader string
	any.until(t, "three servers and a leader", func() bool {
		var servers []state.RaftServer
		servers, leader = any.servers(t)
		voters := slices.DeleteFunc(servers, func(s state.RaftServer) bool { return !s.Voter })
		return len(voters) == 3 && nodes[leader] != nil
	})
	n := nodes[leader]
	n.until(t, "it drains, and another leads", func() bool { // on a busy machine it may be voted for again at once
		out, status := n.run(t, "", "node", "drain", leader, "--net-socket", filepath.Join(n.dir, "run", "net.sock"))
		if status != exitOK && status != exitNoLeader {
			t.Fatalf("exit status %d: %s", status, out)
		}
		_, now := n.servers(t)
		return now != "" && now != leader
	})
	n.until(t, "it stays out of the answers of all", func() bool {
		for _, other := range nodes {
			if !drainedInCatalog(t, other) {
				return false
			}
		}
		return true
	})
}
