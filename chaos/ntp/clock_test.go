package ntp_test

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"holdfast/cluster"
	"holdfast/internal/kernel/clock"
	"holdfast/internal/kernel/sockopt"
	"holdfast/internal/ntp"
	"holdfast/lab/vm"
	"holdfast/ntpproxy"
)

func TestMain(m *testing.M) { m.Run() }

// How the machines' clocks are spoilt before they are kept.
const (
	drift     = 60e-6                 // the true time runs so much faster than the oscillator
	leftTick  = 10_001                // what a daemon before left in the kernel: 100 ppm
	leftFreq  = -30 << 16             // likewise, -30 ppm
	leftError = 20 * time.Millisecond // likewise
)

// Where the sources are, on the machine's loopback.
var sources = []string{"127.9.1.1:123", "127.9.1.2:123", "127.9.1.3:123"}

// length is for how long the clock is kept, by HOLDFAST_NTP_VM: the last third
// is judged, and then the sources are silent for as long as that third. A test
// may be in a machine for ten minutes.
func length(t *testing.T) time.Duration {
	text := os.Getenv("HOLDFAST_NTP_VM")
	if text == "" {
		t.Skip("takes five minutes: make ntp-long")
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Minute || d > 210*time.Second {
		t.Fatalf("HOLDFAST_NTP_VM=%q is no duration of 1m to 3m30s", text)
	}
	return d
}

// truth is the true time of a machine: that of its oscillator, which nothing
// steers, a little faster.
type truth struct{ start clock.Reading }

func (w *truth) at(raw time.Duration) time.Time {
	since := raw - w.start.Raw
	return w.start.Clock.Add(since + time.Duration(drift*float64(since)))
}

// off is how far the machine's clock is ahead of the truth.
func (w *truth) off(t *testing.T) (float64, time.Duration) {
	now, err := clock.Now()
	if err != nil {
		t.Fatal(err)
	}
	return now.Clock.Sub(w.at(now.Raw)).Seconds(), now.Raw
}

// serve answers with the truth until ctx ends, and is silent after dark. Like a
// good server it knows from the kernel when a request arrived.
func (w *truth) serve(t *testing.T, ctx context.Context, at string, dark <-chan struct{}) {
	config := net.ListenConfig{Control: sockopt.Timestamps}
	c, err := config.ListenPacket(ctx, "udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	conn := c.(*net.UDPConn)
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	go func() {
		buf, oob := make([]byte, 512), make([]byte, 128)
		for {
			n, m, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
			if err != nil {
				return
			}
			p, err := ntp.Parse(buf[:n])
			if err != nil {
				continue
			}
			select {
			case <-dark:
				continue
			default:
			}
			now, err := clock.Now()
			if err != nil {
				continue
			}
			waited := max(0, time.Duration(now.Clock.UnixNano()-sockopt.Arrived(oob[:m])))
			if waited > time.Second {
				waited = 0 // the kernel did not say, or the clock was stepped
			}
			reply := ntp.Packet{Version: p.Version, Mode: ntp.ModeServer, Stratum: 1, Poll: p.Poll, Precision: -20,
				ReferenceID: ntp.Reference{'G', 'P', 'S', 0}, Reference: ntp.FromTime(w.at(now.Raw)), Origin: p.Transmit,
				Receive: ntp.FromTime(w.at(now.Raw - waited)), RootDispersion: ntp.FromDuration(100 * time.Microsecond)}
			if now, err = clock.Now(); err != nil {
				continue
			}
			reply.Transmit = ntp.FromTime(w.at(now.Raw))
			var out [ntp.Size]byte
			reply.Put(&out)
			_, _ = conn.WriteToUDPAddrPort(out[:], from)
		}
	}()
}

// spoil sets the clock wrong in all ways that a kernel's can be.
func spoil(t *testing.T) {
	status := unix.Timex{
		Modes: unix.ADJ_TICK | unix.ADJ_FREQUENCY | unix.ADJ_STATUS, Tick: leftTick, Freq: leftFreq, Status: unix.STA_UNSYNC,
	}
	step := unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO}
	step.Time.Usec = int64(leftError)
	for _, x := range []unix.Timex{status, step} {
		if _, err := unix.Adjtimex(&x); err != nil {
			t.Fatal(err)
		}
	}
}

// figures are how a clock was kept.
type figures struct {
	converged         float64 // seconds until it was within a millisecond for good
	rms, most, freq   float64 // seconds, seconds, ratio: in the last third with sources
	holdover          float64 // seconds off when the sources were silent for as long as that
	holdoverFrequency float64
}

// watch measures while the clock is kept, then while the sources are silent.
func (w *truth) watch(t *testing.T, d time.Duration, dark chan struct{}) (f figures) {
	start := w.start.Raw
	var n, sum, sx, sy, sxx, sxy float64
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	judged := d * 2 / 3
	silent := false
	for range tick.C {
		e, raw := w.off(t)
		since := raw - start
		switch {
		case since < d:
			if math.Abs(e) > 1e-3 {
				f.converged = since.Seconds()
			}
			if since < judged {
				continue
			}
			x := (since - judged).Seconds()
			n, sum, f.most = n+1, sum+e*e, max(f.most, math.Abs(e))
			sx, sy, sxx, sxy = sx+x, sy+e, sxx+x*x, sxy+x*e
		case !silent:
			silent = true
			close(dark)
		case since > d+d/3:
			f.rms, f.freq, f.holdover = math.Sqrt(sum/n), (n*sxy-sx*sy)/(n*sxx-sx*sx), e
			f.holdoverFrequency = e / (d / 3).Seconds()
			return f
		}
	}
	return f
}

// keepers keep a machine's clock from start to the end of ctx.
var keepers = []struct {
	name string
	keep func(t *testing.T, ctx context.Context, servers []string)
}{{"Holdfast", keepWithHoldfast}, {"chronyd", keepWithChronyd}}

func keepWithHoldfast(t *testing.T, ctx context.Context, servers []string) {
	text := `schema: 1
cluster: c
domain: hpc.example.com
networks: {main: {prefix: 192.0.2.0/24}}
roles: {service: {voters: 1, run: [ntp]}}
nodes:
  fb1: {role: service, addresses: {main: 192.0.2.1}}
ntp:
  keep: discipline
  poll: {min: 3, max: 5}
  sources: [`
	for _, s := range servers {
		text += fmt.Sprintf("%q, ", s)
	}
	file, err := cluster.Parse("cluster.yaml", []byte(text+"]\n"), map[string]cluster.SectionValidator{ntpproxy.Section: ntpproxy.ValidateSection})
	if err != nil {
		t.Fatal(err)
	}
	s, err := ntpproxy.New(ntpproxy.Config{Node: "fb1", Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:11123")}, StateDir: t.TempDir(), RunDir: t.TempDir()},
		ntpproxy.Deps{File: file, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if err := s.Run(ctx, func() {}); err != nil {
			t.Error(err)
		}
	}()
}

func keepWithChronyd(t *testing.T, ctx context.Context, servers []string) {
	dir := t.TempDir()
	config := fmt.Sprintf("makestep 0.1 3\ndriftfile %s/drift\ncmdport 0\nbindcmdaddress /\npidfile %s/pid\nport 0\n", dir, dir)
	for _, s := range servers {
		host, _, _ := net.SplitHostPort(s)
		config += fmt.Sprintf("server %s iburst minpoll 3 maxpoll 5\n", host)
	}
	path := filepath.Join(dir, "chrony.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "../../build/peers/root/usr/sbin/chronyd", "-d", "-u", "root", "-f", path)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
}

// A machine has a clock of its own. Holdfast and chronyd get the same sources,
// the same oscillator and the same mess, each in a machine of its own; one
// after the other, since emulation in software keeps a processor busy.
func TestMachinesOwnClockIsKeptLikeChronydKeepsIt(t *testing.T) {
	d := length(t)
	for _, keeper := range keepers {
		name, keep := keeper.name, keeper.keep
		t.Run(name, func(t *testing.T) {
			vm.Inside(t, vm.Options{Name: "clock", CPUs: 1}, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				now, err := clock.Now()
				if err != nil {
					t.Fatal(err)
				}
				w, dark := &truth{now}, make(chan struct{})
				for _, at := range sources {
					w.serve(t, ctx, at, dark)
				}
				spoil(t)
				keep(t, ctx, sources)
				f := w.watch(t, d, dark)
				t.Logf("%s: within 1 ms for good after %.1f s; then rms %.1f µs, most %.1f µs, frequency off by %+.4f ppm; %.0f s without sources: off by %+.1f µs (%+.4f ppm)",
					name, f.converged, f.rms*1e6, f.most*1e6, f.freq*1e6, (d / 3).Seconds(), f.holdover*1e6, f.holdoverFrequency*1e6)
				// Emulated in software on a machine that others use, too: what is
				// asked is that it works at all, the figures are for reading.
				// At adjtime's 500 ppm alone the 20 ms take 43 s.
				if name == "Holdfast" && (f.converged > 30 || math.Abs(f.holdover) > 5e-3) {
					t.Errorf("the clock is not kept: %+v", f)
				}
			})
		})
	}
}
