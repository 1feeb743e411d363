package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/state"
	"holdfast/lab/stall"
)

// startThree runs three servers, each on an address of its own, with more in
// their role. Nobody measures a failover of theirs: a leader is given five times as
// long as usual, so that a busy machine does not take it away.
func startThree(t *testing.T, role string) map[string]*node {
	t.Helper()
	prefix := strings.TrimSuffix(loopback(), "1")
	content := fmt.Sprintf(`schema: 1
cluster: cli
domain: hpc.example.com
networks: {main: {prefix: %s0/24}}
roles: {service: {voters: 3%s}}
nodes: {"fbservice[1-3]": {role: service, addresses: {main: "%s[11-13]"}}}
raft: {timing: 5}
`, prefix, role, prefix)
	shared := t.TempDir()
	issued, file := filepath.Join(shared, "issued"), filepath.Join(shared, "cluster.yaml")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	first := &node{dir: shared}
	first.expect(t, exitOK, "", "pki", "init", "--dir", filepath.Join(shared, "ca"), "--cluster", "cli", "--json")
	first.expect(t, exitOK, "fbservice3", "pki", "issue", "--ca", filepath.Join(shared, "ca"), "--config", file, "--out", issued, "--json")
	first.expect(t, exitOK, "alice", "pki", "issue", "--ca", filepath.Join(shared, "ca"), "--config", file, "--out", issued, "--admin", "alice")
	nodes := map[string]*node{}
	for i := range 3 {
		name := fmt.Sprintf("fbservice%d", i+1)
		n := &node{dir: t.TempDir(), addr: fmt.Sprintf("%s%d", prefix, 11+i), log: &logBuffer{}, done: make(chan int, 1)}
		n.args = []string{"--relp-listen", n.addr + ":20514", "--logs-dir", filepath.Join(n.dir, "logs")}
		if err := os.WriteFile(filepath.Join(n.dir, "cluster.yaml"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(issued, filepath.Join(n.dir, "issued")); err != nil {
			t.Fatal(err)
		}
		n.start(t, name)
		nodes[name] = n
	}
	return nodes
}

// servers lists Raft's servers as the node knows them; leader is "" without one.
func (n *node) servers(t *testing.T) (servers []state.RaftServer, leader string) {
	t.Helper()
	out, status := n.run(t, "", "raft", "list-peers", "--json")
	if status != exitOK || json.Unmarshal([]byte(out), &servers) != nil {
		return nil, ""
	}
	for _, s := range servers {
		if s.Leader {
			leader = s.Name
		}
	}
	return servers, leader
}

// A leader that goes without handing over and before its vote is gone leaves
// one of two voters behind, which can never write again.
func TestLeadersThatLeaveDoNotTakeTheMajorityAlong(t *testing.T) {
	nodes := startThree(t, "")
	machine := stall.Test(t, t.TempDir())
	for left := 3; left > 0; left-- {
		machine.Repeat(t, fmt.Sprintf("the leader of %d leaves", left), 3, time.Second, func() (from, to time.Time, missed error) {
			from = time.Now()
			leader := writableBy(t, nodes, left)
			missed = nodes[leader].leaves(t, machine)
			if missed == nil {
				delete(nodes, leader)
			}
			return from, time.Now(), missed
		})
		if t.Failed() {
			return
		}
	}
}

// writableBy waits until a store of so many servers can be written, all of which
// are alive as each sees it, and tells who leads.
func writableBy(t *testing.T, nodes map[string]*node, count int) (leader string) {
	t.Helper()
	for _, n := range nodes {
		n.until(t, fmt.Sprintf("a store of %d that can be written", count), func() bool {
			var servers []state.RaftServer
			servers, leader = n.servers(t)
			if len(servers) != count || nodes[leader] == nil {
				return false
			}
			if members, _ := n.run(t, "", "members"); strings.Count(members, "alive") < count {
				return false
			}
			_, status := n.run(t, "", "kv", "put", "left", fmt.Sprint(count))
			return status == exitOK
		})
	}
	return leader
}

// leaves has a node leave. An error says that it refused, and nothing was changed:
// where the machine stood still, the leadership may be on its way just then, or the
// gossip take another for dead, and the admin types it again.
func (n *node) leaves(t *testing.T, machine *stall.Watch) error {
	t.Helper()
	const long = 2 * time.Second // of the time after which it is waited for no more
	began := time.Now()
	out, status := n.run(t, "", "leave")
	switch {
	case status == exitOK && strings.Contains(out, "left the cluster"):
	case status == exitNoLeader, strings.Contains(out, "nothing was changed"), strings.Contains(out, "no majority of the voters is up"):
		return fmt.Errorf("refused: %s", out)
	case strings.Contains(out, "left the gossip and its agent ends") && machine.Within(began, time.Now()) >= long:
		t.Logf("while the machine stood still for %v: %s", machine.Within(began, time.Now()), out) // whether it is taken out is seen next
	default:
		t.Errorf("leave: exit status %d: %s; the machine stood still for %v meanwhile", status, out, machine.Within(began, time.Now()))
	}
	return nil
}
