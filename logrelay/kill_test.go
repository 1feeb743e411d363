package logrelay

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// toUndo is how many files are longer than they were when the cursor last moved.
func (p *process) toUndo() (files int) {
	hosts := filepath.Join(p.dir, "hosts")
	list, _ := filepath.Glob(filepath.Join(p.dir, "logs", undoPrefix+"*"))
	for _, path := range list {
		b, _ := os.ReadFile(path) // it goes when the cursor moves
		all, _ := parseUndo(b, hosts)
		for folder, sizes := range all {
			for name, size := range sizes {
				if info, err := os.Stat(filepath.Join(folder, name)); err == nil && info.Size() > size {
					files++
				}
			}
		}
	}
	return files
}

// settle starts the server and ends it as planned: the cursor moves.
func (p *process) settle() {
	p.t.Helper()
	p.start()
	p.end(syscall.SIGTERM)
	if n := p.toUndo(); n > 0 {
		p.t.Fatalf("after a planned end there is something to undo in %d files", n)
	}
}

// strike starts the server, sends it lines from a number on, and kills it in
// the midst of them, when there is something to undo. It returns the numbers that
// were acknowledged, and the next.
func (p *process) strike(after time.Duration, first int, line func(n int) []byte) (acked []int, next int) {
	p.t.Helper()
	p.start()
	s, err := dial(p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		<-time.After(after) // when the blow falls, or later
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(time.Minute); p.toUndo() == 0 && time.Now().Before(deadline); {
			<-tick.C
		}
		_ = p.cmd.Process.Kill()
	}()
	next = first
	for {
		var b []byte
		for range 16 {
			b = s.session.AppendLine(b, line(next))
			next++
		}
		if _, err := s.conn.Write(b); err != nil {
			break
		}
		if s.read(64) != nil {
			break
		}
	}
	for i := range s.acked {
		acked = append(acked, first+i)
	}
	_ = s.conn.Close()
	<-killed
	p.end(syscall.SIGKILL)
	// A checkpoint may have come in between, which is once in ten seconds.
	if p.toUndo() > 0 {
		p.undone++
	}
	return acked, next
}

// TestKilledServerHasWhatItAcknowledged: a client sends all the time and the
// server is killed in the midst of it, again and again, with lines in the file that
// are behind the cursor and with none. It fails if these are not cut off.
func TestKilledServerHasWhatItAcknowledged(t *testing.T) {
	p := newProcess(t)
	next, acked := 0, []int{}
	for round := range 6 {
		var more []int
		more, next = p.strike(time.Duration(50+30*round)*time.Millisecond, next, func(n int) []byte {
			return fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn01 test: seq=%d", n)
		})
		acked = append(acked, more...)
		if round == 2 {
			p.settle()
		}
	}
	if len(acked) < 100 || p.undone < 4 {
		t.Fatalf("only %d lines were acknowledged, and there was something to undo %d times: this proves nothing", len(acked), p.undone)
	}
	p.settle()
	got := p.numbers("cn01")
	if !slices.IsSorted(got) {
		t.Error("lines are out of order")
	}
	if unique := slices.Compact(slices.Clone(got)); len(unique) != len(got) {
		t.Errorf("%d lines are doubled in the file, though none was sent twice", len(got)-len(unique))
	}
	for _, n := range acked {
		if _, ok := slices.BinarySearch(got, n); !ok {
			t.Fatalf("line %d was acknowledged and is lost (%d acknowledged, %d found)", n, len(acked), len(got))
		}
	}
}

// rsyslog is a real client: lines that it takes by TCP go into a queue on its
// disk and from there by omrelp to the server.
type rsyslog struct {
	t    *testing.T
	addr string // where it takes lines
	cmd  *exec.Cmd
	dir  string
}

func newRsyslog(t *testing.T, to string) *rsyslog {
	t.Helper()
	host, toPort, _ := net.SplitHostPort(to)
	return startRsyslog(t, "", fmt.Sprintf(`module(load="omrelp")
action(type="omrelp" target="%s" port="%s" template="RSYSLOG_ForwardFormat"
  action.resumeRetryCount="-1" action.resumeInterval="1"
  queue.type="Disk" queue.filename="spool" queue.maxDiskSpace="200m" queue.saveOnShutdown="on")`, host, toPort))
}

// startRsyslog starts an rsyslogd that takes lines by TCP, with global
// parameters and an output.
func startRsyslog(t *testing.T, global, output string) *rsyslog {
	t.Helper()
	path, err := exec.LookPath("rsyslogd")
	if err != nil {
		if path = "/usr/sbin/rsyslogd"; !exists(path) {
			t.Fatalf("rsyslogd is missing, run hack/deps: %v", err)
		}
	}
	r := &rsyslog{t: t, addr: "127.9.5.2:5514", dir: t.TempDir()} // no test has two at a time
	host, port, _ := net.SplitHostPort(r.addr)
	config := fmt.Sprintf(`global(workDirectory="%s" localHostname="client" processInternalMessages="on" %s)
module(load="imptcp")
input(type="imptcp" address="%s" port="%s")
%s
action(type="omfile" file="%s")
`, r.dir, global, host, port, output, filepath.Join(r.dir, "own.log"))
	file := filepath.Join(r.dir, "rsyslog.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r.cmd = exec.Command(path, "-n", "-f", file, "-i", filepath.Join(r.dir, "pid"))
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	})
	return r
}

// said is what rsyslogd wrote of its lines and of itself.
func (r *rsyslog) said() string {
	b, _ := os.ReadFile(filepath.Join(r.dir, "own.log"))
	return string(b)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// log gives rsyslogd lines with sequence numbers.
func (r *rsyslog) log(from, count int) {
	r.t.Helper()
	eventually(r.t, time.Minute, "rsyslogd takes lines", func() error {
		conn, err := net.Dial("tcp", r.addr)
		if err != nil {
			return err
		}
		var b strings.Builder
		for i := range count {
			fmt.Fprintf(&b, "<13>Nov 25 12:00:00 cn01 test: seq=%d\n", from+i)
		}
		if _, err := conn.Write([]byte(b.String())); err != nil {
			return err
		}
		return conn.Close()
	})
}

// TestRsyslogLosesNothingThroughKilledServers is the main job: an unmodified
// client of Debian, a durable queue, a server that dies.
func TestRsyslogLosesNothingThroughKilledServers(t *testing.T) {
	p := newProcess(t)
	p.start()
	r := newRsyslog(t, p.addr)
	const rounds, count = 4, 2000
	for round := range rounds {
		r.log(round*count, count)
		want := round*count + 100
		eventually(t, time.Minute, "lines arrive", func() error {
			if got := len(p.numbers("cn01")); got < want {
				return fmt.Errorf("%d of %d", got, want)
			}
			return nil
		})
		p.end(syscall.SIGKILL)
		p.start()
	}
	var got []int
	eventually(t, time.Minute, "all lines arrive", func() error {
		got = p.numbers("cn01")
		seen := slices.Compact(slices.Sorted(slices.Values(got)))
		if len(seen) != rounds*count {
			return fmt.Errorf("%d of %d lines", len(seen), rounds*count)
		}
		return nil
	})
	t.Logf("%d lines, %d of them twice: sent again, since their acknowledgement died with the server", rounds*count, len(got)-rounds*count)
	if doubled := len(got) - rounds*count; doubled > rounds*256 {
		t.Errorf("%d lines are doubled, want at most a window or two a kill", doubled)
	}
	p.end(syscall.SIGTERM)
}

// TestPlannedEndDoublesNothing: at SIGTERM the client hears of every line that
// is stored, and none gets lost at the edge of a session. Under load, rsyslogd
// 8.2302 itself passes a line over now and then, in the midst of a session that
// is well: two transactions that follow each other carry the line before and
// the one behind.
func TestPlannedEndDoublesNothing(t *testing.T) {
	p := newProcess(t)
	p.start()
	r := newRsyslog(t, p.addr)
	const rounds, count = 4, 3000
	for round := range rounds {
		r.log(round*count, count)
		want := round*count + 50
		eventually(t, time.Minute, "lines arrive", func() error {
			if got := len(p.numbers("cn01")); got < want {
				return fmt.Errorf("%d of %d", got, want)
			}
			return nil
		})
		p.end(syscall.SIGTERM)
		p.start()
	}
	// librelp looks at its connection only when it has a line to send: what the
	// last end left in it comes with the next line, as on any node.
	r.log(rounds*count, 1)
	const sent = rounds*count + 1
	var lost []int
	eventually(t, time.Minute, "all lines that rsyslogd sent arrive", func() (err error) {
		lost, err = unsent(came(t, p.dir), p.numbers("cn01"), sent)
		return err
	})
	p.end(syscall.SIGTERM)
	got := p.numbers("cn01")
	if len(got) != sent-len(lost) || !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Errorf("%d lines for %d sent, sorted %v", len(got), sent-len(lost), slices.IsSorted(got))
	}
	if len(lost) > 0 {
		t.Logf("rsyslogd wrote lines %v into its own file and never sent them", lost)
	}
}

// missing are the numbers below end that are not there, the first ten of them.
func missing(got []int, end int) (list []int) {
	seen := map[int]bool{}
	for _, n := range got {
		seen[n] = true
	}
	for n := 0; n < end && len(list) < 10; n++ {
		if !seen[n] {
			list = append(list, n)
		}
	}
	return list
}

// TestKilledServerWritesOnceWhateverThePathWasBefore: it is killed in the midst
// of lines of several hosts and programs, and comes back with other paths and
// formats. All that was acknowledged is in the files, and nothing twice. It fails
// if what is undone is looked for where the path of now has it, or nothing is.
func TestKilledServerWritesOnceWhateverThePathWasBefore(t *testing.T) {
	p := newProcess(t)
	next, acked := 0, []int{}
	line := func(n int) []byte {
		return fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn0%d test%d: seq=%d", n%3, n%5, n)
	}
	files := []string{
		`{}`, `{path: "{host}/{app}.log", format: json}`, `{path: "{year}/{month}/{day}/{host}.log"}`, `{path: "{app}/{host}.log", apps: 2}`, `{path: "{host}/{app}.log", format: "{received} {text}"}`,
	}
	for round, section := range files {
		p.files = section
		var more []int
		more, next = p.strike(time.Duration(50+30*round)*time.Millisecond, next, line)
		acked = append(acked, more...)
		if round == 1 { // with the same path next, and lines that stay
			p.settle()
			more, next = p.strike(0, next, line)
			acked = append(acked, more...)
		}
	}
	if len(acked) < 100 || p.undone < 4 {
		t.Fatalf("only %d lines were acknowledged, and there was something to undo %d times: this proves nothing", len(acked), p.undone)
	}
	p.settle()
	dir, seen := filepath.Join(p.dir, "hosts"), map[int]int{}
	for _, name := range filesBelow(t, dir) {
		if !strings.HasSuffix(name, fileSuffix) {
			t.Errorf("%s is there", name)
		}
		for _, n := range p.numbers(strings.TrimSuffix(name, fileSuffix)) {
			seen[n]++
		}
	}
	lost, twice := 0, 0
	for _, n := range acked {
		if seen[n] == 0 {
			lost++
		}
	}
	for _, times := range seen {
		if times > 1 {
			twice++
		}
	}
	if lost > 0 || twice > 0 {
		t.Errorf("of %d lines that were acknowledged %d are in no file, and %d lines are twice", len(acked), lost, twice)
	}
}
