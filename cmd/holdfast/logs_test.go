package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/logrelay/relp"
)

// sendLines sends lines to a node's relay by RELP, and returns once they are stored.
func (n *node) sendLines(t *testing.T, lines ...string) {
	t.Helper()
	conn, err := net.Dial("tcp", n.addr+":20514")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	var session relp.Client
	out := session.AppendOpen(nil)
	for _, line := range lines {
		out = session.AppendLine(out, []byte(line))
	}
	if _, err := conn.Write(out); err != nil {
		t.Fatal(err)
	}
	var in []byte
	room := make([]byte, 4096)
	for session.Waiting() > 0 {
		got, err := conn.Read(room)
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, room[:got]...)
		for {
			frame, size, err := relp.Parse(in)
			if err != nil {
				t.Fatal(err)
			}
			if size == 0 {
				break
			}
			in = in[size:]
			if _, err := session.Step(frame); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestLogsOfAllServersAreOne: what three relays took is one journal for who
// asks one of them, over its socket with the node's certificate, or over HTTPS
// with an admin's; a node that is gone is named.
func TestLogsOfAllServersAreOne(t *testing.T) {
	nodes := startThree(t, ", run: [logs]")
	var list []*node
	for i := range 3 {
		list = append(list, nodes[fmt.Sprintf("fbservice%d", i+1)])
	}
	first := list[0]
	for i, n := range list {
		n.until(t, "its relay answers", func() bool {
			_, status := n.run(t, "", "logs", "status")
			return status == exitOK
		})
		n.until(t, "its API answers", func() bool {
			out, _ := first.run(t, "", "logs", "queues", "--pki", filepath.Join(first.dir, "issued", "fbservice1"))
			return strings.Contains(out, fmt.Sprintf("fbservice%d", i+1)) && !strings.Contains(out, "missing")
		})
	}
	var want []string
	for i := range 9 {
		word := fmt.Sprintf("line-%d", i)
		want = append(want, word)
		list[i%3].sendLines(t, fmt.Sprintf("<%d>Nov 25 12:00:00 cn%02d test: %s", 8+i%8, i%3, word)) // user.emerg to user.debug
	}
	pki := filepath.Join(first.dir, "issued", "fbservice1")
	words := func(out string) (list []string) {
		for line := range strings.Lines(out) {
			if _, word, ok := strings.Cut(strings.TrimSpace(line), "test: "); ok {
				list = append(list, word)
			}
		}
		return list
	}
	ask := func(t *testing.T, want string, args ...string) {
		t.Helper()
		out, status := first.run(t, "", append(append([]string{"logs"}, args...), "--pki", pki)...)
		if got := strings.Join(words(out), " "); got != want || status != exitOK {
			t.Errorf("%v: %q with status %d, want %q", args, out, status, want)
		}
	}
	ask(t, strings.Join(want, " "), "grep")
	ask(t, "line-3", "grep", "line-[3-5]", "-w", "cn[00-01]", "-n", "1")
	ask(t, "line-0 line-1 line-2 line-3 line-8", "grep", "-p", "err")
	ask(t, "line-0 line-3 line-6", "grep", "--this")
	// A node that says nothing for two seconds holds up nobody's lines, and tail says so.
	const rounds = 5
	for n := 1; ; n++ {
		out, status := first.run(t, "", "logs", "tail", "--since", "1h", "-n", "4", "--pki", pki)
		late := strings.Contains(out, "lines are shown without it")
		if late && n < rounds {
			t.Logf("asked again, since a node was late: %s", out)
			continue
		}
		if got := strings.Join(words(out), " "); late || got != strings.Join(want[:4], " ") || status != exitOK {
			t.Errorf("tail: %q with status %d, want %q: %s", got, status, want[:4], out)
		}
		break
	}
	first.expect(t, exitOK, "cn00  fbservice1  from the host  3", "logs", "where", "--pki", pki)
	first.expect(t, exitOK, "test  9", "logs", "stats", "--by", "app", "--pki", pki)
	first.expect(t, exitOK, "A SECOND", "logs", "top", "--every", "1m", "--once", "--pki", pki)
	first.expect(t, exitOK, "fbservice3", "logs", "queues", "--pki", pki)
	first.expect(t, exitUsage, "no time", "logs", "grep", "--since", "yesterday")
	first.expect(t, exitUsage, "missing closing", "logs", "grep", "(", "--pki", pki)
	// A node that the cluster file names since a reload is one.
	content, err := os.ReadFile(filepath.Join(first.dir, "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	first.expect(t, exitUsage, "unknown role", "logs", "grep", "-w", "@compute", "--this", "--pki", pki)
	prefix := first.addr[:strings.LastIndex(first.addr, ".")+1]
	changed := strings.Replace(string(content), "roles: {", "roles: {compute: {}, ", 1)
	changed = strings.Replace(changed, "nodes: {", fmt.Sprintf(`nodes: {cn00: {role: compute, addresses: {main: "%s99"}}, `, prefix), 1)
	if err := os.WriteFile(filepath.Join(first.dir, "cluster.yaml"), []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	first.expect(t, exitOK, "nodes", "config", "reload")
	ask(t, "line-0 line-3 line-6", "grep", "-w", "@compute", "--this")

	first.expect(t, exitOK, "all outputs have", "logs", "flush")
	first.expect(t, exitUsage, "no target", "logs", "replay", "files", "--from", "1h")
	first.expect(t, exitOK, "no more", "logs", "pause")
	first.expect(t, exitDegraded, "holdfast logs pause", "logs", "status")
	first.expect(t, exitOK, "are read", "logs", "resume")

	url := "https://" + list[1].addr + ":8501"
	admin := filepath.Join(first.dir, "issued", "alice")
	out, status := first.run(t, "", "logs", "grep", "--json", "--server", url, "--pki", admin)
	var entry struct{ Node, Host, Line string }
	if head, _, _ := strings.Cut(out, "\n"); status != exitOK || json.Unmarshal([]byte(head), &entry) != nil || entry.Node != "fbservice1" || entry.Host == "" {
		t.Errorf("over HTTPS: %d %s", status, out)
	}
	// A server's certificate may look, and no more.
	if out, status := first.run(t, "", "logs", "pause", "--server", url, "--pki", pki); status == exitOK {
		t.Errorf("another server paused a relay: %s", out)
	}
	list[2].stop()
	if status := <-list[2].done; status != exitOK {
		t.Errorf("the agent ended with status %d", status)
	}
	list[2].done <- exitOK // for the clean-up
	first.expect(t, exitDegraded, "what only fbservice3 has is missing", "logs", "grep", "--pki", pki)
	first.expect(t, exitDegraded, "what only fbservice3 has is missing", "logs", "grep", "-n", "1", "--pki", pki)
}
