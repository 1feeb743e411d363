package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/ntpproxy"
)

// paperClock is the machine's clock, on which nothing that it is told has an
// effect; it remembers the frequency.
type paperClock struct {
	mu  sync.Mutex
	ppm float64
}

func (*paperClock) Now() (clock.Reading, error) { return clock.Now() }

func (c *paperClock) Steer(s clock.Steering) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ppm = s.Frequency
	return nil
}

func (c *paperClock) state() (clock.State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return clock.State{Frequency: c.ppm}, nil
}

// liveNTP is a time server that keeps a clock, with its admin socket. State is
// what the kernel says.
func liveNTP(t *testing.T, sources string) (address, socket string) {
	t.Helper()
	text := fmt.Sprintf(`schema: 1
cluster: c
domain: hpc.example.com
networks: {main: {prefix: 127.0.0.0/8}}
roles: {service: {voters: 1, run: [ntp]}, compute: {}}
nodes:
  fb[1-2]: {role: service, addresses: {main: "127.9.8.[1-2]"}}
  cn1: {role: compute, addresses: {main: 127.9.8.9}}
ntp: {keep: discipline, sources: [%s], poll: {min: -4, max: -2}}
`, sources)
	file, err := cluster.Parse("cluster.yaml", []byte(text), sections())
	if err != nil {
		t.Fatal(err)
	}
	paper := &paperClock{}
	s, err := ntpproxy.New(
		ntpproxy.Config{Node: "fb1", Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, StateDir: t.TempDir(), RunDir: t.TempDir()},
		ntpproxy.Deps{
			File: file, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Board: health.NewBoard(time.Now, nil, nil),
			Clock: paper, Kernel: paper.state,
			Chrony: netip.MustParseAddrPort("127.0.0.1:1"), Leader: func() string { return "fb2" },
		})
	if err != nil {
		t.Fatal(err)
	}
	runNTP(t, s)
	socket = filepath.Join(t.TempDir(), "ntp.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	admin := httptest.NewUnstartedServer(s.Handler())
	admin.Listener = listener
	admin.Start()
	t.Cleanup(admin.Close)
	return s.Addrs()[0].String(), socket
}

// runNTP runs a time server until the test ends.
func runNTP(t *testing.T, s *ntpproxy.Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
}

// Every command of `holdfast ntp` against a server that runs: what it prints is
// what the server knows, and not what a test wrote down.
func TestNTPCommandsAgainstALiveServer(t *testing.T) {
	good := ntp.Packet{Stratum: 3, ReferenceID: ntp.Reference{192, 0, 2, 1}, RootDispersion: ntp.FromDuration(time.Millisecond)}
	address, socket := liveNTP(t, fmt.Sprintf("%q, %q", timeServer(t, good), timeServer(t, good)))
	run := func(command string) (string, int) {
		var out bytes.Buffer
		code := execute(t.Context(), strings.Fields("ntp "+command), strings.NewReader(""), &out, &out)
		return out.String(), code
	}
	for _, test := range []struct {
		command string
		want    []string
		code    int
	}{
		{"tracking --socket " + socket, []string{"this node", "stratum", "4", "corrections"}, exitOK},
		{"tracking --json --socket " + socket, []string{`"steering": true`, `"stratum": 4`, `"leader": "fb2"`, `"phase": "sourced"`}, exitOK},
		{"sources --socket " + socket, []string{"leading", "survivor", "40."}, exitOK},
		{"sources --json --socket " + socket, []string{`"state": "leading"`, `"stratum": 3`}, exitOK},
		{"status " + address, []string{address, "synchronised", "4"}, exitOK},
		{"status --json " + address, []string{`"synchronised": true`}, exitOK},
		{"clients --socket " + socket, []string{"127.0.0.1", "4"}, exitOK},
		{"clients --json --socket " + socket, []string{`"address": "127.0.0.1"`}, exitOK},
		{"peers --socket " + socket, []string{"fb2", "127.9.8.2:123", "waiting"}, exitOK},
		{"peers --json --socket " + socket, []string{`"node": "fb2"`}, exitOK},
		{"orphan --socket " + socket, []string{"sourced", "fb2"}, exitOK},
		{"orphan --json --socket " + socket, []string{`"phase": "sourced"`}, exitOK},
		{"step --socket " + socket, []string{"stepped with the next answer"}, exitOK},
		{"step --force --socket " + socket, []string{"stepped with the next answer"}, exitOK},
		{"status 127.9.8.3:9 --timeout 100ms", []string{"127.9.8.3:9"}, exitDegraded},
	} {
		// What the server knows comes with its first samples.
		var out string
		var code int
		for deadline := time.Now().Add(patience); ; {
			out, code = run(test.command)
			missing := ""
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					missing = want
				}
			}
			if missing == "" && code == test.code {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s: exit status %d, no %q in\n%s", test.command, code, missing, out)
				break
			}
		}
	}
}
