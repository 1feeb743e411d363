package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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
	hosts       = 128
	lineBytes   = 200
	filedBytes  = lineBytes - len("<13>") + len(" user.notice\n")
)

// serveMain is the relay alone.
func serveMain(ctx context.Context, dir string) error {
	s, err := logrelay.New(logrelay.Config{
		Node: "bench", DataDir: dir, Dir: filepath.Join(dir, "hosts"),
		Listen: map[string][]netip.AddrPort{"relp": {netip.MustParseAddrPort("127.0.0.1:" + port)}},
	}, logrelay.Deps{
		File: cluster.Single("bench", netip.MustParseAddr("127.0.0.1")), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		return err
	}
	return s.Run(ctx, func() {})
}

// result is what one server did.
type result struct {
	acked, filed float64 // lines per second
	cpu          float64 // microseconds of the server's a line
	rss          int64   // MB
}

// measure has a server take lines in a directory of its own, on a disk.
func measure(c contestant, lines int) (result, error) {
	if err := os.MkdirAll("build", 0o755); err != nil {
		return result{}, err
	}
	dir, err := os.MkdirTemp("build", "bench-logs-")
	if err != nil {
		return result{}, err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return result{}, err
	}
	cmd, err := c.start(dir)
	if err != nil {
		return result{}, err
	}
	if err := cmd.Start(); err != nil {
		return result{}, err
	}
	r, err := load(filepath.Join(dir, "hosts"), lines)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait() // its status says nothing more
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	spent := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	r.cpu, r.rss = float64(spent.Microseconds())/float64(lines), usage.Maxrss>>10
	return r, err
}

// load sends lines over all connections and waits until they are in the files.
func load(dir string, lines int) (result, error) {
	conns := make([]net.Conn, connections)
	for i := range conns {
		conn, err := dial()
		if err != nil {
			return result{}, err
		}
		defer conn.Close()
		conns[i] = conn
	}
	each := lines / connections
	began := time.Now()
	failed := make(chan error, connections)
	var group sync.WaitGroup
	for i, conn := range conns {
		group.Go(func() {
			if err := send(conn, i, each); err != nil {
				failed <- err
			}
		})
	}
	group.Wait()
	acked := time.Since(began)
	select {
	case err := <-failed:
		return result{}, err
	default:
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if bytesOf(dir) >= int64(each*connections*filedBytes) && lineCount(dir) == each*connections {
			break
		}
		if time.Since(began) > patience {
			return result{}, errSlow
		}
	}
	per := func(d time.Duration) float64 { return float64(each*connections) / d.Seconds() }
	return result{acked: per(acked), filed: per(time.Since(began))}, nil
}

// dial waits for the server.
func dial() (net.Conn, error) {
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
func send(conn net.Conn, number, lines int) error {
	var session relp.Client
	if _, err := conn.Write(session.AppendOpen(nil)); err != nil {
		return err
	}
	texts := make([][]byte, hosts/connections)
	for i := range texts {
		head := fmt.Sprintf("<13>2026-11-25T12:00:00.123456+00:00 cn%03d bench[42]: ", number*len(texts)+i)
		texts[i] = []byte(head + strings.Repeat("x", lineBytes-len(head)))
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
