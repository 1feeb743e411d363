package main

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/logrelay"
)

// A host that is to take and pass on log lines starts with nothing but a file with
// a token. A wrong token is refused, and says so; with the right one it gets its
// certificate and the cluster file, and `agent --only logs` needs no more than
// these to send to the central relay over TLS, which takes nothing else there.
func TestALogHostWithOnlyATokenFileSendsOverTLS(t *testing.T) {
	n := newNode(t, "")
	second, port := strings.TrimSuffix(n.addr, "1")+"2", ":20516"
	n.edit(t, "run: [dns, ntp]}", "run: [dns, ntp, logs]}, loghost: {run: [logs]}")
	n.edit(t, "nodes: {", "nodes: {fbloghost1: {role: loghost, addresses: {main: "+second+"}}, ")
	n.edit(t, "services: {}", "logs:\n"+
		"  relp_tls: [\""+n.addr+port+"\"]\n"+
		"  forward: {central: {relp_tls: [\""+n.addr+port+"\"]}}\n"+
		"  rules: [{if: 'input == \"relp-tls\"', drop: true, to: [central]}]\n")
	t.Setenv("HOLDFAST_JOIN_AUTHORITY", filepath.Join(n.dir, "ca"))
	n.args = []string{"--relp-listen", n.addr + ":20514", "--logs-dir", filepath.Join(n.dir, "hosts")}
	n.start(t, "fbservice1")
	n.until(t, "a leader", func() bool {
		out, _ := n.run(t, "", "status")
		return strings.Contains(out, "Leader: fbservice1")
	})
	if err := os.Unsetenv("HOLDFAST_JOIN_AUTHORITY"); err != nil { // Setenv restores it
		t.Fatal(err)
	}
	var made api.MadeJoinToken
	out := n.expect(t, exitOK, "", "join-token", "create", "--json", "--nodes", "fbloghost1")
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, fingerprint, err := api.ParseJoinToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}

	bare := &node{dir: t.TempDir(), addr: second}
	pki, file, token := filepath.Join(bare.dir, "pki"), filepath.Join(bare.dir, "cluster.yaml"), filepath.Join(bare.dir, "join.token")
	join := []string{"join", n.addr, "--token-file", token, "--node", "fbloghost1", "--bind", second, "--wait", "2m", "--pki", pki, "--config", file}
	agent := []string{"agent", "--only", onlyLogs, "--config", file, "--node", "fbloghost1", "--pki", pki,
		"--data-dir", filepath.Join(bare.dir, "data"), "--run-dir", filepath.Join(bare.dir, "run"),
		"--relp-listen", second + ":20514", "--logs-dir", filepath.Join(bare.dir, "hosts")}
	bare.expect(t, exitUsage, "join.token: no such file", join...)
	for text, refusal := range map[string]struct {
		status int
		words  string
	}{
		"not a token\n": {exitUsage, "no join token"},
		api.FormatJoinToken(strings.Repeat("0", 64), fingerprint): {exitFailed, "the token is unknown, used up or over"},
	} {
		writeToken(t, token, text)
		bare.expect(t, refusal.status, refusal.words, join...)
		for _, left := range []string{pki, file} {
			if _, err := os.Stat(left); err == nil {
				t.Errorf("after the token %q there is %s", text, left)
			}
		}
	}
	writeToken(t, token, made.Token+"\n")
	bare.expect(t, exitOK, "has its certificate and its cluster file", join...)
	// Two hosts of one machine: as [::]:20516 both would listen on the same.
	bare.edit(t, "relp_tls: [\""+n.addr+port+"\"]\n", "relp_tls: [\""+second+port+"\"]\n")
	if err := os.Rename(pki, pki+".away"); err != nil {
		t.Fatal(err)
	}
	bare.expect(t, exitUsage, "certificate", agent...) // no lines without TLS
	if err := os.Rename(pki+".away", pki); err != nil {
		t.Fatal(err)
	}
	bare.runAgent(t, agent)

	bare.until(t, "the log host takes lines", func() bool {
		conn, err := net.DialTimeout("tcp", second+":20514", time.Second)
		return err == nil && conn.Close() == nil
	})
	bare.sendLines(t, "<13>Nov 25 12:00:00 cn01 test: by-the-token")
	n.until(t, "the line is at the central relay, by way of TLS", func() bool {
		out, status := n.run(t, "", "logs", "grep", "--this", "--json", "by-the-token")
		var entry logrelay.Entry
		return status == exitOK && json.Unmarshal([]byte(out), &entry) == nil && entry.Input == "relp-tls"
	})
	conn, err := net.Dial("tcp", n.addr+port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = conn.Write([]byte("1 open 14 relp_version=0\n2 syslog 10 without it\n"))
	room := make([]byte, 100)
	if got, _ := conn.Read(room); strings.Contains(string(room[:got]), "rsp") {
		t.Errorf("the port for TLS answers without it: %q", room[:got])
	}
}

func writeToken(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// runAgent runs an agent as the arguments say, in this process, until the test ends.
func (n *node) runAgent(t *testing.T, args []string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	said, done := &logBuffer{}, make(chan int, 1)
	go func() { done <- execute(ctx, args, strings.NewReader(""), said, said) }()
	t.Cleanup(func() {
		stop()
		if status := <-done; status != exitOK {
			t.Errorf("the agent ended with status %d", status)
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", said)
		}
	})
}
