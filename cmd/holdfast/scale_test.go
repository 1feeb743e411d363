package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/admin"
)

// What a catalog of a large cluster costs one agent, which runs as a process of
// its own. It wants a machine for itself, and runs with HOLDFAST_SCALE set.
func TestAThousandNodesFitIntoOneAgent(t *testing.T) {
	if os.Getenv("HOLDFAST_SCALE") == "" {
		t.Skip("a measurement: make scale")
	}
	const nodes, services, idle = 1000, 5, 10_000
	a := startProcess(t, "api: {blocking_limit: 20000}")
	empty := a.rss(t)

	profiled := a.profile(t, os.Getenv("HOLDFAST_SCALE_PROFILE"))
	began := time.Now()
	a.each(nodes*services, 64, func(i int) {
		body := fmt.Sprintf(`{"Node":"n%d","Address":"10.%d.%d.1","Service":{"ID":"s%d","Service":"service-%d","Port":80,"Tags":["a","b"]},
			"Checks":[{"CheckID":"c%d","Status":"passing","ServiceID":"s%d"}]}`, i%nodes, i%nodes/250, i%nodes%250, i/nodes, i%50, i/nodes, i/nodes)
		a.put(t, "/v1/catalog/register", body)
	})
	registered := time.Since(began)
	t.Logf("registered in %s", registered)
	<-profiled
	full := a.rss(t)

	// Idle queries, each about a service that does not change.
	var indexes []string
	for i := range 50 {
		_, index := a.get(t, fmt.Sprintf("/v1/health/service/service-%d?stale", i))
		indexes = append(indexes, index)
	}
	for i := range idle {
		s := 1 + i%49
		a.open(t, fmt.Sprintf("/v1/health/service/service-%d?index=%s&wait=10m&stale", s, indexes[s]))
	}
	a.until(t, "the queries wait", func() bool { return a.metric(t, "holdfast_api_blocking_queries") >= idle })
	waiting := a.rss(t)
	woken := a.metric(t, `holdfast_api_blocking_wakes_total{result="changed"}`)
	needless := a.metric(t, `holdfast_api_blocking_wakes_total{result="unchanged"}`)

	var wakes []time.Duration
	for i := range 200 {
		_, index := a.get(t, "/v1/health/service/service-0?stale")
		done := make(chan time.Time, 1)
		go func() { a.get(t, "/v1/health/service/service-0?stale&wait=1m&index="+index); done <- time.Now() }()
		a.until(t, "it waits", func() bool { return a.metric(t, "holdfast_api_blocking_queries") >= idle+1 })
		a.put(t, "/v1/catalog/register", fmt.Sprintf(`{"Node":"n0","Address":"10.0.0.1","SkipNodeUpdate":true,"Check":{"CheckID":"c0","Status":"passing","ServiceID":"s0","Output":"%d"}}`, i))
		answered := time.Now()
		wakes = append(wakes, max(0, (<-done).Sub(answered)))
	}
	slices.Sort(wakes)
	p99 := wakes[len(wakes)*99/100]
	others := a.metric(t, `holdfast_api_blocking_wakes_total{result="changed"}`) - woken - float64(len(wakes)) +
		a.metric(t, `holdfast_api_blocking_wakes_total{result="unchanged"}`) - needless
	perQuery := (waiting - full) / idle
	t.Logf("%d instances on %d nodes in %s; RSS %d MiB empty, %d MiB with them; %d idle queries at %d bytes each; a wake p50 %s, p99 %s, max %s after the write was answered; others woken: %.0f",
		nodes*services, nodes, registered.Round(time.Millisecond), empty>>20, full>>20, idle, perQuery, wakes[len(wakes)/2], p99, wakes[len(wakes)-1], others)
	if full > 150<<20 {
		t.Errorf("the agent has %d MiB; at most 150", full>>20)
	}
	if perQuery > 40<<10 {
		t.Errorf("an idle query takes %d bytes; at most 40 KiB", perQuery)
	}
	if others != 0 {
		t.Errorf("a change of one service woke %.0f queries about others", others)
	}
	if registered > 10*time.Second {
		t.Errorf("registering took %s; at most 10 s", registered)
	}
	if p99 > 20*time.Millisecond {
		t.Errorf("a wake took %s at p99; at most 20 ms", p99)
	}
}

// profile writes ten seconds of the agent's processor profile to a file, while
// the test goes on; "" writes none.
func (a *process) profile(t *testing.T, path string) <-chan struct{} {
	done := make(chan struct{})
	if path == "" {
		close(done)
		return done
	}
	go func() {
		defer close(done)
		response, err := admin.Client(filepath.Join(a.run, "net.sock")).Get(admin.BaseURL + "/debug/pprof/profile?seconds=10")
		if err != nil {
			t.Error(err)
			return
		}
		defer response.Body.Close()
		data, err := io.ReadAll(response.Body)
		if err != nil || os.WriteFile(path, data, 0o600) != nil {
			t.Errorf("the profile was not written: %v", err)
		}
	}()
	return done
}

// process is an agent in a process of its own.
type process struct {
	cmd  *exec.Cmd
	run  string // its sockets
	addr string
	http *http.Client
}

func startProcess(t *testing.T, section string) *process {
	t.Helper()
	n := &node{dir: t.TempDir(), addr: loopback()}
	n.writeFile(t, "}\n"+strings.TrimSuffix(section, "}"))
	run := func(args ...string) *exec.Cmd {
		command := exec.Command("/proc/self/exe", args...)
		command.Env = append(os.Environ(), asHoldfast+"=1")
		return command
	}
	file := filepath.Join(n.dir, "cluster.yaml")
	for _, args := range [][]string{
		{"pki", "init", "--dir", filepath.Join(n.dir, "ca"), "--cluster", "cli"},
		{"pki", "issue", "--ca", filepath.Join(n.dir, "ca"), "--config", file, "--out", filepath.Join(n.dir, "issued")},
	} {
		if out, err := run(args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	a := &process{addr: n.addr + ":8500", run: filepath.Join(n.dir, "run"), http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	a.cmd = run("agent", "--config", file, "--node", "fbservice1", "--data-dir", filepath.Join(n.dir, "data"),
		"--run-dir", filepath.Join(n.dir, "run"), "--pki", filepath.Join(n.dir, "issued", "fbservice1"),
		"--dns-listen", n.addr+":5353", "--ntp-listen", n.addr+":1123", "--http-listen", a.addr)
	said := &logBuffer{}
	a.cmd.Stderr, a.cmd.Stdout = said, said
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill() // thousands of queries need no answer
		_ = a.cmd.Wait()
		if t.Failed() {
			t.Logf("the agent's log:\n%.4000s", said)
		}
	})
	a.until(t, "a leader", func() bool {
		response, err := a.http.Get("http://" + a.addr + "/v1/catalog/node/fbservice1")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		data, err := io.ReadAll(response.Body)
		return err == nil && response.StatusCode == 200 && len(data) > len("null\n")
	})
	return a
}

// rss is the agent's resident memory in bytes, after it had time to give back
// what it does not need.
func (a *process) rss(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	fields := strings.Fields(rest)
	kib, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// each calls f for 0 to n-1, so many at a time.
func (a *process) each(n, width int, f func(int)) {
	work := make(chan int)
	var lanes sync.WaitGroup
	for range width {
		lanes.Go(func() {
			for i := range work {
				f(i)
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	lanes.Wait()
}

func (a *process) put(t *testing.T, path, body string) {
	request, err := http.NewRequestWithContext(context.Background(), "PUT", "http://"+a.addr+path, bytes.NewBufferString(body))
	if err != nil {
		t.Error(err)
		return
	}
	response, err := a.http.Do(request)
	if err != nil {
		t.Error(err)
		return
	}
	defer response.Body.Close()
	if text, _ := io.ReadAll(response.Body); response.StatusCode != 200 {
		t.Errorf("PUT %s: %d %s", path, response.StatusCode, text)
	}
}

func (a *process) get(t *testing.T, path string) (text, index string) {
	response, err := a.http.Get("http://" + a.addr + path)
	if err != nil {
		t.Error(err)
		return "", ""
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return string(data), response.Header.Get("X-Consul-Index")
}

// open sends a query on a connection of its own and does not wait.
func (a *process) open(t *testing.T, path string) {
	t.Helper()
	conn, err := net.Dial("tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
}

func (a *process) metric(t *testing.T, name string) float64 {
	t.Helper()
	text, _ := a.get(t, "/v1/agent/metrics?format=prometheus")
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return number
		}
	}
	return 0
}

func (a *process) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !await(t.Context(), time.Minute, done) {
		t.Fatalf("not within a minute: %s", what)
	}
}
