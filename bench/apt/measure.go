package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/bench"
	"holdfast/lab/aptorigin"
)

type bencher struct {
	dir    string
	during time.Duration
	repo   *aptorigin.Repository
	origin *process
	serial int
	found  *bench.Samples
}

// Paths of the repository's files.
const (
	packages  = 300
	large     = "pool/main/l/large/large_1.0_all.deb"
	largeSize = 100 << 20
)

func small(i int) string { return fmt.Sprintf("pool/main/b/bench%03d/bench%03d_1.0_all.deb", i, i) }

// prepare makes the repository and its origin.
func (b *bencher) prepare(ctx context.Context) error {
	var err error
	if b.repo, err = aptorigin.New(b.dir); err != nil {
		return err
	}
	dice := rand.NewChaCha8([32]byte{1})
	noise := func(n int) []byte {
		data := make([]byte, n)
		_, _ = dice.Read(data) // never fails
		return data
	}
	for i := range packages {
		if err := b.repo.Add(aptorigin.Package{Name: fmt.Sprintf("bench%03d", i), Version: "1.0", Content: noise(8 << 10)}); err != nil {
			return err
		}
	}
	if err := b.repo.Add(aptorigin.Package{Name: "large", Version: "1.0", Content: noise(largeSize)}); err != nil {
		return err
	}
	if err := b.repo.Publish(ctx, aptorigin.Release{Suite: "test"}); err != nil {
		return err
	}
	addr, err := freePort()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b.origin, err = start(ctx, addr, "", self, "-origin", b.repo.Dir, "-at", addr)
	return err
}

// measure measures all figures of one server, from an empty cache on.
func (b *bencher) measure(ctx context.Context, server string) error {
	b.serial++
	p := b.origin
	if server != direct {
		var err error
		if p, err = b.serve(ctx, server, filepath.Join(b.dir, fmt.Sprintf("%s-%d", server, b.serial))); err != nil {
			return err
		}
		defer p.stop()
	}
	cold, err := b.install(ctx, p)
	if err != nil {
		return err
	}
	b.found.Note("cold installation of 300 packages", server, cold)
	warm, err := b.install(ctx, p)
	if err != nil {
		return err
	}
	b.found.Note("the same, all hits", server, warm)
	if err := b.firstByte(ctx, server, p); err != nil || server == direct {
		return wrap("first byte", err)
	}
	return errors.Join(wrap("small", b.small(server, p)), wrap("large", b.large(server, p)), b.memory(server, p))
}

// wrap says what was being measured.
func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// install has apt-get update and download all packages, and gives the seconds.
func (b *bencher) install(ctx context.Context, p *process) (float64, error) {
	b.serial++
	root := filepath.Join(b.dir, fmt.Sprintf("client-%d", b.serial))
	for _, d := range []string{"etc", "state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return 0, err
		}
	}
	sources := fmt.Sprintf("deb [signed-by=%s] %s test main\n", b.repo.Keyring, p.url(""))
	if err := errors.Join(os.WriteFile(root+"/etc/sources.list", []byte(sources), 0o644), os.WriteFile(root+"/status", nil, 0o644)); err != nil {
		return 0, err
	}
	options := []string{
		"-q", "-y", "-o", "Dir::Etc=" + root + "/etc", "-o", "Dir::State=" + root + "/state", "-o", "Dir::Cache=" + root + "/cache",
		"-o", "Dir::State::status=" + root + "/status", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1", "-o", "Acquire::Languages=none",
		"-o", "Acquire::http::Proxy=DIRECT", "-o", "APT::Architecture=amd64",
	}
	install := append(slices.Clone(options), "install", "--download-only")
	for i := range packages {
		install = append(install, fmt.Sprintf("bench%03d", i))
	}
	started := time.Now()
	for _, args := range [][]string{append(slices.Clone(options), "update"), install} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("apt-get %s: %w: %s", args[len(options)], err, tail(out))
		}
	}
	took := time.Since(started).Seconds()
	got, err := filepath.Glob(root + "/cache/archives/*.deb")
	if err == nil && len(got) != packages {
		err = fmt.Errorf("apt-get downloaded %d packages", len(got))
	}
	return took, errors.Join(err, os.RemoveAll(root))
}

func tail(out []byte) string { return string(out[max(0, len(out)-500):]) }

// client is a connection that asks for files one after the other.
type client struct {
	conn net.Conn
	in   *bufio.Reader
	host string
}

func dial(p *process) (*client, error) {
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return nil, err
	}
	return &client{conn, bufio.NewReaderSize(conn, 128<<10), p.addr}, nil
}

// get asks for a file and throws its body away. It gives when its first byte
// came.
func (c *client) get(path string) (size int64, first time.Time, err error) {
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, c.host); err != nil {
		return 0, first, err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, first, err
	}
	first = time.Now()
	if !bytes.Contains(line, []byte(" 200 ")) {
		return 0, first, fmt.Errorf("%s: %s", path, bytes.TrimSpace(line))
	}
	size = -1
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return 0, first, err
		}
		if len(line) <= 2 {
			break
		}
		if name, value, _ := strings.Cut(string(line), ":"); strings.EqualFold(name, "Content-Length") {
			if size, err = strconv.ParseInt(strings.TrimSpace(value), 10, 64); err != nil {
				return 0, first, err
			}
		}
	}
	if size < 0 {
		return 0, first, fmt.Errorf("%s: no Content-Length", path)
	}
	_, err = io.CopyN(io.Discard, c.in, size)
	return size, first, err
}

// path is that of a file at a server.
func (p *process) path(name string) string { return p.base + "/" + name }

// load has clients ask for what next names, for a while, and gives the requests
// and bytes that were served.
func (b *bencher) load(p *process, clients int, next func(i int) string) (requests, size int64, err error) {
	var group sync.WaitGroup
	var asked, served atomic.Int64
	failed := make(chan error, clients)
	end := time.Now().Add(b.during)
	for range clients {
		group.Go(func() {
			c, err := dial(p)
			if err != nil {
				failed <- err
				return
			}
			defer c.conn.Close()
			for i := 0; time.Now().Before(end); i++ {
				n, _, err := c.get(p.path(next(i)))
				if err != nil {
					failed <- err
					return
				}
				asked.Add(1)
				served.Add(n)
			}
		})
	}
	group.Wait()
	close(failed)
	return asked.Load(), served.Load(), <-failed
}

func (b *bencher) small(server string, p *process) error {
	for _, clients := range []int{1, 64} {
		before, started := p.cpu(), time.Now()
		n, _, err := b.load(p, clients, func(i int) string { return small(i % packages) })
		if err != nil {
			return err
		}
		name := "10 KB hits, 1 connection"
		if clients > 1 {
			name = "10 KB hits, 64 connections"
			b.found.Note("CPU per 10 KB hit, 64 connections", server, float64((p.cpu()-before).Microseconds())/float64(n))
		}
		b.found.Note(name, server, float64(n)/time.Since(started).Seconds())
	}
	return nil
}

func (b *bencher) large(server string, p *process) error {
	c, err := dial(p)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	if _, _, err := c.get(p.path(large)); err != nil { // cold
		return err
	}
	for clients, name := range map[int]string{1: "100 MB hits, 1 client", 16: "100 MB hits, 16 clients"} {
		started := time.Now()
		_, size, err := b.load(p, clients, func(int) string { return large })
		if err != nil {
			return err
		}
		b.found.Note(name, server, float64(size)/1e6/time.Since(started).Seconds())
	}
	return nil
}

// firstByte asks for files that are in no cache: each under a name of its own.
func (b *bencher) firstByte(ctx context.Context, server string, p *process) error {
	b.serial++
	const files = 60
	for i := range files {
		if err := b.repo.Add(aptorigin.Package{Name: fmt.Sprintf("cold%d-%d", b.serial, i), Version: "1.0", Content: bytes.Repeat([]byte{byte(i), byte(b.serial)}, 4<<10)}); err != nil {
			return err
		}
	}
	if err := b.repo.Publish(ctx, aptorigin.Release{Suite: "test"}); err != nil {
		return err
	}
	time.Sleep(11 * time.Second) // until ours asks for the Release again
	if _, err := p.once("dists/test/InRelease"); err != nil {
		return err
	}
	var took []float64
	for i := range files {
		name := fmt.Sprintf("cold%d-%d", b.serial, i)
		waited, err := p.once("pool/main/c/" + name + "/" + name + "_1.0_all.deb")
		if err != nil {
			return err
		}
		took = append(took, float64(waited.Microseconds())/1000)
	}
	slices.Sort(took)
	b.found.Note("first byte of a cold 10 KB file, median", server, took[len(took)/2])
	return nil
}

// once gets a file over a connection of its own, since apt-cacher-ng may close
// one after any answer, and gives the time to its first byte.
func (p *process) once(name string) (time.Duration, error) {
	c, err := dial(p)
	if err != nil {
		return 0, err
	}
	defer c.conn.Close()
	started := time.Now()
	_, first, err := c.get(p.path(name))
	return first.Sub(started), err
}

// memory measures the server while 500 clients have asked for something and
// stay connected.
func (b *bencher) memory(server string, p *process) error {
	for range 500 {
		c, err := dial(p)
		if err == nil {
			defer c.conn.Close()
			_, _, err = c.get(p.path(small(1)))
		}
		if err != nil && server != ours {
			fmt.Fprintf(os.Stderr, "%s does not bear 500 clients: %v\n", server, err)
			return nil
		}
		if err != nil {
			return wrap("memory", err)
		}
	}
	b.found.Note("memory (RSS) with 500 clients", server, p.memory()/1e6)
	return nil
}
