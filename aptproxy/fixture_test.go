package aptproxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/lab/aptorigin"
)

// needs skips a test, or in CI fails it, where a program of Debian is missing.
func needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: run hack/deps", p)
		}
		t.Skipf("%s is missing: run hack/deps", p)
	}
}

// origin is a mirror whose answers a test may spoil.
type origin struct {
	*httptest.Server
	repo *aptorigin.Repository

	mu    sync.Mutex
	spoil func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	gets  map[string]int
}

func newOrigin(t testing.TB, repo *aptorigin.Repository) *origin {
	o := &origin{repo: repo, gets: map[string]int{}}
	files := http.FileServer(http.Dir(repo.Dir))
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		o.gets[r.URL.Path]++
		spoil := o.spoil
		o.mu.Unlock()
		r.URL.Path = strings.TrimPrefix(r.URL.Path, "/debian")
		if spoil != nil && spoil(w, r) {
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(o.Close)
	return o
}

func (o *origin) got(path string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gets["/debian/"+path]
}

// spoiling makes the mirror answer by f, where f is true.
func (o *origin) spoiling(f func(w http.ResponseWriter, r *http.Request) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spoil = f
}

// newRepository makes a repository with some small packages and a large one.
func newRepository(t testing.TB) *aptorigin.Repository {
	t.Helper()
	needs(t, "apt-ftparchive")
	repo, err := aptorigin.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		add(t, repo, fmt.Sprintf("small%d", i), "1.0", 8<<10)
	}
	add(t, repo, "large", "1.0", 1<<20)
	publish(t, repo, aptorigin.Release{})
	return repo
}

// noise is content that doesn't repeat, the same for a seed.
func noise(seed string, size int) []byte {
	out := make([]byte, 0, size+32)
	for i := 0; len(out) < size; i++ {
		sum := sha(fmt.Appendf(nil, "%s %d", seed, i))
		out = append(out, sum[:]...)
	}
	return out[:size]
}

func add(t testing.TB, repo *aptorigin.Repository, name, version string, size int) {
	t.Helper()
	if err := repo.Add(aptorigin.Package{Name: name, Version: version, Content: noise(name+version, size)}); err != nil {
		t.Fatal(err)
	}
}

func publish(t testing.TB, repo *aptorigin.Repository, rel aptorigin.Release) {
	t.Helper()
	if rel.Suite == "" {
		rel.Suite = "test"
	}
	if err := repo.Publish(context.Background(), rel); err != nil {
		t.Fatal(err)
	}
}

// clock is a time that a test moves.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time       { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) pass(d time.Duration) { c.ahead.Add(int64(d)) }

// proxy is a server under test.
type proxy struct {
	*Server
	t     testing.TB
	clock *clock
	url   string
	board *health.Board
	logs  *lines
	stop  func()
}

// lines are what a server logs.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer

	held atomic.Pointer[chan struct{}] // lines of the access log wait for it; nil: they don't
}

func (l *lines) Write(p []byte) (int, error) {
	if held := l.held.Load(); held != nil && bytes.Contains(p, []byte("msg=access")) {
		<-*held
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// with are the lines that have a word.
func (l *lines) with(word string) (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, word) {
			list = append(list, line)
		}
	}
	return list
}

// patience is for what comes at once or never, on a machine that is slow and
// stands still for seconds now and then.
const patience = time.Minute

// eventually waits until is, for as long as patience lasts.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !is(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("in vain waited for: %s", what)
		}
	}
}

// clusterFile is a file with an apt section.
func clusterFile(t testing.TB, apt string) *cluster.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cluster.yaml")
	text := "schema: 1\ncluster: c\ndomain: hpc.example.com\nnetworks: {main: {prefix: 192.0.2.0/24}}\n" +
		"roles: {service: {voters: 1}}\nnodes: {fb1: {role: service, addresses: {main: 192.0.2.1}}}\napt:\n" + apt
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := cluster.Load(path, map[string]cluster.SectionValidator{Section: ValidateSection})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// oneRepository names mirrors of a repository "debian".
func oneRepository(keyring string, mirrors ...*origin) string {
	var urls []string
	for _, m := range mirrors {
		urls = append(urls, `"`+m.URL+`/debian"`)
	}
	return fmt.Sprintf("  reserve: 0K\n  repositories:\n    debian: {mirrors: [%s], keyring: [\"%s\"]}\n", strings.Join(urls, ", "), keyring)
}

// startProxy runs a server over dir.
func startProxy(t testing.TB, dir, apt string) *proxy {
	t.Helper()
	p := &proxy{t: t, clock: &clock{}, logs: &lines{}}
	p.board = health.NewBoard(time.Now, nil, nil)
	file := clusterFile(t, apt)
	var err error
	p.Server, err = New(Config{Node: "fb1", Dir: dir, Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}}, Deps{
		File: file, Log: slog.New(slog.NewTextHandler(p.logs, nil)), Metrics: prometheus.NewRegistry(),
		Board: p.board, Now: p.clock.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() { ended <- p.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	p.url = "http://" + p.Addrs()[0].String()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(p.stop)
	return p
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // the body is not complete
}

// get asks for a path, with headers in pairs.
func (p *proxy) get(path string, header ...string) answer {
	p.t.Helper()
	request, err := http.NewRequest(http.MethodGet, p.url+path, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	// Without headers it is a plain request, and with "Connection: close" not.
	transport := &http.Transport{DisableKeepAlives: len(header) > 0, DisableCompression: true}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Do(request)
	if err != nil {
		return answer{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, body, err}
}

// must asks for a path that has to be served with what is at the origin.
func (p *proxy) must(o *origin, name string) answer {
	p.t.Helper()
	a := p.get("/debian/" + name)
	if a.err != nil || a.status != http.StatusOK {
		p.t.Fatalf("%s: status %d, %v: %s", name, a.status, a.err, clip(string(a.body)))
	}
	want, err := os.ReadFile(filepath.Join(o.repo.Dir, name))
	if err != nil {
		p.t.Fatal(err)
	}
	if !bytes.Equal(a.body, want) {
		p.t.Fatalf("%s: %d bytes that are not the origin's %d", name, len(a.body), len(want))
	}
	return a
}

// Paths of the repository's files.
const (
	inRelease = "dists/test/InRelease"
	packages  = "dists/test/main/binary-amd64/Packages.gz"
	largeDeb  = "pool/main/l/large/large_1.0_all.deb"
	smallDeb  = "pool/main/s/small1/small1_1.0_all.deb"
)

// settled waits until all that came is stored: a client has the whole of a file
// before the disk has.
func (p *proxy) settled() {
	p.t.Helper()
	eventually(p.t, "all downloads are stored", func() bool { return p.flights.count() == 0 })
	p.work.Wait()
}

// update does what apt-get update does.
func (p *proxy) update(o *origin) {
	p.t.Helper()
	p.must(o, inRelease)
	p.must(o, packages)
}
