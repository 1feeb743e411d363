package logrelay

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

// broken is a connection that panics at what is set.
type broken struct {
	net.Conn
	read, write bool
	before      func() // a read panics
}

func (c broken) Read(b []byte) (int, error) {
	if !c.read {
		return c.Conn.Read(b)
	}
	if c.before != nil {
		c.before()
	}
	panic("poison")
}

func (c broken) Write(b []byte) (int, error) {
	if c.write {
		panic("poison")
	}
	return c.Conn.Write(b)
}

// pipe is a connection in memory, of which the other end is closed with the test.
func pipe(t *testing.T) (here, there net.Conn) {
	t.Helper()
	here, there = net.Pipe()
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	return here, there
}

// TestAStreamThatPanicsAsItsSessionEndsIsReadNoMore: nobody knows where its next line
// begins. It fails where the session's end hides the panic.
func TestAStreamThatPanicsAsItsSessionEndsIsReadNoMore(t *testing.T) {
	s, _, _ := prepare(t)
	here, _ := pipe(t)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	reads := 0
	conn := broken{Conn: here, read: true, before: func() {
		reads++
		end()
	}}
	if err := s.serveStream(ctx, conn, viaTCP); !errors.Is(err, errBug) || reads != 1 {
		t.Errorf("it was read %d times, and ended with %v", reads, err)
	}
}

// TestWhatNobodyTakesMayPanic: the relay's end reads it to count it. It fails where
// that ends the process, or the log has no word that there may be more.
func TestWhatNobodyTakesMayPanic(t *testing.T) {
	s, _, _ := prepare(t)
	here, _ := pipe(t)
	c := &streamConn{s: s, conn: broken{Conn: here, read: true}, via: viaTCP, framer: syslog.Framer{Max: maxLine}, keep: s.newKeeper(t.Context(), viaTCP)}
	if c.drop(); !s.lastLosses.more.Load() || testutil.ToFloat64(s.metrics.panics[viaTCP]) != 1 {
		t.Error("a panic over what nobody takes is not told of")
	}
}

// TestAnotherNodeThatPanicsEndsAlone: where it says who it is, where it brings lines,
// and where it is answered. It fails where either ends the process.
func TestAnotherNodeThatPanicsEndsAlone(t *testing.T) {
	s, _, _ := prepare(t)
	here, _ := pipe(t)
	if err := s.serveReplica(t.Context(), tls.Server(broken{Conn: here, read: true}, &tls.Config{MinVersion: tls.VersionTLS13})); !errors.Is(err, errBug) {
		t.Errorf("a greeting that panics: %v", err)
	}
	s.arrivals.reset(time.Now())
	in := newIntake(s, greeting{node: "fb2"}, broken{Conn: here, read: true, write: true})
	if err := in.read(t.Context()); !errors.Is(err, errBug) {
		t.Errorf("a shipment that panics: %v", err)
	}
	if err := in.answer(1); !errors.Is(err, errBug) {
		t.Errorf("an answer that panics: %v", err)
	}
	if n := testutil.ToFloat64(s.metrics.panics[viaReplica]); n != 3 {
		t.Errorf("%v panics are counted, want 3", n)
	}
}

// TestAnAnswerThatPanicsEndsItsSession, by RELP, and no other. It fails where the
// panic ends the process, which it does in a goroutine that answers.
func TestAnAnswerThatPanicsEndsItsSession(t *testing.T) {
	s, dir, _ := prepare(t)
	var later atomic.Bool
	s.tap = func(conn net.Conn) net.Conn { return tapped{broken{Conn: conn, write: !later.Swap(true)}} }
	run(t, s)
	conn, err := net.Dial("tcp", s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var c sender
	if _, err := conn.Write(c.session.AppendOpen(nil)); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) || n > 0 {
		t.Errorf("the connection stays, with %d bytes (%v)", n, err)
	}
	if n := testutil.ToFloat64(s.metrics.panics[viaRELP]); n != 1 {
		t.Errorf("%v panics are counted", n)
	}
	if err := numberedLines(s, "cn1", 3); err != nil {
		t.Error(err)
	}
	has(t, dir, "cn1", "seq=2.")
}

// tapped is a connection above one of TCP.
type tapped struct{ broken }

func (c tapped) NetConn() net.Conn { return c.Conn }

// TestATargetThatPanicsIsATargetThatFails: where it is connected to, where it is
// written to, where its answers are read, and where only its end is waited for. It
// fails where any of these ends the process, and where the connection stays open.
func TestATargetThatPanicsIsATargetThatFails(t *testing.T) {
	s, _, _ := prepare(t)
	here, there := pipe(t)
	f := &forward{
		target: target{name: "siem", via: viaTLS, addresses: []string{"siem:6514"}}, bugs: s.bugs, metrics: s.metrics.output("siem"),
		dialer: func(context.Context, string, string) (net.Conn, error) { return broken{Conn: here, write: true}, nil },
		tls:    &tls.Config{ServerName: "siem", MinVersion: tls.VersionTLS13},
	}
	if _, err := f.dial(t.Context(), "siem:6514"); !errors.Is(err, errBug) {
		t.Errorf("a handshake that panics: %v", err)
	}
	_ = there.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := there.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection stays open: %v", err)
	}
	here, _ = pipe(t)
	raw := &counted{Conn: broken{Conn: here, read: true, write: true}}
	l := &link{address: "siem:6514", conn: raw, raw: raw}
	watched, stop := l.watch(t.Context(), func(read func() error) error { return f.guard(l.address, read) })
	select {
	case <-watched.Done():
	case <-time.After(time.Minute):
		t.Error("a target that panics as its end is waited for has not ended")
	}
	if stop(); !errors.Is(context.Cause(watched), errBug) {
		t.Errorf("a target that panics as its end is waited for: %v", context.Cause(watched))
	}
	f.link, f.out = l, []byte("1 x")
	if err := f.flush(); !errors.Is(err, errBug) {
		t.Errorf("a write that panics: %v", err)
	}
	l.session.AppendOpen(nil)
	if _, err := f.answers(l); !errors.Is(err, errBug) {
		t.Errorf("an answer that panics: %v", err)
	}
}

// TestADatagramThatPanicsHidesNoneThatWasCut before it. It fails where what was
// counted until then is forgotten.
func TestADatagramThatPanicsHidesNoneThatWasCut(t *testing.T) {
	s, _ := shedding(t)
	s.look()
	conn, sender := socketOf(t, s)
	packets, err := sockopt.NewModerated(conn, datagrams, 50, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for _, text := range []string{"<13>" + strings.Repeat("x", 100), "<15>poison", "<13>fine"} {
		if _, err := sender.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	var batch journal.Batch
	for taken := 0; taken < 3; { // the kernel may deliver them one by one
		n, err := packets.Receive()
		if n == 0 || err != nil {
			t.Fatalf("%d datagrams behind %d, %v", n, taken, err)
		}
		s.takeDatagrams(&batch, packets, n)
		taken += n
	}
	if cut, lost := testutil.ToFloat64(s.metrics.cut[viaUDP]), testutil.ToFloat64(s.metrics.lost[viaUDP]); cut != 1 || lost != 1 || batch.Len() != 2 {
		t.Errorf("%d lines are taken, %v counted as cut and %v as lost; want 2, 1 and 1", batch.Len(), cut, lost)
	}
}

// pieces are read one by one, and then reading panics.
type pieces []string

func (p *pieces) Read(b []byte) (int, error) {
	if len(*p) == 0 {
		panic("poison")
	}
	n := copy(b, (*p)[0])
	*p = (*p)[1:]
	return n, nil
}

// TestAnEntryThatPanicsIsPassedOver: journalctl, which is begun anew then, would bring
// it again and again, and nothing behind it. It fails where the cursor stays in front
// of it, where no line stands in its place, and where entries in front of it are not
// stored.
func TestAnEntryThatPanicsIsPassedOver(t *testing.T) {
	x := newStage(t, `{}`)
	defer x.end()
	s := x.s
	s.journal = x.j
	path := filepath.Join(t.TempDir(), "cursor")
	for _, test := range []struct {
		text   string // what is read before the panic
		cursor string // that is kept
		lines  []string
	}{
		{"__CURSOR=s=1\nMESSAGE=first\n\n__CURSOR=s=2\nMESSAGE=hunter2 po", "s=2", []string{"] first", "--cursor='s=2'"}},
		{"__CURSOR=s=3\nMESSAGE=third\n\n_PID=7\nMESS", "s=3", []string{"] third"}},
		{"_PID=7\nMESS", "s=3", nil},
	} {
		next := x.j.End()
		if err := s.takeEntries(x.ctx, bufio.NewReaderSize(&pieces{test.text}, 64<<10), path); !errors.Is(err, errBug) {
			t.Errorf("%q: %v", test.text, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != test.cursor+"\n" {
			t.Errorf("%q: the cursor is %q, want %q (%v)", test.text, b, test.cursor, err)
		}
		if got := linesFrom(t, x.j, next); len(got) != len(test.lines) {
			t.Errorf("%q: the lines %q", test.text, got)
		} else {
			for i, want := range test.lines {
				if !strings.Contains(got[i], want) || strings.Contains(got[i], "hunter2") {
					t.Errorf("%q: the line %q, want %q", test.text, got[i], want)
				}
			}
		}
	}
	if panics, lines := testutil.ToFloat64(s.metrics.panics[viaJournald]), testutil.ToFloat64(s.metrics.input(viaJournald).lines); panics != 3 || lines != 3 {
		t.Errorf("%v panics and %v lines are counted, want 3", panics, lines)
	}
}

// linesFrom are the lines in a journal from one on.
func linesFrom(t *testing.T, j *journal.Journal, from uint64) (lines []string) {
	t.Helper()
	reader := j.Reader(from)
	defer reader.Close()
	for {
		block, ok, err := reader.TryNext()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return lines
		}
		if err := block.Each(func(number uint64, r journal.Record) bool {
			if number >= from {
				lines = append(lines, string(r.Data))
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
}
