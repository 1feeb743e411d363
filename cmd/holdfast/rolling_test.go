package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/api"
	"holdfast/internal/state"
	"holdfast/raftstore"
)

// fakeSite is three servers, of which the second leads, and what runs on them.
type fakeSite struct {
	view  clusterView
	steps []string
	runs  int
	after func(node string) // what a restart does to the view
}

func newFakeSite() *fakeSite {
	s := &fakeSite{}
	s.view.pilot.Voters = 3
	for i := range 3 {
		name := fmt.Sprintf("fb%d", i+1)
		s.view.pilot.Servers = append(s.view.pilot.Servers, raftstore.PilotServer{Name: name, Voter: true, Healthy: true, Stable: true, Leader: i == 1})
		s.view.peers = append(s.view.peers, raftstore.Peer{RaftServer: state.RaftServer{Name: name}, Reachable: true, Run: "first"})
	}
	s.view.services = []api.ServiceStatus{service("ntp", "fb1", "fb2"), service("licenses", "fb3", "old")}
	s.after = s.renew
	return s
}

func service(name string, nodes ...string) api.ServiceStatus {
	s := api.ServiceStatus{Name: name}
	for _, n := range nodes {
		s.Instances = append(s.Instances, api.InstanceStatus{Node: n, Status: state.Passing})
	}
	return s
}

// renew is a restart that went well.
func (s *fakeSite) renew(node string) {
	s.runs++
	for i := range s.view.peers {
		if s.view.peers[i].Name == node {
			s.view.peers[i].Run = fmt.Sprint("run ", s.runs)
		}
	}
}

func (s *fakeSite) roller() roller {
	return roller{
		look: func(context.Context) (clusterView, error) {
			v := s.view
			v.peers, v.services, v.pilot.Servers = slices.Clone(v.peers), slices.Clone(v.services), slices.Clone(v.pilot.Servers)
			return v, nil
		},
		restart: func(_ context.Context, node string) error {
			s.steps = append(s.steps, node)
			s.after(node)
			return nil
		},
		tell: func(string, ...any) {}, patience: time.Minute, pause: time.Second,
	}
}

func TestLeaderIsRestartedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite()
		if err := s.roller().run(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if got := strings.Join(s.steps, " "); got != "fb1 fb3 fb2" {
			t.Errorf("restarted %s", got)
		}
	})
}

// Each row makes the first restart, of fb1 or the one named, dangerous.
func TestRollingRestartRefusesWhatWouldBeMissed(t *testing.T) {
	for _, c := range []struct {
		name, words string
		only        []string
		change      func(*fakeSite)
	}{
		{"another server is ill", "fb3 is not well", nil, func(s *fakeSite) { s.view.pilot.Servers[2].Healthy = false }},
		{"another server is back since a moment", "fb3 is not well", nil, func(s *fakeSite) { s.view.pilot.Servers[2].Stable = false }},
		{"two voters", "no majority: of 2 voters 1 would stay", nil, func(s *fakeSite) { s.view.pilot.Servers[2].Voter = false }},
		{"one voter", "no majority: of 1 voters 0 would stay", nil, func(s *fakeSite) {
			s.view.pilot.Servers[1].Voter, s.view.pilot.Servers[2].Voter = false, false
		}},
		{"the last healthy instance", "last healthy instance of licenses", []string{"fb3"}, func(s *fakeSite) {
			s.view.services[1].Instances[1].Status = state.Critical
		}},
		{"the only instance", "last healthy instance of scratch", nil, func(s *fakeSite) {
			s.view.services = append(s.view.services, service("scratch", "fb1"))
		}},
		{"a server that is none", "fb9 is no server", []string{"fb9"}, func(*fakeSite) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFakeSite()
			c.change(s)
			err := s.roller().run(t.Context(), c.only)
			if err == nil || !strings.Contains(err.Error(), c.words) || len(s.steps) > 0 {
				t.Errorf("restarted %v: %v, want %q", s.steps, err, c.words)
			}
		})
	}
}

func TestServiceThatMayBeAwayIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite()
		s.view.services = append(s.view.services, service("scratch", "fb1"))
		r := s.roller()
		r.accept = []string{"scratch"}
		if err := r.run(t.Context(), nil); err != nil || len(s.steps) != 3 {
			t.Errorf("restarted %v: %v", s.steps, err)
		}
	})
}

// A server that was not started anew, is ill afterwards, lost its vote or a
// healthy service is no reason to go on with the next.
func TestNothingElseIsRestartedBeforeAServerIsBack(t *testing.T) {
	for _, c := range []struct {
		name, words string
		after       func(*fakeSite)
	}{
		{"it was not restarted", "not started anew", func(*fakeSite) {}},
		{"it does not answer", "not started anew", func(s *fakeSite) { s.view.peers[0].Reachable = false }},
		{"it is ill", "fb1 is not well yet", func(s *fakeSite) { s.renew("fb1"); s.view.pilot.Servers[0].Healthy = false }},
		{"it has no vote", "2 votes", func(s *fakeSite) { s.renew("fb1"); s.view.pilot.Voters = 2 }},
		{"its service is critical", "of ntp it has 0 healthy instances", func(s *fakeSite) {
			s.renew("fb1")
			s.view.services[0] = service("ntp", "fb2")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newFakeSite()
				s.after = func(string) { c.after(s) }
				err := s.roller().run(t.Context(), nil)
				if err == nil || !strings.Contains(err.Error(), c.words) || !errors.Is(err, context.DeadlineExceeded) || len(s.steps) != 1 {
					t.Errorf("restarted %v: %v, want %q", s.steps, err, c.words)
				}
			})
		})
	}
}

func TestNodeIsPutIntoTheCommandAndNothingElse(t *testing.T) {
	got := restartArgv([]string{"/usr/bin/ssh", "{}", "echo {} done"}, "fb1")
	if !slices.Equal(got, []string{"/usr/bin/ssh", "fb1", "echo fb1 done"}) {
		t.Errorf("%q", got)
	}
}

// Three real servers, the one that is asked among them.
func TestServersAreRestartedOneByOneUnderTheEyesOfTheLeader(t *testing.T) {
	nodes := startThree(t, "")
	one := nodes["fbservice1"]
	well := func() bool {
		out, _ := one.run(t, "", "raft", "autopilot", "state", "--json")
		var st raftstore.PilotState
		if json.Unmarshal([]byte(out), &st) != nil || len(st.Servers) != 3 {
			return false
		}
		return !slices.ContainsFunc(st.Servers, func(s raftstore.PilotServer) bool { return !s.Healthy || !s.Stable })
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "restart")
	text := fmt.Sprintf("cd %s && echo $1 >asked.new && mv asked.new asked && while [ ! -e done.$1 ]; do sleep 0.05; done\n", dir)
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// Whether the leader came last is judged by who leads when a restart is ordered, if
	// nobody was elected since before the command looked: terms tell.
	clients := map[string]*api.Client{}
	for name, n := range nodes {
		clients[name] = n.client(t)
	}
	var before atomic.Uint64
	var order, tooSoon []string
	finished := make(chan struct{})
	asking, enough := context.WithCancel(t.Context())
	go func() { // what systemd does
		defer close(finished)
		for range nodes {
			var name string
			for name == "" {
				if asking.Err() != nil {
					return
				}
				data, _ := os.ReadFile(filepath.Join(dir, "asked"))
				name = strings.TrimSpace(string(data))
				pauseFor(20 * time.Millisecond)
			}
			os.Remove(filepath.Join(dir, "asked"))
			n := nodes[name]
			if was := before.Load(); n.leads() && len(order) < len(nodes)-1 && was > 0 && term(asking, clients) == was {
				tooSoon = append(tooSoon, name)
			}
			n.stop()
			n.done <- <-n.done // its clean-up wants it too
			again := &node{dir: n.dir, addr: n.addr, log: n.log, done: make(chan int, 1)}
			again.start(t, name)
			order = append(order, name)
			before.Store(term(asking, clients))
			if err := os.WriteFile(filepath.Join(dir, "done."+name), nil, 0o600); err != nil {
				t.Error(err)
			}
		}
	}()
	// A busy machine may lose its leader just as the command looks first. It
	// refuses then, nothing was touched, and the admin types it again.
	var out string
	var status int
	for range 5 {
		one.until(t, "three servers that are well", well)
		before.Store(term(t.Context(), clients))
		out, status = one.run(t, "", "operator", "rolling-restart", "--patience", "2m", "--", "/bin/sh", script, "{}")
		if status == exitOK || strings.Contains(out, "restarting ") {
			break
		}
		t.Logf("refused before anything was restarted: %s", out)
	}
	if status != exitOK || !strings.Contains(out, "all are restarted") {
		t.Errorf("exit status %d: %s", status, out)
	}
	enough()
	<-finished
	if len(order) != 3 || len(tooSoon) > 0 {
		t.Errorf("restarted in the order %v; %v led and were not the last", order, tooSoon)
	}
}

// term is the latest of Raft's that the servers know; 0: too few of them answer to
// tell. It may be called beside commands.
func term(ctx context.Context, clients map[string]*api.Client) (latest uint64) {
	answered := 0
	for _, c := range clients {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		status, err := c.RaftStatus(ctx)
		cancel()
		if err == nil {
			answered, latest = answered+1, max(latest, status.Term)
		}
	}
	if 2*answered <= len(clients) {
		return 0
	}
	return latest
}

func pauseFor(d time.Duration) { <-time.After(d) }

// leads asks a node whether it leads. It may be called beside commands.
func (n *node) leads() bool {
	response, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://" + n.addr + ":8500/v1/status/leader")
	if err != nil {
		return false
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return err == nil && strings.Contains(string(text), n.addr+":")
}
