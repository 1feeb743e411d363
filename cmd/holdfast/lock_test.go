package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/lab/stall"
)

// The test's own binary stands for holdfast and for the program that runs under
// a lock, when these are set.
const (
	asHoldfast = "HOLDFAST_TEST_AS_HOLDFAST"
	asWorker   = "HOLDFAST_TEST_WORKER" // the file that it writes to
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "lock-worker":
		work(os.Getenv(asWorker))
	case os.Getenv(asHoldfast) != "":
		main()
	default:
		os.Exit(m.Run())
	}
}

// work writes its token to a file that all workers share, for ever. The kernel
// puts the lines in one order (O_APPEND).
func work(path string) {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	line := []byte(os.Getenv("HOLDFAST_LOCK_TOKEN") + " " + strconv.Itoa(os.Getpid()) + "\n")
	for range time.Tick(2 * time.Millisecond) {
		if _, err := file.Write(line); err != nil {
			os.Exit(1)
		}
	}
}

// contender is one `holdfast lock`.
type contender struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}
}

// contend starts a holdfast lock through a socket.
func contend(t *testing.T, socket, name, journal string, argv ...string) *contender {
	t.Helper()
	args := append([]string{"lock", "--socket", socket, "--ttl", lockTTL.String(), name, "--"}, argv...)
	c := &contender{t: t, cmd: exec.Command("/proc/self/exe", args...), done: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), asHoldfast+"=1", asWorker+"="+journal)
	said := &logBuffer{}
	c.cmd.Stderr = said
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("holdfast lock %s: %v: %s", name, c.cmd.ProcessState, said)
		}
	})
	if err := c.cmd.Start(); err != nil {
		t.Error(err)
		close(c.done)
		return c
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait() // most are killed
	}()
	t.Cleanup(c.end)
	return c
}

// over tells whether it has ended.
func (c *contender) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// insist starts a holdfast lock again when it ends, as a supervisor does, until
// stop: on a busy machine one may starve, and lose by itself what it has.
func insist(t *testing.T, socket, name, journal string, argv ...string) (stop func()) {
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		for {
			c := contend(t, socket, name, journal, argv...)
			select {
			case <-c.done:
			case <-quit:
				c.end()
				return
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-quit:
				return
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(quit)
		<-gone
	})
	t.Cleanup(stop)
	return stop
}

// end ends the holder with its command.
func (c *contender) end() {
	if c.cmd.Process == nil {
		return
	}
	_ = c.cmd.Process.Signal(syscall.SIGCONT)
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(patience):
		_ = c.cmd.Process.Kill()
		c.t.Error("holdfast lock does not end on SIGTERM")
	}
}

// keeper is the process that keeps the command on a leash; 0 when there is none.
func (c *contender) keeper() int { return childOf(c.cmd.Process.Pid) }

func childOf(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err == nil {
		if first, _, _ := strings.Cut(string(data), " "); first != "" {
			child, _ := strconv.Atoi(first)
			return child
		}
	}
	// Another thread of it may have forked.
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		data, _ := os.ReadFile(task)
		if first, _, _ := strings.Cut(string(data), " "); first != "" {
			child, _ := strconv.Atoi(first)
			return child
		}
	}
	return 0
}

const lockTTL = 3 * time.Second

// proxy is a socket in front of the agent's that can go silent, as a network
// does that is cut.
type proxy struct {
	listener net.Listener
	cut      atomic.Bool
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &proxy{}
	if p.listener, err = net.Listen("unix", filepath.Join(dir, "s")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.listener.Close() })
	go func() {
		for {
			conn, err := p.listener.Accept()
			if err != nil {
				return
			}
			go p.serve(conn, to)
		}
	}()
	return p
}

func (p *proxy) socket() string { return p.listener.Addr().String() }

func (p *proxy) serve(conn net.Conn, to string) {
	defer conn.Close()
	behind, err := net.Dial("unix", to)
	if err != nil {
		return
	}
	defer behind.Close()
	go func() { _, _ = io.Copy(cuttable{p, behind}, conn) }()
	_, _ = io.Copy(cuttable{p, conn}, behind)
}

// cuttable loses what is written while the proxy is cut.
type cuttable struct {
	p  *proxy
	to io.Writer
}

func (c cuttable) Write(b []byte) (int, error) {
	if c.p.cut.Load() {
		return len(b), nil
	}
	return c.to.Write(b)
}

// startLockNode is startNode, with short sessions, once the node can hold locks.
func startLockNode(t *testing.T) *node {
	t.Helper()
	n := startNode(t, "}\napi: {session_ttl_min_ms: 500") // whose brace is closed there
	n.until(t, "the leader has registered the node", func() bool {
		command := exec.Command("/proc/self/exe", "lock", "--socket", filepath.Join(n.dir, "run", "core.sock"), "--ttl", lockTTL.String(), "warm", "--", "/bin/true")
		command.Env = append(os.Environ(), asHoldfast+"=1")
		return command.Run() == nil
	})
	return n
}

// journal is what the workers wrote.
type journal struct{ path string }

// last is the greatest token so far; 0 before the first.
func (j journal) last(t *testing.T) uint64 {
	greatest, _ := j.read(t)
	return greatest
}

// read returns the greatest token, and fails the test when two held the lock:
// when a token came after a greater one.
func (j journal) read(t *testing.T) (greatest uint64, holders int) {
	t.Helper()
	file, err := os.Open(j.path)
	if os.IsNotExist(err) {
		return 0, 0
	}
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		first, _, whole := strings.Cut(lines.Text(), " ")
		token, err := strconv.ParseUint(first, 10, 64)
		if err != nil || !whole {
			continue // the last one is being written
		}
		if token < greatest {
			t.Errorf("line %d of %s: the holder of token %d wrote after that of %d", n, j.path, token, greatest)
			return greatest, holders
		}
		if token > greatest {
			greatest, holders = token, holders+1
		}
	}
	return greatest, holders
}

// faults are what happens to a holder. Each must end its command before another
// gets the lock.
var faults = map[string]func(c *contender, p *proxy) (undo func()){
	"holder killed":  func(c *contender, _ *proxy) func() { return c.send(syscall.SIGKILL) },
	"holder stopped": func(c *contender, _ *proxy) func() { return c.send(syscall.SIGSTOP) },
	"keeper killed":  func(c *contender, _ *proxy) func() { return send(c.keeper(), syscall.SIGKILL) },
	"keeper stopped, holder cut off": func(c *contender, p *proxy) func() {
		p.cut.Store(true)
		return send(c.keeper(), syscall.SIGSTOP)
	},
	"holder cut off": func(c *contender, p *proxy) func() { p.cut.Store(true); return func() {} },
}

// send sends the holder a signal, unless it has ended; undo continues it.
func (c *contender) send(signal syscall.Signal) func() {
	_ = c.cmd.Process.Signal(signal)
	return func() { _ = c.cmd.Process.Signal(syscall.SIGCONT) }
}

// send sends a signal; undo continues the process.
func send(pid int, signal syscall.Signal) func() {
	if pid <= 0 {
		return func() {}
	}
	_ = syscall.Kill(pid, signal)
	return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
}

// TestTwoNeverHoldALock has holders killed, stopped for longer than the lease
// and cut off. HOLDFAST_LOCK_ROUNDS says how often; `make locks-long` takes
// 1000.
func TestTwoNeverHoldALock(t *testing.T) {
	n := startLockNode(t)
	rounds, _ := strconv.Atoi(os.Getenv("HOLDFAST_LOCK_ROUNDS"))
	rounds = max(rounds, 2*len(faults))
	names := []string{}
	for name := range faults {
		names = append(names, name)
	}
	work := make(chan int, rounds)
	for round := range rounds {
		work <- round
	}
	close(work)
	var lanes sync.WaitGroup
	for range 5 {
		lanes.Go(func() {
			for round := range work {
				if t.Failed() {
					return
				}
				lockRound(t, n, round, names[round%len(names)])
			}
		})
	}
	lanes.Wait()
	t.Logf("%d rounds", rounds)
}

func lockRound(t *testing.T, n *node, round int, fault string) {
	j := journal{filepath.Join(t.TempDir(), "journal")}
	p := newProxy(t, filepath.Join(n.dir, "run", "core.sock"))
	name := fmt.Sprintf("round-%d", round)
	first := contend(t, p.socket(), name, j.path, "/proc/self/exe", "lock-worker")
	if !await(t.Context(), patience, func() bool {
		if first.over() { // it starved
			first = contend(t, p.socket(), name, j.path, "/proc/self/exe", "lock-worker")
		}
		return j.last(t) > 0 || t.Failed()
	}) {
		t.Errorf("round %d: nobody got the lock", round)
		return
	}
	if t.Failed() {
		return
	}
	token := j.last(t)
	stop := insist(t, filepath.Join(n.dir, "run", "core.sock"), name, j.path, "/proc/self/exe", "lock-worker")
	<-time.After(rand.N(lockTTL)) // anywhere between two renewals
	undo := faults[fault](first, p)
	defer undo()
	if !await(t.Context(), patience, func() bool { return j.last(t) > token || t.Failed() }) {
		t.Errorf("round %d: %s: the other never got the lock", round, fault)
		return
	}
	if t.Failed() {
		return
	}
	// Who was stopped goes on, and must not write again: its token is smaller.
	undo()
	p.cut.Store(false)
	<-time.After(lockTTL / 4)
	if _, holders := j.read(t); holders < 2 {
		t.Errorf("round %d: %s: %d holders", round, fault, holders)
	}
	first.end()
	stop()
	j.read(t)
}

func await(ctx context.Context, limit time.Duration, done func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

func TestLockGivesItsCommandsStatusAndEnvironment(t *testing.T) {
	n := startLockNode(t)
	socket := filepath.Join(n.dir, "run", "core.sock")
	run := func(args ...string) (string, int) {
		command := exec.Command("/proc/self/exe", append([]string{"lock", "--socket", socket, "--ttl", lockTTL.String()}, args...)...)
		command.Env = append(os.Environ(), asHoldfast+"=1")
		out, _ := command.CombinedOutput() // the status is looked at
		return string(out), command.ProcessState.ExitCode()
	}
	out, status := run("a", "--", "/bin/sh", "-c", "echo $HOLDFAST_LOCK_NAME $HOLDFAST_LOCK_TOKEN; exit 3")
	var token int
	if _, err := fmt.Sscanf(out, "a %d", &token); err != nil || status != 3 || token == 0 {
		t.Errorf("status %d: %s", status, out)
	}
	if out, status = run("a", "--", "/bin/sh", "-c", "kill -TERM $$"); status != 143 {
		t.Errorf("a command that a signal ended: status %d: %s", status, out)
	}
	if out, status = run("a", "--", "/nowhere/program"); status != exitKeeper || !strings.Contains(out, "/nowhere/program") {
		t.Errorf("no such program: status %d: %s", status, out)
	}
	if out, status = run("a"); status != exitUsage {
		t.Errorf("no command: status %d: %s", status, out)
	}
	j := journal{filepath.Join(t.TempDir(), "journal")}
	holder := contend(t, socket, "a", j.path, "/proc/self/exe", "lock-worker")
	n.until(t, "a holder", func() bool { return j.last(t) > 0 })
	if out, status = run("--try", "a", "--", "/bin/true"); status != exitFailed || !strings.Contains(out, "another has it") {
		t.Errorf("a lock that another has: status %d: %s", status, out)
	}
	if out, status = run("--wait", "300ms", "a", "--", "/bin/true"); status != exitFailed || !strings.Contains(out, "waiting") {
		t.Errorf("a lock that another keeps: status %d: %s", status, out)
	}
	// Released in an orderly way it is free at once, without a lock-delay.
	holder.end()
	if out, status = run("--try", "a", "--", "/bin/true"); status != exitOK {
		t.Errorf("a lock that was released: status %d: %s", status, out)
	}
	machine := stall.Test(t, n.dir)
	began, ended := takenAway(t, n, socket, "b", j)
	machine.Judge(t, "the end of a command whose lock was taken away", lockTTL, began, ended)
}

// takenAway takes a lock from its holder by force, and tells when that was and when
// the holder ended with its command.
func takenAway(t *testing.T, n *node, socket, name string, j journal) (began, ended time.Time) {
	t.Helper()
	lost := contend(t, socket, name, j.path, "/bin/sleep", "3600")
	n.until(t, "a holder", func() bool {
		out, _ := n.run(t, "", "kv", "get", "holdfast/lock/"+name)
		return strings.Contains(out, "pid")
	})
	n.until(t, "its command", func() bool { return lost.keeper() != 0 })
	began = time.Now()
	n.expect(t, exitOK, "", "kv", "delete", "holdfast/lock/"+name)
	select {
	case <-lost.done:
	case <-time.After(patience):
		t.Fatal("a command outlives its lock")
	}
	ended = time.Now()
	if status := lost.cmd.ProcessState.ExitCode(); status != exitLost {
		t.Errorf("a lock that was taken away: status %d, want %d", status, exitLost)
	}
	return began, ended
}

// TestALockThatIsNotHadInTimeIsThat: whatever is asked when the time is over. It
// fails where a question that is cut short makes an agent that does not answer of it.
func TestALockThatIsNotHadInTimeIsThat(t *testing.T) {
	n := &node{dir: t.TempDir()}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/session/create", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"ID":"s"}`) })
	mux.HandleFunc("PUT /v1/kv/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or the server does not hear that the client goes
		if r.URL.Query().Has("acquire") {
			<-r.Context().Done()
		}
		_, _ = io.WriteString(w, "true")
	})
	mux.HandleFunc("PUT /v1/session/destroy/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "true") })
	listenAdmin(t, filepath.Join(n.dir, "run", "core.sock"), mux)
	n.expect(t, exitFailed, "waiting: context deadline exceeded", "lock", "--wait", "100ms", "a", "--", "/bin/true")
}
