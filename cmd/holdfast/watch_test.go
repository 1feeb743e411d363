package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/api"
)

// scripted is an agent that answers one request after the other as it is told,
// and keeps what it was asked.
type scripted struct {
	mu      sync.Mutex
	asked   []string
	answers []func(http.ResponseWriter)
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.Path+"?index="+r.URL.Query().Get("index"))
	n := len(s.asked) - 1
	s.mu.Unlock()
	if n >= len(s.answers) {
		<-r.Context().Done()
		return
	}
	s.answers[n](w)
}

func answers(index, body string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("X-Consul-Index", index)
		if body == "" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, body) // the client may have gone
	}
}

// watches runs a watch against a scripted agent until it has asked all, and
// returns what it printed.
func watches(t *testing.T, s *scripted, args ...string) (out, errOut string, asked []string) {
	t.Helper()
	agent := httptest.NewServer(s)
	defer agent.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stdout, stderr := &logBuffer{}, &logBuffer{}
	ended := make(chan int, 1)
	go func() {
		ended <- execute(ctx, append([]string{"watch", args[0], "--server", agent.URL}, args[1:]...), strings.NewReader(""), stdout, stderr)
	}()
	(&node{}).until(t, "all is asked", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.asked) > len(s.answers)
	})
	stop()
	if status := <-ended; status != exitOK {
		t.Errorf("interrupted, it ends with status %d: %s", status, stderr)
	}
	return stdout.String(), stderr.String(), s.asked
}

func keyAnswer(index int, value string) func(http.ResponseWriter) {
	body, err := json.Marshal([]map[string]any{{"Key": "a", "Value": []byte(value), "ModifyIndex": index}})
	if err != nil {
		panic(err)
	}
	return answers(fmt.Sprint(index), string(body))
}

func TestAWatchBeginsAnewWhenTheIndexGoesBack(t *testing.T) {
	s := &scripted{answers: []func(http.ResponseWriter){
		keyAnswer(7, "one"), keyAnswer(9, "two"), keyAnswer(3, "restored"), keyAnswer(3, "restored"), keyAnswer(4, "later"),
	}}
	out, _, asked := watches(t, s, "key", "a")
	if out != "one\ntwo\nrestored\nlater\n" {
		t.Errorf("printed %q", out)
	}
	want := "/v1/kv/a?index= /v1/kv/a?index=7 /v1/kv/a?index=9 /v1/kv/a?index= /v1/kv/a?index=3 /v1/kv/a?index=4"
	if got := strings.Join(asked, " "); got != want {
		t.Errorf("asked %s\nwant  %s", got, want)
	}
}

func TestAWatchGoesOnAfterAnAgentThatFails(t *testing.T) {
	s := &scripted{answers: []func(http.ResponseWriter){
		keyAnswer(7, "one"),
		func(w http.ResponseWriter) { http.Error(w, "No cluster leader", http.StatusInternalServerError) },
		keyAnswer(7, "one"), keyAnswer(8, "two"), answers("9", ""),
	}}
	out, errOut, _ := watches(t, s, "key", "a")
	if out != "one\ntwo\n\n" || strings.Count(errOut, "No cluster leader; trying again") != 1 {
		t.Errorf("printed %q and %q", out, errOut)
	}
}

func TestAWatchEndsWhereAskingAgainIsOfNoUse(t *testing.T) {
	n := &node{}
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "Permission denied", http.StatusForbidden) }))
	defer agent.Close()
	n.expect(t, exitFailed, "Permission denied", "watch", "prefix", "--server", agent.URL, "a/")
	n.expect(t, exitUsage, "the state is any", "watch", "checks", "--service", "web", "critical")
	n.expect(t, exitUsage, "must be one of", "watch", "checks", "odd")
	n.expect(t, exitUnreachable, "is holdfast", "watch", "key", "--once", "a")
}

func TestAWatchsHandlerIsGivenTheValueAndNoShell(t *testing.T) {
	n := startNode(t, "web: {on: fbservice1, port: 80, check: {ttl: 1h}}")
	n.expect(t, exitOK, "", "kv", "put", "a/b", "$(echo run); it's me")
	got := n.expect(t, exitOK, "", "watch", "key", "--once", "a/b", "--", "/bin/sh", "-c", `cat; echo; printenv HOLDFAST_WATCH_VALUE HOLDFAST_WATCH_NAME HOLDFAST_WATCH_KIND`)
	if got != "$(echo run); it's me\n$(echo run); it's me\na/b\nkey\n" {
		t.Errorf("the handler saw %q", got)
	}
	if got = n.expect(t, exitOK, "", "watch", "key", "--once", "a/b", "--", "echo", "$HOME", "; false"); got != "$HOME ; false\n" {
		t.Errorf("the arguments came as %q", got)
	}
	n.expect(t, exitOK, "1", "watch", "key", "--once", "nowhere", "--", "printenv", "HOLDFAST_WATCH_MISSING")
	n.expect(t, 3, "ended with status 3", "watch", "key", "--once", "a/b", "--", "/bin/sh", "-c", "exit 3")
	n.expect(t, exitKeeper, "/nowhere/program", "watch", "key", "a/b", "--", "/nowhere/program")
	n.expect(t, exitOK, `"Key":"a/b"`, "watch", "prefix", "--once", "a/")
	n.until(t, "the service is there", func() bool {
		out, _ := n.run(t, "", "watch", "service", "--once", "web")
		return strings.Contains(out, `"Port":80`)
	})
	if out := n.expect(t, exitOK, "", "watch", "service", "--once", "--passing", "web"); out != "[]\n" {
		t.Errorf("a service that fails passes: %s", out)
	}
	n.expect(t, exitOK, `"ServiceName":"web"`, "watch", "checks", "--once", "critical")
	n.expect(t, exitOK, `"ServiceName":"web"`, "watch", "checks", "--once", "--service", "web", "any")

	// A value that fits no environment comes by standard input alone.
	big := strings.Repeat("v", 200<<10)
	if out, status := n.run(t, big, "kv", "put", "big"); status != exitOK {
		t.Fatal(out)
	}
	n.expect(t, exitOK, fmt.Sprint(len(big)), "watch", "key", "--once", "big", "--", "/bin/sh", "-c", "wc -c; printenv HOLDFAST_WATCH_VALUE || true")
	n.expect(t, exitOK, "", "watch", "key", "--once", "big", "--", "true") // it does not read what it is given

	// Changes run it, others' don't.
	runs := filepath.Join(n.dir, "runs")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- execute(ctx, []string{"watch", "key", "a/b", "--", "/bin/sh", "-c", "cat >>" + runs + "; echo >>" + runs}, strings.NewReader(""), io.Discard, io.Discard)
	}()
	read := func() string {
		data, err := os.ReadFile(runs)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		return string(data)
	}
	n.until(t, "the first run", func() bool { return strings.HasSuffix(read(), "me\n") })
	n.expect(t, exitOK, "", "kv", "put", "a/c", "another's")
	n.expect(t, exitOK, "", "kv", "put", "a/b", "changed")
	n.until(t, "the run after a change", func() bool { return strings.HasSuffix(read(), "changed\n") })
	stop()
	if status := <-ended; status != exitOK || read() != "$(echo run); it's me\nchanged\n" {
		t.Errorf("status %d, the handler ran with %q", status, read())
	}
}

func TestEventsAndTheLogAreHeard(t *testing.T) {
	n := startNode(t, "")
	id := strings.TrimSpace(n.expect(t, exitOK, "-", "event", "fire", "deploy", "1.2.3"))
	n.until(t, "the event", func() bool {
		out, _ := n.run(t, "", "event", "list", "deploy")
		return strings.Contains(out, id) && strings.Contains(out, "1.2.3")
	})
	if out := n.expect(t, exitOK, "", "event", "list", "other"); strings.Contains(out, id) {
		t.Errorf("another's event: %s", out)
	}
	n.expect(t, exitFailed, "bytes", "event", "fire", "deploy", strings.Repeat("x", 2000))

	ctx, stop := context.WithCancel(t.Context())
	heard, ended := &logBuffer{}, make(chan int, 1)
	socket := filepath.Join(n.dir, "run", "core.sock")
	go func() {
		ended <- execute(ctx, []string{"monitor", "--socket", socket, "--level", "debug"}, strings.NewReader(""), heard, heard)
	}()
	n.until(t, "a line of the log", func() bool {
		n.expect(t, exitOK, "", "config", "reload")
		return strings.Contains(heard.String(), "level=")
	})
	stop()
	if status := <-ended; status != exitOK {
		t.Errorf("interrupted, it ends with status %d: %s", status, heard)
	}
}

func TestTheDebugArchiveIsWholeAndHoldsNoSecret(t *testing.T) {
	n := newNode(t, `web: {on: fbservice1, port: 80, tags: [kept], check: {http: "/x?t=SECRET-query", header: {Authorization: "Bearer SECRET-header"}, body: SECRET-body, every: 1s}},
  run: {on: fbservice1, port: 81, check: {tcp: true, send: SECRET-send, every: 1s}} `)
	n.edit(t, "schema: 1", "schema: 1 # SECRET-comment")
	n.start(t, "fbservice1")
	n.until(t, "a leader", func() bool {
		_, status := n.run(t, "", "kv", "put", "site/password", "SECRET-value")
		return status == exitOK
	})
	n.expect(t, exitOK, "", "watch", "key", "--once", "site/password", "--", "true")
	client, session := n.client(t), ""
	n.until(t, "a session: the leader has registered the node", func() (made bool) {
		var err error
		session, err = client.SessionCreate(t.Context(), api.SessionOptions{Name: "s", TTL: time.Minute})
		return err == nil
	})
	secrets := []string{"SECRET", "U0VDUkVU", session}
	for _, file := range []string{"gossip.key", "node.key"} {
		data, err := os.ReadFile(filepath.Join(n.dir, "issued", "fbservice1", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(data), "\n") {
			if len(line) > 15 && !strings.HasPrefix(line, "-----") {
				secrets = append(secrets, line)
			}
		}
	}
	if len(secrets) < 6 {
		t.Fatalf("the keys have no lines to look for: %d", len(secrets))
	}
	n.until(t, "a check's output in the log", func() bool { return strings.Contains(n.log.String(), "SECRET-query") })
	out := t.TempDir()
	var paths []string
	for range 2 {
		paths = append(paths, strings.TrimSpace(n.expect(t, exitOK, ".tar.gz", "debug", "--dir", out, "--seconds", "1")))
	}
	if paths[0] == paths[1] {
		t.Error("two archives have one name")
	}
	if info, err := os.Stat(paths[0]); err != nil || info.Mode() != 0o600 {
		t.Errorf("the archive: %v %v", info, err)
	}
	files := unpack(t, paths[0])
	for name, words := range map[string]string{
		"goroutines.txt": "goroutine ", "metrics.txt": "holdfast_api_requests_total", "raft.json": `"servers"`, "conditions.json": "[",
		"status.json": "fbservice1", "config.json": `"sum"`, "cluster.yaml": "kept", "log.txt": "level=INFO", "about.txt": version,
		"heap.pprof": "", "allocs.pprof": "", "mutex.pprof": "", "cpu.pprof": "",
	} {
		content, ok := files[name]
		if !ok || len(content) == 0 || !strings.Contains(content, words) {
			t.Errorf("%s: %d bytes, without %q", name, len(content), words)
		}
	}
	if !strings.Contains(files["log.txt"], "check=service:web") {
		t.Errorf("the log does not say of a check that fails:\n%s", files["log.txt"])
	}
	if strings.Contains(files["about.txt"], "missing") {
		t.Error(files["about.txt"])
	}
	for name, content := range files {
		for _, secret := range secrets {
			if strings.Contains(content, secret) {
				t.Errorf("%s holds %q", name, secret)
			}
		}
	}
	n.expect(t, exitFailed, "nowhere", "debug", "--dir", filepath.Join(out, "nowhere"))
	n.expect(t, exitUsage, "0 to 60", "debug", "--seconds", "61")
}

// unpack reads an archive; profiles are unpacked, too.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	plain, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for archive := tar.NewReader(plain); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		var content io.Reader = archive
		if strings.HasSuffix(header.Name, ".pprof") {
			if content, err = gzip.NewReader(archive); err != nil {
				t.Fatalf("%s is no profile: %v", header.Name, err)
			}
		}
		data, err := io.ReadAll(content)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(header.Name, "holdfast-debug/")] = string(data)
	}
}

func TestRedactKeepsWhatExplainsAndHidesWhatMayBeSecret(t *testing.T) {
	clean, err := redact([]byte(`
api: {port: 8500, token: {file: /etc/holdfast/secrets/api.token}}
services:
  a: {check: [{https: "https://u:SECRET@h/p?k=SECRET", header: {X: SECRET}}, {script: [/bin/check, --password, SECRET]}, {tcp: true, send: SECRET, expect: SECRET}]}
other: {password: SECRET, api_key: [SECRET], psk: SECRET}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, kept := range []string{"/etc/holdfast/secrets/api.token", "8500", "/bin/check", "hidden@h/p?hidden"} {
		if !strings.Contains(string(clean), kept) {
			t.Errorf("%q is gone:\n%s", kept, clean)
		}
	}
	if strings.Contains(string(clean), "SECRET") {
		t.Errorf("secrets are left:\n%s", clean)
	}
	log := string(redactedLog([]byte("level=WARN output=\"a \\\"SECRET\\\" b\" check=c\nlevel=INFO output=SECRET url=\"http://u:SECRET@h/p?q=SECRET\" kept=1\n")))
	if strings.Contains(log, "SECRET") || !strings.Contains(log, "check=c") || !strings.Contains(log, "kept=1") || !strings.Contains(log, "hidden@h/p?hidden") {
		t.Errorf("the log is\n%s", log)
	}
}
