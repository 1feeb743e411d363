package ntpproxy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/lab/stall"
)

// parseFile reads a cluster file from text.
func parseFile(t testing.TB, text string) *cluster.File {
	t.Helper()
	file, err := cluster.Parse("cluster.yaml", []byte(text), map[string]cluster.SectionValidator{Section: ValidateSection})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// testCluster is testdata/cluster.yaml with texts replaced.
func testCluster(t testing.TB, replace ...string) *cluster.File {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return parseFile(t, strings.NewReplacer(replace...).Replace(string(text)))
}

// fixture is a server over a kernel's clock that a test sets.
type fixture struct {
	server   *Server
	registry *prometheus.Registry
	board    *health.Board
	kernel   atomic.Pointer[clock.State] // nil: it fails
}

// nobody answers there; the machine's own chronyd is not to be asked.
var nobody = netip.MustParseAddrPort("127.0.0.1:1")

// synchronised is a clock that chronyd keeps well.
var synchronised = clock.State{Synchronised: true, MaxError: 3 * time.Millisecond, EstError: 20 * time.Microsecond}

func newFixture(t testing.TB, file *cluster.File, listen ...string) *fixture {
	t.Helper()
	f := &fixture{registry: prometheus.NewRegistry(), board: health.NewBoard(time.Now, nil, nil)}
	f.kernel.Store(&synchronised)
	var config Config
	for _, l := range listen {
		config.Listen = append(config.Listen, netip.MustParseAddrPort(l))
	}
	var err error
	f.server, err = New(config, Deps{
		File: file, Log: slog.New(slog.DiscardHandler), Metrics: f.registry, Board: f.board, Chrony: nobody,
		Kernel: func() (clock.State, error) {
			if k := f.kernel.Load(); k != nil {
				return *k, nil
			}
			return clock.State{}, errors.New("no clock")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// endsWithin is how long Run may take to its end: the agent waits no longer for a
// task (run.Group.Grace).
const endsWithin = 10 * time.Second

// serve runs the server until the test ends, and fails the test unless Run
// returns nil then, in time.
func (f *fixture) serve(t testing.TB) netip.AddrPort {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- f.server.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("Run ended: %v", err)
	case <-time.After(atMost):
		t.Fatalf("not ready after %v", atMost)
	}
	t.Cleanup(func() {
		cancel()
		began := time.Now()
		machine, err := stall.Start("")
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err = <-done:
		case <-time.After(atMost):
			err = errors.New("it does not end")
		}
		machine.Judge(t, "the end of Run", endsWithin, began, time.Now())
		if err := errors.Join(err, machine.Close()); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f.server.Addrs()[0]
}

// counted is how many datagrams had an outcome.
func (f *fixture) counted(t testing.TB, o outcome) float64 {
	t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "holdfast_ntp_requests_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			if m.GetLabel()[0].GetValue() == o.String() {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// core is a responder of the test's cluster, at a time that the test sets.
type core struct {
	responder
	t       testing.TB
	now     time.Time
	elapsed time.Duration
	out     [ntp.Size]byte
}

var start = time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC)

func newCore(t testing.TB) *core {
	t.Helper()
	file := testCluster(t)
	set, err := decode(file, file.Section(Section))
	if err != nil {
		t.Fatal(err)
	}
	c := &core{t: t, now: start}
	c.pairs, c.clients = &pairs{}, &clients{}
	c.policy = &policy{
		standing: fromKernel(synchronised, set.stratum, start), access: set.access, precision: -24,
		limiter: newLimiter(set.limit.Interval, set.limit.Burst, 1),
	}
	return c
}

// after lets time pass.
func (c *core) after(d time.Duration) *core {
	c.now, c.elapsed = c.now.Add(d), c.elapsed+d
	return c
}

// send puts a datagram to the core and returns what is to be done, and the
// reply with T3 in it, 1 ms after the request arrived.
func (c *core) send(from string, payload []byte) (reply, ntp.Packet) {
	c.t.Helper()
	c.prepare(c.policy, c.now, c.elapsed)
	r := c.respond(&c.out, payload, netip.MustParseAddr(from), c.now.UnixNano())
	if r.size != ntp.Size {
		return r, ntp.Packet{}
	}
	left := ntp.FromTime(c.now.Add(time.Millisecond))
	if r.stamp {
		ntp.PutTransmit(&c.out, left)
	}
	if r.pair {
		c.pairs.put(r.client, r.arrived, left)
	}
	p, err := ntp.Parse(c.out[:])
	if err != nil {
		c.t.Fatal(err)
	}
	return r, p
}

// request is a client's packet.
func request(change func(*ntp.Packet)) []byte {
	p := ntp.Packet{Version: 4, Mode: ntp.ModeClient, Poll: 6, Transmit: 0x1234567890abcdef}
	if change != nil {
		change(&p)
	}
	var out [ntp.Size]byte
	p.Put(&out)
	return out[:]
}
