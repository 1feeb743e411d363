package main

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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/bench"
	"holdfast/cluster"
	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/ntpproxy"
)

// bencher measures both servers.
type bencher struct {
	chronyd     string
	dir         string
	idle, flood time.Duration
	found       *bench.Samples
	seen        map[string]map[string][]float64 // by server and circumstances: offsets, in microseconds
}

// pool adds what all rounds' samples together say: of one round's 100, p99 is
// the second worst.
func (b *bencher) pool() {
	for server, seen := range b.seen {
		for label, values := range seen {
			slices.Sort(values)
			b.found.Note("offset p99, "+label+", of all rounds' samples", server, quantile(values, 0.99))
			fmt.Fprintf(os.Stderr, "%s, %s: %d samples\n", server, label, len(values))
		}
	}
}

// quantile is that of sorted values.
func quantile(sorted []float64, q float64) float64 {
	return sorted[min(len(sorted)-1, int(float64(len(sorted))*q))]
}

// Where the servers answer, on loopback.
var ports = map[string]uint16{ours: 11123, peer: 11124}

// serveMain is the server alone: what an agent has beside it is not measured.
// A kernel's clock that nobody keeps is taken for synchronised.
func serveMain(ctx context.Context, listen string) error {
	addr, err := netip.ParseAddrPort(listen)
	if err != nil {
		return err
	}
	s, err := ntpproxy.New(ntpproxy.Config{Listen: []netip.AddrPort{addr}}, ntpproxy.Deps{
		File: cluster.Single("bench", addr.Addr()), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		Chrony: netip.MustParseAddrPort("127.0.0.1:1"), // not the machine's own
		Kernel: func() (clock.State, error) {
			k, err := clock.Read()
			k.Synchronised, k.MaxError = true, time.Millisecond
			return k, err
		},
	})
	if err != nil {
		return err
	}
	return s.Run(ctx, func() {})
}

// pinned makes a command run on one processor only.
func pinned(cmd *exec.Cmd, processor string) *exec.Cmd {
	cmd.Args = append([]string{"taskset", "-c", processor}, cmd.Args...)
	cmd.Path, cmd.Err = "/usr/bin/taskset", nil
	return cmd
}

// start starts a server, on one processor or on all (""), and returns when it
// answers.
func (b *bencher) start(ctx context.Context, server, processor string) (*exec.Cmd, netip.AddrPort, error) {
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ports[server])
	var cmd *exec.Cmd
	if server == ours {
		self, err := os.Executable()
		if err != nil {
			return nil, at, err
		}
		cmd = exec.CommandContext(ctx, self, "-serve", at.String())
	} else {
		config := fmt.Sprintf("local stratum 4\nallow 127.0.0.0/8\nport %d\ncmdport 0\nbindcmdaddress /\nbindaddress 127.0.0.1\npidfile %s/server.pid\n", at.Port(), b.dir)
		cmd = b.chrony(ctx, "server", config)
	}
	if processor != "" {
		cmd = pinned(cmd, processor)
	}
	if err := cmd.Start(); err != nil {
		return nil, at, err
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := ask(at)
		if err == nil && n > 0 {
			return cmd, at, nil
		}
		if time.Now().After(deadline) {
			return nil, at, fmt.Errorf("does not answer on %v: %w", at, err)
		}
	}
}

// ask sends one request, and waits a little.
func ask(at netip.AddrPort) (int, error) {
	conn, err := net.Dial("udp", at.String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
	packet := request()
	if _, err := conn.Write(packet[:]); err != nil {
		return 0, err
	}
	return conn.Read(make([]byte, 100))
}

func request() (out [ntp.Size]byte) {
	p := ntp.Packet{Version: ntp.Version, Mode: ntp.ModeClient, Transmit: 1}
	p.Put(&out)
	return out
}

// chrony is a chronyd that leaves the clock alone.
func (b *bencher) chrony(ctx context.Context, name, config string) *exec.Cmd {
	path := filepath.Join(b.dir, name+".conf")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		panic(err) // our own directory
	}
	return exec.CommandContext(ctx, b.chronyd, "-x", "-d", "-u", "root", "-f", path)
}

// stop ends a process that we started.
func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
}

// measure makes one round of one server.
func (b *bencher) measure(ctx context.Context, server string, counts bool) error {
	note := func(name string, value float64) {
		if counts {
			b.found.Note(name, server, value)
		}
	}
	saw := func(label string, offsets []float64) {
		note("offset p50, "+label, quantile(offsets, 0.5))
		note("offset p99, "+label, quantile(offsets, 0.99))
		if !counts {
			return
		}
		if b.seen[server] == nil {
			b.seen[server] = map[string][]float64{}
		}
		b.seen[server][label] = append(b.seen[server][label], offsets...)
	}
	if err := b.accuracy(ctx, server, note, saw); err != nil {
		return err
	}
	cmd, at, err := b.start(ctx, server, "0")
	if err != nil {
		return err
	}
	defer stop(cmd)
	answers, err := b.drown(ctx, cmd, at, "1")
	note("answers per second of CPU, on a processor of its own", answers.perCPU)
	return err
}

// accuracy is what clients see, idle and flooded.
func (b *bencher) accuracy(ctx context.Context, server string, note func(string, float64), saw func(string, []float64)) error {
	cmd, at, err := b.start(ctx, server, "")
	if err != nil {
		return err
	}
	defer stop(cmd)
	for _, mode := range []struct{ label, option string }{{"idle", ""}, {"idle, interleaved", "xleave"}} {
		err := b.watch(ctx, at, mode.option, func() error { return sleep(ctx, b.idle) }, func(offsets []float64) { saw(mode.label, offsets) })
		if err != nil {
			return err
		}
	}
	return b.watch(ctx, at, "", func() error {
		answers, err := b.drown(ctx, cmd, at, "")
		if err != nil {
			return err
		}
		note("answers per second of CPU, beside the flood", answers.perCPU)
		note("answers per second, closed loop", answers.perSecond)
		note("lost in the flood", answers.lost)
		rss, err := memory(cmd.Process.Pid)
		note("memory (RSS) after the flood", rss)
		return err
	}, func(offsets []float64) { saw("flooded", offsets) })
}

// answers are how a server bore a flood.
type answers struct{ perCPU, perSecond, lost float64 }

// drown floods a server from a process of its own, on one processor or on all.
func (b *bencher) drown(ctx context.Context, server *exec.Cmd, at netip.AddrPort, processor string) (answers, error) {
	self, err := os.Executable()
	if err != nil {
		return answers{}, err
	}
	flooder := exec.CommandContext(ctx, self, "-drown", at.String(), "-flood", b.flood.String())
	if processor != "" {
		flooder = pinned(flooder, processor)
	}
	before, err := cpu(server.Process.Pid)
	if err != nil {
		return answers{}, err
	}
	out, err := flooder.Output()
	if err != nil {
		return answers{}, fmt.Errorf("flood: %w", err)
	}
	after, err := cpu(server.Process.Pid)
	if err != nil {
		return answers{}, err
	}
	var sent, answered int64
	if _, err := fmt.Sscan(string(out), &sent, &answered); err != nil {
		return answers{}, fmt.Errorf("flood: %w", err)
	}
	return answers{
		perCPU:    float64(answered) / (after - before).Seconds(),
		perSecond: float64(answered) / b.flood.Seconds(),
		lost:      100 * float64(sent-answered) / float64(sent),
	}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// watch lets a chronyd client measure the server 16 times a second while
// something goes on, and tells the offsets it saw, in microseconds.
func (b *bencher) watch(ctx context.Context, at netip.AddrPort, option string, meanwhile func() error, found func(sorted []float64)) error {
	logs := filepath.Join(b.dir, "logs")
	if err := os.RemoveAll(logs); err != nil {
		return err
	}
	if err := os.Mkdir(logs, 0o755); err != nil {
		return err
	}
	client := b.chrony(ctx, "client", fmt.Sprintf(
		"server %s port %d iburst minpoll -4 maxpoll -4 %s\nport 0\ncmdport 0\nbindcmdaddress /\npidfile %s/client.pid\nlogdir %s\nlog rawmeasurements\nlogbanner 0\n",
		at.Addr(), at.Port(), option, b.dir, logs))
	if err := client.Start(); err != nil {
		return err
	}
	if err := sleep(ctx, time.Second); err != nil { // until the first burst is over
		stop(client)
		return err
	}
	seen := len(offsets(logs))
	err := meanwhile()
	stop(client)
	if err != nil {
		return err
	}
	values := offsets(logs)[seen:]
	if len(values) < 20 {
		return fmt.Errorf("the client took %d samples only", len(values))
	}
	slices.Sort(values)
	found(values)
	return nil
}

// offsets reads chronyd's raw measurements, in microseconds without sign.
func offsets(logs string) (list []float64) {
	const column = 11
	data, _ := os.ReadFile(filepath.Join(logs, "measurements.log"))
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) <= column {
			continue
		}
		if v, err := strconv.ParseFloat(fields[column], 64); err == nil {
			list = append(list, math.Abs(v)*1e6)
		}
	}
	return list
}

// cpu is the processor time that a process has used (proc(5), stat).
func cpu(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(after)
	const user, system, tick = 11, 12, 10 * time.Millisecond
	if len(fields) <= system {
		return 0, fmt.Errorf("/proc/%d/stat is cut short", pid)
	}
	var sum time.Duration
	for _, at := range []int{user, system} {
		n, err := strconv.ParseInt(fields[at], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// memory is what a process has in memory, in MB.
func memory(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmRSS", pid)
}
