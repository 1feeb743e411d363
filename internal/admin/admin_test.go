package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/kernel/sockopt"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// socketPath is in a directory that the package accepts, short enough for the kernel.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "core.sock")
}

// start runs a server until the test ends or stop is called.
func start(t *testing.T, config Config, handler http.Handler) (registry *prometheus.Registry, stop func()) {
	t.Helper()
	registry = prometheus.NewRegistry()
	server, err := New(config, Deps{Handler: handler, Log: quiet(), Metrics: registry})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("Run: %v", err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return registry, stop
}

func TestAdminIsAnsweredAndTheHandlerKnowsWhoAsks(t *testing.T) {
	path := socketPath(t)
	_, stop := start(t, Config{Unit: "core", Path: path}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := PeerOf(r.Context())
		if !ok || int(peer.UID) != os.Getuid() || peer.PID != os.Getpid() {
			t.Errorf("peer %+v, %v", peer, ok)
		}
		io.WriteString(w, "held")
	}))
	response, err := Client(path).Get(BaseURL + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || string(body) != "held" {
		t.Fatalf("body %q, %v", body, err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket mode %v, %v, want 0660", info.Mode(), err)
	}
	stop()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket outlived Run: %v", err)
	}
}

func TestOnlyRootTheAgentAndItsAdminsMayAsk(t *testing.T) {
	self := uint32(os.Geteuid())
	config := Config{Unit: "core", Path: "/nowhere", UIDs: []uint32{7001}, GIDs: []uint32{8001}}
	registry := prometheus.NewRegistry()
	server, err := New(config, Deps{Log: quiet(), Metrics: registry, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		peer Peer
		want int
	}{
		"root":                        {Peer{Credentials: sockopt.Credentials{UID: 0, GID: 0}}, 200},
		"the agent's own user":        {Peer{Credentials: sockopt.Credentials{UID: self, GID: 9}}, 200},
		"a listed user":               {Peer{Credentials: sockopt.Credentials{UID: 7001, GID: 9}}, 200},
		"a member by primary group":   {Peer{Credentials: sockopt.Credentials{UID: 9, GID: 8001}}, 200},
		"a member by another group":   {Peer{Credentials: sockopt.Credentials{UID: 9, GID: 9, Groups: []uint32{4, 8001}}}, 200},
		"a stranger":                  {Peer{Credentials: sockopt.Credentials{UID: 9, GID: 9, Groups: []uint32{4}}}, 403},
		"a gid that equals a uid":     {Peer{Credentials: sockopt.Credentials{UID: 8001, GID: 7001}}, 403},
		"someone the kernel hid":      {Peer{err: errors.New("getsockopt")}, 403},
		"root, but the kernel failed": {Peer{Credentials: sockopt.Credentials{UID: 0}, err: errors.New("getsockopt")}, 403},
	}
	refused := 0
	for name, test := range tests {
		request := httptest.NewRequest("GET", "/", nil)
		request = request.WithContext(context.WithValue(request.Context(), peerKey{}, test.peer))
		answer := httptest.NewRecorder()
		server.guarded(server.handler).ServeHTTP(answer, request)
		if answer.Code != test.want {
			t.Errorf("%s: status %d, want %d", name, answer.Code, test.want)
		}
		if test.want == 403 {
			refused++
		}
	}
	answer := httptest.NewRecorder()
	server.guarded(server.handler).ServeHTTP(answer, httptest.NewRequest("GET", "/", nil))
	if answer.Code != 403 {
		t.Errorf("a request from elsewhere: status %d, want 403", answer.Code)
	}
	if got := testutil.ToFloat64(server.metrics.refused); int(got) != refused+1 {
		t.Errorf("%v refusals counted, want %d", got, refused+1)
	}
}

// The kernel takes the credentials of the thread that connects, so one thread
// of this test can be another user.
func TestStrangerIsRefusedByTheKernelsWord(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root to become another user")
		}
		t.Skip("needs root to become another user")
	}
	path := socketPath(t)
	registry, _ := start(t, Config{Unit: "core", Path: path, Mode: 0o666}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the handler answered a stranger")
	}))
	if err := os.Chmod(filepath.Dir(filepath.Dir(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	connected := make(chan net.Conn, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			t.Errorf("setresuid: %v", errno)
		}
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Errorf("dial: %v", err)
		}
		connected <- conn
	}()
	conn := <-connected
	if conn == nil {
		return
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
	response, err := client.Get(BaseURL + "/")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(response.Body)
	response.Body.Close()
	if response.StatusCode != 403 || !strings.Contains(string(body), "uid 65534 may not administer") {
		t.Errorf("status %d, body %q", response.StatusCode, body)
	}
	want := "# HELP holdfast_admin_refused_total Requests refused on the admin socket because of who asked.\n" +
		"# TYPE holdfast_admin_refused_total counter\nholdfast_admin_refused_total{unit=\"core\"} 1\n"
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "holdfast_admin_refused_total"); err != nil {
		t.Error(err)
	}
}

func TestSecondAgentIsToldThatAnotherAnswers(t *testing.T) {
	path := socketPath(t)
	start(t, Config{Unit: "core", Path: path}, http.NotFoundHandler())
	_, err := Listen(path, 0o600)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "another agent answers on "+path) {
		t.Errorf("error %v", err)
	}
	if _, err := Client(path).Get(BaseURL + "/"); err != nil {
		t.Errorf("the first agent no longer answers: %v", err)
	}
}

func TestOfTwoAgentsThatStartAtOnceOneAnswers(t *testing.T) {
	path := socketPath(t)
	var wg sync.WaitGroup
	results := make([]error, 8)
	listeners := make([]net.Listener, len(results))
	for i := range results {
		wg.Go(func() { listeners[i], results[i] = Listen(path, 0o600) })
	}
	wg.Wait()
	won := 0
	for i, err := range results {
		switch {
		case err == nil:
			won++
			defer listeners[i].Close()
		case !errors.Is(err, ErrInUse):
			t.Errorf("agent %d: %v", i, err)
		}
	}
	if won != 1 {
		t.Errorf("%d agents answer on one socket", won)
	}
}

func TestSocketOfADeadAgentIsReplaced(t *testing.T) {
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("no stale socket to replace: %v", err)
	}
	listener, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
}

func TestCloseLeavesTheSocketOfASuccessor(t *testing.T) {
	path := socketPath(t)
	first, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close()
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	} else {
		conn.Close()
	}
}

func TestUnsafePlacesAreRefused(t *testing.T) {
	base := filepath.Dir(filepath.Dir(socketPath(t)))
	open := filepath.Join(base, "open")
	if err := errors.Join(os.Mkdir(open, 0o777), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(base, link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ path, want string }{
		"directory of everyone":  {filepath.Join(open, "s"), "may be written by everyone"},
		"directory by a symlink": {filepath.Join(link, "s"), "link"},
		"a file in its place":    {file, "there is a file in its place"},
		"a directory in place":   {open, "there is a directory in its place"},
		"too long":               {filepath.Join(base, strings.Repeat("x", 120)), "the kernel takes at most 107"},
	}
	for name, test := range tests {
		listener, err := Listen(test.path, 0o600)
		if err == nil {
			listener.Close()
			t.Errorf("%s: no error", name)
			continue
		}
		if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %q, want %q", name, err, test.want)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "mine" {
		t.Errorf("the file that stood in the way was changed: %q, %v", got, err)
	}
}

func TestClientSaysWhatToDo(t *testing.T) {
	path := socketPath(t)
	_, err := Client(path).Get(BaseURL + "/")
	want := "is holdfast running? (socket " + path + ": no such file or directory)"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	alone, err := net.Listen("unix", filepath.Join(filepath.Dir(path), "net.sock"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Client(path).Get(BaseURL + "/")
	if err == nil || !strings.Contains(err.Error(), "the net unit runs here alone") {
		t.Errorf("the net unit listens, and status says %v", err)
	}
	alone.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(filepath.Dir(path), "apt.sock")
	_, err = Client(part).Get(BaseURL + "/")
	want = "the agent runs, but not this part of it: is it in run: of this node's role? (socket " + part + ": no such file or directory)"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
	got := explain("/s", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}).Error()
	if diff := cmp.Diff("ask as root or as a member of holdfast's admin group (socket /s: permission denied)", got); diff != "" {
		t.Error(diff)
	}
}

// TestRunAbandonsARequestThatDoesNotEnd: handlers that write nothing once their
// context ends would have answered 200, had they been told before their
// connections were closed. There are many, so that one would be fast enough.
func TestRunAbandonsARequestThatDoesNotEnd(t *testing.T) {
	const clients = 64
	path := socketPath(t)
	entered := make(chan struct{}, clients)
	_, stop := start(t, Config{Unit: "core", Path: path}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
	}))
	failed := make(chan error, clients)
	for range clients {
		go func() {
			response, err := Client(path).Get(BaseURL + "/")
			if err == nil {
				response.Body.Close()
			}
			failed <- err
		}()
	}
	for range clients {
		select {
		case <-entered:
		case err := <-failed:
			t.Fatalf("a client was answered before the stop: %v", err)
		}
	}
	stop() // returns although the handlers wait for their context
	for range clients {
		if err := <-failed; err == nil {
			t.Fatal("a client was told that all is well")
		}
	}
}

func TestUnitsInOneProcessShareTheirMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	for _, unit := range []string{"core", "dns"} {
		if _, err := newMetrics(registry, unit); err != nil {
			t.Fatalf("%s: %v", unit, err)
		}
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) != 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

func TestNobodyElseCanHoldUpTheStart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "core.sock")
	handle, err := os.Open(dir) // as everyone can
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	if err := syscall.Flock(int(handle.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		listener, err := Listen(path, 0o600)
		if err == nil {
			err = listener.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("a lock on the directory keeps the agent from its socket")
	}
	if info, err := os.Stat(path + ".lock"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the lock must be the agent's own: %v, %v", info, err)
	}
}
