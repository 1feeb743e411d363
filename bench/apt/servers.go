package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/aptproxy"
	"holdfast/cluster"
)

// process is a server that was started.
type process struct {
	cmd  *exec.Cmd
	addr string // host:port
	base string // path before that of the repository
}

func (p *process) url(name string) string { return "http://" + p.addr + p.base + "/" + name }

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	ended := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-ended
	}
}

// start runs a server and waits until it accepts connections.
func start(ctx context.Context, addr, base string, args ...string) (*process, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var said strings.Builder
	cmd.Stderr = io.MultiWriter(&said, os.Stderr)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, addr: addr, base: base}
	deadline := time.Now().Add(10 * time.Second)
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return p, conn.Close()
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("%s does not answer at %s: %s", args[0], addr, said.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// freePort is a port that nobody has at the moment.
func freePort() (string, error) {
	for range 100 {
		// apt-cacher-ng can't listen on ports above 32767.
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", errors.New("no port between 20000 and 32000 is free")
}

// serve starts one of the servers with an empty cache below dir.
func (b *bencher) serve(ctx context.Context, server, dir string) (*process, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o777); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	file := filepath.Join(dir, "config")
	config := map[string]string{
		ours: fmt.Sprintf(`schema: 1
cluster: c
domain: example.com
networks: {main: {prefix: 192.0.2.0/24}}
roles: {service: {voters: 1}}
nodes: {fb1: {role: service, addresses: {main: 192.0.2.1}}}
apt: {repositories: {debian: {mirrors: ["http://%s"], keyring: ["%s"]}}}
`, b.origin.addr, b.repo.Keyring),
		nginx: fmt.Sprintf(`daemon off;
worker_processes 2;
pid %[1]s/pid;
error_log stderr error;
events { worker_connections 2048; }
http {
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/tmp; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  proxy_cache_path %[1]s/cache keys_zone=c:10m max_size=4g use_temp_path=off;
  upstream origin { server %[3]s; keepalive 16; }
  server { listen %[2]s; location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_cache c; proxy_cache_lock on; proxy_cache_valid 200 1h; } }
}
`, dir, addr, b.origin.addr),
		acng: fmt.Sprintf("CacheDir: %[1]s/cache\nLogDir: %[1]s/log\nSocketPath: %[1]s/socket\nPort: %[2]s\nForeGround: 1\nAllowUserPorts: 0\nExThreshold: 4\nPidFile: %[1]s/pid\n", dir, port),
	}
	if server == acng { // it reads all *.conf of a directory
		conf := filepath.Join(dir, "conf")
		if err := errors.Join(os.Mkdir(conf, 0o755), os.Mkdir(dir+"/cache", 0o777), os.Mkdir(dir+"/log", 0o777)); err != nil {
			return nil, err
		}
		file = filepath.Join(conf, "acng.conf")
	}
	if err := os.WriteFile(file, []byte(config[server]), 0o644); err != nil {
		return nil, err
	}
	switch server {
	case ours:
		return start(ctx, addr, "/debian", self, "-serve", file, "-at", addr)
	case nginx:
		return start(ctx, addr, "", "nginx", "-c", file)
	}
	return start(ctx, addr, "/"+b.origin.addr, "apt-cacher-ng", "-c", filepath.Dir(file))
}

// serveMain is the proxy under test.
func serveMain(ctx context.Context, path, at string) error {
	file, err := cluster.Load(path, map[string]cluster.SectionValidator{aptproxy.Section: aptproxy.ValidateSection})
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddrPort(at)
	if err != nil {
		return err
	}
	s, err := aptproxy.New(aptproxy.Config{Node: "fb1", Dir: filepath.Join(filepath.Dir(path), "store"), Listen: []netip.AddrPort{addr}}, aptproxy.Deps{
		File: file, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		return err
	}
	return s.Run(ctx, func() {})
}

// originMain is the mirror that all have.
func originMain(dir, at string) error {
	return http.ListenAndServe(at, http.FileServer(http.Dir(dir)))
}

// cpu is the processor time that a process and its children used so far.
func (p *process) cpu() time.Duration {
	var ticks int64
	for _, pid := range p.family() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		for _, i := range []int{11, 12} { // utime, stime
			n, _ := strconv.ParseInt(f[i], 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memory is the resident memory of a process and its children, in bytes.
func (p *process) memory() (sum float64) {
	for _, pid := range p.family() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if f := strings.Fields(string(data)); len(f) > 1 {
			n, _ := strconv.ParseFloat(f[1], 64)
			sum += n * float64(os.Getpagesize())
		}
	}
	return sum
}

// family is a process and its children (nginx's workers).
func (p *process) family() []int {
	list := []int{p.cmd.Process.Pid}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", list[0]))
	if err != nil {
		return list
	}
	for _, f := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(f); err == nil {
			list = append(list, pid)
		}
	}
	return list
}
