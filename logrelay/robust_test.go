package logrelay

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// prepare makes a relay that does not run yet, with a board.
func prepare(t *testing.T) (s *Server, dir string, board *health.Board) {
	t.Helper()
	dir, board = t.TempDir(), health.NewBoard(time.Now, nil, nil)
	free := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	s, err := New(Config{
		Node: "server", DataDir: dir, Dir: filepath.Join(dir, "hosts"), Listen: map[string][]netip.AddrPort{"relp": free, "udp": free, "tcp": free},
	}, Deps{File: cluster.Single("server", netip.MustParseAddr("127.0.0.1")), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Board: board})
	if err != nil {
		t.Fatal(err)
	}
	settled(s)
	return s, dir, board
}

// raised waits until a condition stands, or does not.
func raised(t *testing.T, board *health.Board, name string, want bool) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("condition %s: %v", name, want), func() error {
		for _, c := range board.Conditions() {
			if c.Name == name {
				if want {
					return nil
				}
				return errors.New(c.Message)
			}
		}
		if want {
			return fmt.Errorf("%v", board.Conditions())
		}
		return nil
	})
}

// numbered sends so many lines of a host by RELP and waits for all answers.
func numberedLines(s *Server, host string, count int) error {
	c, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		return err
	}
	defer c.conn.Close()
	for n := range count {
		if _, err := c.conn.Write(c.session.AppendLine(nil, fmt.Appendf(nil, "<13>Nov 25 12:00:00 %s test: seq=%d.", host, n))); err != nil {
			return err
		}
		if err := c.read(100); err != nil {
			return err
		}
	}
	return c.read(0)
}

// badDisk is a journal's file whose syncs take a while, or whose writes fail.
type badDisk struct {
	journal.File
	slow  time.Duration
	full  *atomic.Bool
	syncs *atomic.Int64
}

func (d badDisk) Datasync() error {
	d.syncs.Add(1)
	<-time.After(d.slow)
	return d.File.Datasync()
}

func (d badDisk) WriteAt(b []byte, off int64) (int, error) {
	if d.full.Load() {
		return 0, syscall.ENOSPC
	}
	return d.File.WriteAt(b, off)
}

// TestASlowDiskIsSharedByAllWhoWait: each sync takes 50 ms, and serves everyone.
func TestASlowDiskIsSharedByAllWhoWait(t *testing.T) {
	s, dir, _ := prepare(t)
	var syncs atomic.Int64
	s.wrap = func(f journal.File) journal.File { return badDisk{f, 50 * time.Millisecond, &atomic.Bool{}, &syncs} }
	stop := run(t, s)
	const clients, count = 10, 500
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			if err := numberedLines(s, fmt.Sprintf("cn%d", i), count); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := syncs.Load(); n > clients*count/5 {
		t.Errorf("%d syncs for %d lines", n, clients*count)
	}
	stop()
	p := process{t: t, dir: dir}
	for i := range clients {
		if got := p.numbers(fmt.Sprintf("cn%d", i)); len(got) != count {
			t.Errorf("client %d: %d of %d lines", i, len(got), count)
		}
	}
}

// TestAFullDiskAcknowledgesNothingAndSaysSo: and goes on once there is room.
func TestAFullDiskAcknowledgesNothingAndSaysSo(t *testing.T) {
	s, dir, board := prepare(t)
	var full atomic.Bool
	s.wrap = func(f journal.File) journal.File { return badDisk{f, 0, &full, &atomic.Int64{}} }
	stop := run(t, s)
	if err := numberedLines(s, "cn1", 10); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	if err := numberedLines(s, "cn2", 10); err == nil {
		t.Error("lines were acknowledged that the disk refused")
	}
	raised(t, board, conditionJournal, true)
	full.Store(false)
	if err := numberedLines(s, "cn3", 10); err != nil {
		t.Error(err)
	}
	raised(t, board, conditionJournal, false)
	stop()
	p := process{t: t, dir: dir}
	if one, three := p.numbers("cn1"), p.numbers("cn3"); len(one) != 10 || len(three) != 10 {
		t.Errorf("%d and %d of 10 acknowledged lines", len(one), len(three))
	}
}

// TestAtTheWatermarksSendersWaitAndDebugIsShed: at 95 % RELP is not read, at
// 99 % UDP's debug lines are dropped and nothing else.
func TestAtTheWatermarksSendersWaitAndDebugIsShed(t *testing.T) {
	s, dir, board := prepare(t)
	var used atomic.Int64
	s.space = func(string) (float64, error) { return 100 - float64(used.Load()), nil }
	used.Store(99)
	run(t, s)
	raised(t, board, conditionFull, true)
	udp, err := net.Dial("udp", s.Addrs("udp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, line := range []string{"<15>Nov 25 12:00:00 cn1 test: debug", "<14>Nov 25 12:00:00 cn1 test: info"} {
		if _, err := udp.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	has(t, dir, "cn1", "test: info") // it came behind the other
	if b, _ := os.ReadFile(filepath.Join(dir, "hosts", "cn1.log")); bytes.Contains(b, []byte("test: debug")) {
		t.Error("a debug line was stored at 99 %")
	}
	answered := make(chan error, 1)
	go func() { answered <- numberedLines(s, "cn2", 5) }()
	select {
	case err := <-answered:
		t.Errorf("RELP was answered at 99 %%: %v", err)
	case <-time.After(300 * time.Millisecond): // nothing tells that it is not read
	}
	used.Store(50)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	raised(t, board, conditionFull, false)
}

// TestTheGateFollowsTheWatermarks: percent of the disk that is used, one after
// the other, with what holds then: "-" nothing, "r" RELP and TCP wait, "d" UDP's
// debug lines are dropped, too.
func TestTheGateFollowsTheWatermarks(t *testing.T) {
	g := newGate()
	for _, step := range []struct {
		used float64
		want string
	}{
		{94.9, "-"}, {95, "r"}, {93, "r"}, {98.9, "r"}, {99, "d"}, {98.9, "r"}, {94, "r"}, {92.9, "-"}, {94.9, "-"}, {100, "d"}, {0, "-"},
	} {
		full, shedding := g.disk(step.used)
		got := "-"
		if full {
			got = "r"
		}
		if shedding {
			got = "d"
		}
		if got != step.want || full != (g.held() != "") || shedding != g.shed() {
			t.Errorf("at %v %%: %s, want %s; held: %q", step.used, got, step.want, g.held())
		}
	}
	g.disk(96)
	g.pause(true)
	g.disk(10)
	if g.held() == "" {
		t.Error("room on the disk ended an admin's pause")
	}
	g.pause(false)
	if g.held() != "" {
		t.Error(g.held())
	}
}

// TestLinesOfAnySizeAndBytes: 1 MB is cut and what follows it taken; one byte is
// a line; NUL, line feeds and what is no UTF-8 stay within their line.
func TestLinesOfAnySizeAndBytes(t *testing.T) {
	s, dir, _ := serve(t, nil)
	tcp, err := net.Dial("tcp", s.Addrs("tcp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(tcp, "<13>Nov 25 12:00:00 cn1 test: %s\nx\n", strings.Repeat("a", 1<<20)); err != nil {
		t.Fatal(err)
	}
	_ = tcp.Close()
	big, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer big.conn.Close()
	_ = big.conn.SetReadDeadline(time.Now().Add(time.Minute))
	out := big.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 cn2 test: "+strings.Repeat("b", 1<<20)))
	out = big.session.AppendLine(out, []byte("<13>Nov 25 12:00:00 cn2 test: behind"))
	if _, err := big.conn.Write(out); err != nil {
		t.Fatal(err)
	}
	if err := big.read(0); err != nil || big.acked != 2 {
		t.Fatalf("a RELP line of 1 MB and one behind it: %d are acknowledged, %v", big.acked, err)
	}
	has(t, dir, "cn2", "test: "+strings.Repeat("b", 1000))
	has(t, dir, "cn2", "test: behind\n")
	if info, err := os.Stat(filepath.Join(dir, "hosts", "cn2.log")); err != nil || info.Size() > relp.MaxData+300 {
		t.Errorf("%v, want a line of %d bytes and a short one: %v", info, relp.MaxData, err)
	}
	small, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer small.conn.Close()
	for _, line := range []string{"y", "<13>Nov 25 12:00:00 cn1 test: nul\x00 lf\n bad\xff end"} {
		if _, err := small.conn.Write(small.session.AppendLine(nil, []byte(line))); err != nil {
			t.Fatal(err)
		}
	}
	if err := small.read(0); err != nil || small.acked != 2 {
		t.Fatalf("%d of 2 are acknowledged, %v", small.acked, err)
	}
	has(t, dir, "cn1", "test: nul#000 lf#012 bad\xff end\n")
	has(t, dir, "server", " y\n") // without a host: of who sent it
	has(t, dir, "server", " x\n")
	b, err := os.ReadFile(filepath.Join(dir, "hosts", "cn1.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if len(line) > maxLine+100 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	lines, done := ask(t, s, Query{Severity: NoSeverity, Text: "nul"})
	if len(lines) != 1 || !done || !strings.Contains(lines[0], "bad\uFFFD end") {
		t.Errorf("%q", lines)
	}
}

// TestAClientThatNeverReadsIsHeldBackAlone: its lines fill the way to it, then
// it must wait; others don't.
func TestAClientThatNeverReadsIsHeldBackAlone(t *testing.T) {
	s, _, _ := serve(t, nil)
	conn, err := net.Dial("tcp", s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetReadBuffer(4096)
	var deaf sender
	out := deaf.session.AppendOpen(nil)
	const most = 64 << 20
	sent := 0
	for ; sent < most; sent += len(out) {
		for len(out) < 64<<10 {
			out = deaf.session.AppendLine(out, []byte("<13>Nov 25 12:00:00 deaf test: x"))
		}
		_ = conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.Write(out); err != nil {
			break
		}
		out = out[:0]
	}
	if sent >= most {
		t.Errorf("%d bytes were taken of a client that reads no answer", sent)
	}
	if err := numberedLines(s, "cn1", 200); err != nil {
		t.Error(err)
	}
}

// TestForgedHostsMakeABoundedNumberOfFiles: 100,000 names by way of a relay.
func TestForgedHostsMakeABoundedNumberOfFiles(t *testing.T) {
	const forged, most = 100_000, 200
	s, dir, stop := serve(t, func(s *settings) { s.hosts = most })
	conn, err := net.Dial("tcp", s.Addrs("tcp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for n := range forged {
		b = fmt.Appendf(b, "<13>Nov 25 12:00:00 forged%d test: x\n", n)
	}
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	eventually(t, time.Minute, "all lines are in the journal", func() error {
		if end := s.Status().End; end != forged {
			return fmt.Errorf("%d of %d", end, forged)
		}
		return nil
	})
	stop()
	names, err := filepath.Glob(filepath.Join(dir, "hosts", "*.log"))
	if err != nil || len(names) > most+1 {
		t.Errorf("%d files, %v", len(names), err)
	}
	lines := 0
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines += bytes.Count(b, []byte{'\n'})
	}
	if lines != forged {
		t.Errorf("%d of %d lines are in the files", lines, forged)
	}
}

// TestTenThousandClientsAreServed: nearly so many have a connection each, and
// their lines answered.
func TestTenThousandClientsAreServed(t *testing.T) {
	const mostMiB = 256   // 129 were seen
	const clients = 9_500 // of 10,000 files that are open in each of two processes, some are others
	p := newProcess(t)
	p.start()
	var all []*sender
	defer func() {
		for _, c := range all {
			_ = c.conn.Close()
		}
	}()
	for n := range clients {
		c, err := dial(p.addr)
		if err != nil {
			t.Fatalf("client %d: %v", n, err)
		}
		all = append(all, c)
	}
	for n, c := range all {
		if _, err := c.conn.Write(c.session.AppendLine(nil, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn1 test: seq=%d.", n))); err != nil {
			t.Fatal(err)
		}
	}
	for n, c := range all {
		if err := c.read(0); err != nil || c.acked != 1 {
			t.Fatalf("client %d: %d acknowledged, %v", n, c.acked, err)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d clients, %d MiB, %.1f KiB a client", clients, kib>>10, float64(kib)/clients)
	if kib>>10 > mostMiB && !raceEnabled {
		t.Errorf("%d clients take %d MiB, want at most %d", clients, kib>>10, mostMiB)
	}
	for _, c := range all {
		_ = c.conn.Close()
	}
	all = nil
	p.end(syscall.SIGTERM)
	if lost := missing(p.numbers("cn1"), clients); len(lost) > 0 {
		t.Errorf("lines of clients %v were acknowledged and are lost", lost)
	}
}

// TestAClockThatJumpsLosesNothing: lines whose sender is known are judged after
// a jump back as before; after one ahead, a line comes twice rather than not.
func TestAClockThatJumpsLosesNothing(t *testing.T) {
	r := newRecent()
	now := time.Now().UnixNano()
	from := netip.MustParseAddr("192.0.2.1")
	r.put(from, now, r.hash([]byte("a")), r.hash([]byte("b")))
	if back := r.resent(from, now-int64(24*time.Hour)); back == nil || back.take(r.hash([]byte("b"))) != again {
		t.Error("after a jump back, a line that is stored is stored once more")
	}
	if r.resent(from, now+int64(24*time.Hour)) != nil {
		t.Error("after a jump ahead, lines of yesterday are compared")
	}
	if (rotateConfig{bytes: 1000, every: time.Hour}).due(10, -24*time.Hour) {
		t.Error("a file is put away because the clock went back")
	}
	s, dir, stop := serve(t, nil)
	j := s.current.Load()
	for i, at := range []time.Duration{0, -time.Hour, 24 * time.Hour, time.Minute} {
		var b journal.Batch
		b.Add(journal.Record{Time: now + int64(at), Input: viaRELP, Data: fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn1 test: seq=%d.", i)})
		if _, err := j.Append(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	p := process{t: t, dir: dir}
	if got := p.numbers("server"); len(got) != 4 {
		t.Errorf("%v of 4 lines", got)
	}
}
