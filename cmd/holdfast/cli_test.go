package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/api"
)

// node is an agent that runs in this process, and the command line on it.
type node struct {
	dir  string
	addr string
	log  *logBuffer
	done chan int
	stop context.CancelFunc // ends the agent
	args []string           // more of them, for the agent
}

// logBuffer is written by the agent while a test may read it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// run types a command line on the node's machine.
func (n *node) run(t *testing.T, stdin string, args ...string) (stdout string, status int) {
	t.Helper()
	var out, errOut bytes.Buffer
	t.Setenv("HOLDFAST_SOCKET", filepath.Join(n.dir, "run", "core.sock"))
	t.Setenv("HOLDFAST_LOGS_SOCKET", filepath.Join(n.dir, "run", "logs.sock"))
	t.Setenv("HOLDFAST_DNS_SOCKET", filepath.Join(n.dir, "run", "dns.sock"))
	status = execute(t.Context(), args, strings.NewReader(stdin), &out, &errOut)
	return out.String() + errOut.String(), status
}

// expect is run with a wanted exit status and words that must be printed.
func (n *node) expect(t *testing.T, status int, words string, args ...string) string {
	t.Helper()
	out, got := n.run(t, "", args...)
	if got != status || !strings.Contains(out, words) {
		t.Errorf("holdfast %s: exit status %d, want %d; it must say %q and says:\n%s", strings.Join(args, " "), got, status, words, out)
	}
	return out
}

// patience bounds waits for what must come, a task's longest backoff among it. It is
// no promise of the product's.
const patience = 2 * time.Minute

// loopback is an address that only this test process uses.
func loopback() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.1", 64+pid>>8%64, pid%256)
}

// client asks the node over its socket.
func (n *node) client(t *testing.T) *api.Client {
	t.Helper()
	client, err := api.NewClient(api.ClientConfig{Socket: filepath.Join(n.dir, "run", "core.sock")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// startNode makes certificates with the command line, and runs one server.
func startNode(t *testing.T, services string) *node {
	t.Helper()
	n := newNode(t, services)
	n.start(t, "fbservice1")
	n.until(t, "a leader", func() bool {
		out, _ := n.run(t, "", "status") // whatever its services are like by then
		return strings.Contains(out, "Leader: fbservice1")
	})
	n.until(t, "all its tasks are ready", func() bool { return strings.Contains(n.log.String(), "msg=ready") })
	return n
}

// newNode has what startNode starts with.
func newNode(t *testing.T, services string) *node {
	t.Helper()
	n := &node{dir: t.TempDir(), addr: loopback(), log: &logBuffer{}, done: make(chan int, 1)}
	n.writeFile(t, services)
	file := filepath.Join(n.dir, "cluster.yaml")
	n.expect(t, exitOK, "made the authority", "pki", "init", "--dir", filepath.Join(n.dir, "ca"), "--cluster", "cli")
	n.expect(t, exitOK, "fbservice1", "pki", "issue", "--ca", filepath.Join(n.dir, "ca"), "--config", file, "--out", filepath.Join(n.dir, "issued"))
	n.expect(t, exitOK, "alice", "pki", "issue", "--ca", filepath.Join(n.dir, "ca"), "--config", file, "--out", filepath.Join(n.dir, "issued"), "--admin", "alice")
	return n
}

// start runs the agent of a node until the test ends.
func (n *node) start(t *testing.T, name string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	n.stop = stop
	go func() {
		n.done <- execute(ctx, append([]string{
			"agent", "--config", filepath.Join(n.dir, "cluster.yaml"), "--node", name, "--data-dir", filepath.Join(n.dir, "data"),
			"--run-dir", filepath.Join(n.dir, "run"), "--pki", filepath.Join(n.dir, "issued", name),
			"--dns-listen", n.addr + ":5353", "--ntp-listen", n.addr + ":1123", "--http-listen", n.addr + ":8500",
		}, n.args...), strings.NewReader(""), n.log, n.log)
	}()
	t.Cleanup(func() {
		stop()
		select {
		case status := <-n.done:
			if status != exitOK {
				t.Errorf("the agent ended with status %d", status)
			}
		case <-time.After(patience):
			t.Error("the agent does not end")
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", n.log)
		}
	})
}

func (n *node) writeFile(t *testing.T, services string) {
	t.Helper()
	content := fmt.Sprintf(`schema: 1
cluster: cli
domain: hpc.example.com
networks: {main: {prefix: %s/24}}
roles: {service: {voters: 1, run: [dns, ntp]}}
nodes: {fbservice1: {role: service, addresses: {main: %s}}}
services: {%s}
`, strings.TrimSuffix(n.addr, "1")+"0", n.addr, services)
	if err := os.WriteFile(filepath.Join(n.dir, "cluster.yaml"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// edit replaces a text in the cluster file.
func (n *node) edit(t *testing.T, old, now string) {
	t.Helper()
	path := filepath.Join(n.dir, "cluster.yaml")
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(data, []byte(old)) {
		t.Fatalf("no %q in the cluster file: %v\n%s", old, err, data)
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(data, []byte(old), []byte(now)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (n *node) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func TestCommandsOnARunningNode(t *testing.T) {
	n := startNode(t, "web: {on: fbservice1, port: 80, check: {ttl: 1h}}")

	t.Run("status", func(t *testing.T) {
		n.until(t, "the service is registered", func() bool {
			out, _ := n.run(t, "", "services")
			return strings.Contains(out, "web")
		})
		n.expect(t, exitDegraded, "something is failing", "status") // a TTL check nobody reported
		if out := n.expect(t, exitDegraded, `"leader"`, "status", "--json"); !strings.Contains(out, `"cluster": "cli"`) {
			t.Errorf("status --json says %s", out)
		}
		n.expect(t, exitOK, "alive", "members")
		n.expect(t, exitNotFound, `no service "nope"`, "services", "nope")
		n.expect(t, exitFailed, "--join-authority", "join-token", "create")
		n.expect(t, exitOK, "fbservice1", "services", "web")
	})
	t.Run("kv", func(t *testing.T) {
		n.expect(t, exitNotFound, "no key", "kv", "get", "a/b")
		n.expect(t, exitOK, "", "kv", "put", "a/b", "one")
		n.expect(t, exitOK, "one", "kv", "get", "a/b")
		n.expect(t, exitOK, "one", "kv", "get", "--consistent", "a/b")
		n.expect(t, exitFailed, "another modify index", "kv", "put", "--cas", "0", "a/b", "two")
		if out, status := n.run(t, "from a pipe", "kv", "put", "a/c"); status != exitOK {
			t.Errorf("put from standard input: %d %s", status, out)
		}
		n.expect(t, exitOK, "a/c\tfrom a pipe", "kv", "list", "a/", "--values")
		n.expect(t, exitOK, "", "kv", "delete", "--recurse", "a/")
		if out := n.expect(t, exitOK, "[]", "kv", "list", "a/", "--json"); !json.Valid([]byte(out)) {
			t.Errorf("kv list --json prints %s", out)
		}
	})
	t.Run("ntp", func(t *testing.T) {
		// Whether this machine's clock is synchronised is not ours to say.
		out, status := n.run(t, "", "ntp", "status", "--json", n.addr+":1123")
		if status != exitOK && status != exitDegraded || !strings.Contains(out, `"leap"`) {
			t.Errorf("exit status %d: %s", status, out)
		}
	})
	t.Run("raft", func(t *testing.T) {
		n.expect(t, exitOK, "leader", "raft", "list-peers")
		n.expect(t, exitOK, "applied index", "raft", "stats")
		n.expect(t, exitOK, "fbservice1  agrees", "raft", "verify")
		n.expect(t, exitFailed, "is the leader: transfer the leadership first", "raft", "demote", "fbservice1")
		n.expect(t, exitFailed, "has a vote", "raft", "promote", "fbservice1")
		n.expect(t, exitNotFound, "no server in the gossip", "raft", "add-peer", "nobody")
		n.expect(t, exitOK, "dead-after     30m0s", "raft", "autopilot", "set", "--dead-after", "30m", "--no-clean-up")
		n.expect(t, exitOK, "clean-up       false", "raft", "autopilot", "get")
		n.expect(t, exitFailed, "must be 10s to", "raft", "autopilot", "set", "--dead-after", "1s")
		n.expect(t, exitUsage, "nothing to set", "raft", "autopilot", "set")
		n.expect(t, exitOK, "1 voters of 1 wanted; 0 may fail", "raft", "autopilot", "state")
		n.expect(t, exitFailed, "an agent has it open", "raft", "inspect", "--data-dir", filepath.Join(n.dir, "data"))
		n.expect(t, exitFailed, "an agent has it open", "raft", "recover", "--data-dir", filepath.Join(n.dir, "data"))
		if out, status := n.run(t, "", "raft", "remove-peer", "fbservice1"); status != exitFailed {
			t.Errorf("the only voter could be removed: %d %s", status, out)
		}
		if out, status := n.run(t, "", "raft", "transfer-leader"); status != exitFailed {
			t.Errorf("leadership was handed to nobody: %d %s", status, out)
		}
	})
	t.Run("dns", func(t *testing.T) { n.testDNS(t) })
	t.Run("apt", func(t *testing.T) { n.testAptDiscovery(t) })
	t.Run("keyring", func(t *testing.T) { n.testKeyring(t) })
	t.Run("snapshot", func(t *testing.T) {
		path := filepath.Join(n.dir, "s.snap")
		n.expect(t, exitOK, "", "kv", "put", "kept", "yes")
		n.expect(t, exitOK, "saved and verified", "snapshot", "save", path)
		n.expect(t, exitFailed, "exists already", "snapshot", "save", path)
		n.expect(t, exitOK, "verified", "snapshot", "inspect", path)
		n.expect(t, exitOK, "", "kv", "put", "kept", "no")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		cut := filepath.Join(n.dir, "cut.snap")
		if err := os.WriteFile(cut, data[:len(data)-10], 0o600); err != nil {
			t.Fatal(err)
		}
		n.expect(t, exitFailed, "nothing was changed", "snapshot", "restore", cut)
		n.expect(t, exitFailed, "1 of 2 snapshots are bad", "snapshot", "verify", cut, path)
		scheduled, key := filepath.Join(n.dir, "data", "snapshots"), filepath.Join(n.dir, "ca", "gossip.key")
		n.until(t, "a scheduled snapshot", func() bool {
			_, status := n.run(t, "", "snapshot", "verify", "--key-file", key, scheduled)
			return status == exitOK
		})
		n.expect(t, exitFailed, "no snapshot", "snapshot", "verify", t.TempDir())
		n.expect(t, exitFailed, "--key-file can't be read", "snapshot", "verify", "--key-file", path+".none", scheduled)
		n.expect(t, exitOK, "no", "kv", "get", "kept")
		n.expect(t, exitOK, "restored", "snapshot", "restore", path)
		n.expect(t, exitOK, "yes", "kv", "get", "kept")
	})
	t.Run("over HTTPS with an admin's certificate", func(t *testing.T) {
		url := "https://" + net.JoinHostPort(n.addr, "8501")
		n.expect(t, exitOK, "alive", "members", "--server", url, "--pki", filepath.Join(n.dir, "issued", "alice"))
		out, status := n.run(t, "", "members", "--server", url, "--pki", filepath.Join(n.dir, "issued", "fbservice1"))
		if status == exitOK {
			t.Errorf("a node's certificate passed for an admin's: %s", out)
		}
	})
	t.Run("config", func(t *testing.T) {
		n.expect(t, exitOK, "read at 20", "config", "status")
		n.expect(t, exitOK, "nothing changed", "config", "reload")
		n.writeFile(t, "web: {on: fbservice1, port: 80, check: {ttl: 1h}}, more: {on: fbservice1, port: 81}")
		n.expect(t, exitOK, "applied: services", "config", "reload")
		n.until(t, "the new service is registered", func() bool {
			out, _ := n.run(t, "", "services")
			return strings.Contains(out, "more")
		})
		n.expect(t, exitOK, "", "config", "status", "--json")
		n.edit(t, "domain: hpc", "api: {blocking_limit: 7}\ndomain: hpc")
		n.expect(t, exitOK, "(one node at a time): api", "config", "reload")
		n.expect(t, exitOK, "(one node at a time): api", "config", "reload") // it still waits
		n.expect(t, exitDegraded, "config.restart", "status")
		n.edit(t, "api: {blocking_limit: 7}\n", "")
		n.expect(t, exitOK, "api", "config", "reload")
		if out, _ := n.run(t, "", "status"); strings.Contains(out, "config.restart") {
			t.Errorf("the file is as it was at the start, and yet a restart is asked for:\n%s", out)
		}
		script := filepath.Join(n.dir, "probe")
		if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		n.edit(t, "services: {", "services: {probed: {on: fbservice1, port: 82, check: {script: ["+script+"]}}, ")
		n.expect(t, exitOK, "(one node at a time): script check "+script, "config", "reload")
		n.edit(t, "fbservice1", "fbservice2")
		n.expect(t, exitFailed, "lacks this node, fbservice1", "config", "reload")
		if kept, err := os.ReadFile(filepath.Join(n.dir, "data", "cluster.last-good.yaml")); err != nil || !bytes.Contains(kept, []byte("fbservice1")) {
			t.Errorf("the last good copy is one that this node can't start from: %v\n%s", err, kept)
		}
		n.writeFile(t, "web: {on: nobody, port: 80}")
		n.expect(t, exitFailed, "cluster.yaml:7:", "config", "reload")
		n.expect(t, exitUsage, "nobody", "config", "check", filepath.Join(n.dir, "cluster.yaml"))
		n.expect(t, exitOK, "more", "services")
	})
	t.Run("leave", func(t *testing.T) {
		n.expect(t, exitOK, "left the cluster", "leave")
		n.until(t, "the agent has ended", func() bool {
			_, status := n.run(t, "", "status")
			return status == exitUnreachable
		})
	})
}

func TestUsage(t *testing.T) {
	n := &node{dir: t.TempDir()}
	n.expect(t, exitOK, "Usage: holdfast", "--help")
	n.expect(t, exitOK, "Usage: holdfast")
	n.expect(t, exitUsage, "unknown", "kv", "get", "--nonsense", "x")
	n.expect(t, exitUsage, "nowhere.yaml", "config", "check", filepath.Join(n.dir, "nowhere.yaml"))
	wrong := filepath.Join(n.dir, "wrong.yaml")
	if err := os.WriteFile(wrong, []byte("schema: 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := n.expect(t, exitUsage, "is not in order; mistakes: 1", "config", "check", wrong); !strings.HasPrefix(out, wrong+":1:9: ") {
		t.Errorf("the first mistake does not begin with its place: %s", out)
	}
	n.expect(t, exitUsage, `"line": 1`, "config", "check", "--json", wrong)
	n.expect(t, exitUnreachable, "is holdfast", "status")
	n.expect(t, exitUsage, "is no URL of an agent", "status", "--server", "foo")
	n.expect(t, exitUsage, "plain HTTP is for loopback only", "status", "--server", "http://fbservice1:8500")
	n.expect(t, exitUsage, "pki issue --admin NAME", "status", "--server", "https://fbservice1:8501", "--pki", filepath.Join(n.dir, "none"))
	n.expect(t, exitOK, version, "--version")
	n.expect(t, exitUsage, "holdfast --help lists the commands", "stauts")
	n.expect(t, exitOK, version, "version")
	for _, line := range []string{
		"agent", "status", "members", "services", "leave", "kv get", "kv put", "kv delete", "kv list",
		"raft list-peers", "raft remove-peer", "raft transfer-leader", "raft stats", "raft add-peer", "raft demote", "raft promote",
		"raft verify", "raft autopilot get", "raft autopilot set", "raft autopilot state", "raft inspect", "raft recover",
		"keyring list", "keyring install", "keyring use", "keyring remove",
		"snapshot save", "snapshot restore", "snapshot inspect", "snapshot verify",
		"config check", "config show", "config status", "config reload", "pki init", "pki issue",
		"dns record add", "dns record del", "dns record list", "dns zone", "dns check", "dns cache dump", "dns cache flush", "dns cache stats",
		"dns query", "dns trace", "dns top",
		"watch key", "watch prefix", "watch service", "watch checks", "event fire", "event list", "monitor", "debug",
	} {
		n.expect(t, exitOK, "Example", append(strings.Fields(line), "--help")...)
	}
}

func TestConfigShowPrintsWhatConfigCheckAccepts(t *testing.T) {
	n := &node{dir: t.TempDir()}
	shown, status := n.run(t, "", "config", "show", "../../examples/scibian.yaml")
	if status != exitOK {
		t.Fatal(shown)
	}
	path := filepath.Join(n.dir, "shown.yaml")
	if err := os.WriteFile(path, []byte(shown), 0o600); err != nil {
		t.Fatal(err)
	}
	n.expect(t, exitOK, "4 servers of which 3 vote", "config", "check", path)
	asJSON, status := n.run(t, "", "config", "show", "--json", "../../examples/scibian.yaml")
	if status != exitOK || !json.Valid([]byte(asJSON)) {
		t.Errorf("config show --json: %d %.200s", status, asJSON)
	}
}
