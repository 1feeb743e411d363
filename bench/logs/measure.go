package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay"
	"holdfast/logrelay/relp"
)

const (
	ours        = "holdfast, durable"
	connections = 8
	lineBytes   = 200
	filedBytes  = lineBytes - len("<13>") + len(" user.notice\n")
)

// serveMain is the relay alone. profile is where its CPU profile goes; "": none
// is made.
func serveMain(ctx context.Context, dir, profile string) (err error) {
	if profile != "" {
		file, failed := os.Create(profile)
		if failed != nil {
			return failed
		}
		if err := pprof.StartCPUProfile(file); err != nil {
			return errors.Join(err, file.Close())
		}
		defer func() {
			pprof.StopCPUProfile()
			err = errors.Join(err, file.Close())
		}()
	}
	s, err := logrelay.New(logrelay.Config{
		Node: "bench", DataDir: dir, Dir: filepath.Join(dir, "hosts"),
		Listen: map[string][]netip.AddrPort{
			"relp": {netip.MustParseAddrPort("127.0.0.1:" + port)},
			"tcp":  {netip.MustParseAddrPort("127.0.0.1:" + tcpPort)},
			"udp":  {netip.MustParseAddrPort("127.0.0.1:" + udpPort)},
		},
	}, logrelay.Deps{
		File: cluster.Single("bench", netip.MustParseAddr("127.0.0.1")), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		return err
	}
	return s.Run(ctx, func() {})
}

// result is what one server did, by the figure's name.
type result map[string]float64

// takenLines is how many lines the server got, where that is not what it was to
// get: a rate that grows until lines are lost ends sooner with one and later
// with another.
const takenLines = "lines taken"

// measure has a server take lines in a directory of its own, on a disk.
func measure(c contestant, w workload, lines int) (result, error) {
	if err := os.MkdirAll("build", 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("build", "bench-logs-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	load, done, err := w.prepare(lines)
	if err != nil {
		return nil, err
	}
	defer done()
	cmd, err := c.start(dir)
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r, err := load(filepath.Join(dir, "hosts"))
	most, failed := mostMemory(cmd.Process.Pid)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait() // its status says nothing more
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	spent := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	taken := float64(lines)
	if n, ok := r[takenLines]; ok {
		taken = max(1, n)
	}
	r[cpuPerLine], r[memory] = float64(spent.Microseconds())/taken, most
	return r, nil
}

// mostMemory is the most that a process had in memory since it began its
// program, in MB. Rusage's greatest is no less than what we had when we started
// it: the kernel takes the memory that we share until then for the process's.
func mostMemory(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	return float64(kib) / 1024, nil
}

// side runs f once for each connection, at the same time.
func side(conns []net.Conn, f func(conn net.Conn, number int) error) error {
	failed := make(chan error, len(conns))
	var group sync.WaitGroup
	for i, conn := range conns {
		group.Go(func() {
			if err := f(conn, i); err != nil {
				failed <- err
			}
		})
	}
	group.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// filed waits until so many lines of the benchmark are in the files. A look at
// thousands of files takes time that the server lacks: it is a tenth at most.
func filed(dir string, lines int) error {
	for began := time.Now(); time.Since(began) < patience; {
		look := time.Now()
		if bytesOf(dir) >= int64(lines*filedBytes) && lineCount(dir) >= lines {
			return nil
		}
		<-time.After(max(5*time.Millisecond, 9*time.Since(look)))
	}
	return errSlow
}

// dialAll opens the connections of a load.
func dialAll(port string) (conns []net.Conn, err error) {
	for range connections {
		conn, err := dial(port)
		if err != nil {
			closeAll(conns)
			return nil, err
		}
		conns = append(conns, conn)
	}
	return conns, nil
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		_ = c.Close()
	}
}

// texts are the lines that one of the connections sends, again and again.
func texts(number, hosts int) [][]byte {
	list := make([][]byte, hosts/connections)
	for i := range list {
		head := fmt.Sprintf("<13>2026-11-25T12:00:00.123456+00:00 cn%04d bench[42]: ", number*len(list)+i)
		list[i] = []byte(head + strings.Repeat("x", lineBytes-len(head)))
	}
	return list
}

// dial waits for the server.
func dial(port string) (net.Conn, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil || time.Now().After(deadline) {
			return conn, err
		}
	}
}

// send keeps librelp's window full, from lines made beforehand.
func send(conn net.Conn, texts [][]byte, lines int) error {
	var session relp.Client
	if _, err := conn.Write(session.AppendOpen(nil)); err != nil {
		return err
	}
	var out, in []byte
	buf := make([]byte, 64<<10)
	for sent := 0; sent < lines || session.Waiting() > 0; {
		out = out[:0]
		for sent < lines && session.Waiting() < relp.Window {
			out = session.AppendLine(out, texts[sent%len(texts)])
			sent++
		}
		if len(out) > 0 {
			if _, err := conn.Write(out); err != nil {
				return err
			}
		}
		// rsyslogd answers in small writes with Nagle's algorithm, and would
		// wait for our kernel's delayed acknowledgements.
		_ = sockopt.QuickAck(conn.(*net.TCPConn))
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		in = append(in, buf[:n]...)
		at := 0
		for {
			f, size, err := relp.Parse(in[at:])
			if err != nil {
				return err
			}
			if size == 0 {
				break
			}
			at += size
			if _, err := session.Step(f); err != nil {
				return err
			}
		}
		in = append(in[:0], in[at:]...)
	}
	return nil
}
