package logrelay

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// shedding makes a relay whose disk is so full that lines of debug are dropped, and
// that panics as it counts one.
func shedding(t *testing.T) (s *Server, dir string) {
	t.Helper()
	s, dir, _ = prepare(t)
	s.space = func(string) (float64, error) { return 0.5, nil }
	s.metrics.shed = nil
	return s, dir
}

// TestADatagramThatPanicsCostsNoOther, by UDP: it is counted. It fails where the
// panic ends the process, or those that came with it are lost.
func TestADatagramThatPanicsCostsNoOther(t *testing.T) {
	s, dir := shedding(t)
	run(t, s)
	conn, err := net.Dial("udp", s.Addrs("udp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for n, priority := range []int{13, 15, 13, 15, 13} { // 15: user.debug
		if _, err := fmt.Fprintf(conn, "<%d>Nov 25 12:00:00 cn1 test: seq=%d.", priority, n); err != nil {
			t.Fatal(err)
		}
	}
	p := process{t: t, dir: dir}
	eventually(t, time.Minute, "the others are in the file, and the two are counted", func() error {
		got := slices.Sorted(slices.Values(p.numbers("cn1"))) // datagrams have no order
		lost, panics := testutil.ToFloat64(s.metrics.lost[viaUDP]), testutil.ToFloat64(s.metrics.panics[viaUDP])
		if !slices.Equal(got, []int{0, 2, 4}) || lost != 2 || panics != 2 {
			return fmt.Errorf("the lines %v are in the file, want 0, 2 and 4; %v lines and %v panics are counted, want 2", got, lost, panics)
		}
		return nil
	})
}

// TestADatagramOfThisNodeThatPanicsIsText: a program can't send it again. It fails
// where the panic ends the process, and where the sender's own word stands for its
// process.
func TestADatagramOfThisNodeThatPanicsIsText(t *testing.T) {
	s, dir := shedding(t)
	path := filepath.Join(t.TempDir(), "log")
	s.settings.unix = []string{path}
	run(t, s)
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, text := range []string{"<15>Nov 25 12:00:00 app[1]: poison", "<13>Nov 25 12:00:00 app[1]: fine"} {
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	has(t, dir, "server", fmt.Sprintf("app[%d]: fine\n", os.Getpid()))
	has(t, dir, "server", "<15>Nov 25 12:00:00 app[1]: poison\n")
	if n := testutil.ToFloat64(s.metrics.panics[viaUnix]); n != 1 {
		t.Errorf("%v panics are counted", n)
	}
}

// poisonous is a connection that panics where it would go on with the word poison: what
// stands in front of that it brings.
type poisonous struct {
	net.Conn
	due bool
}

func (c *poisonous) NetConn() net.Conn { return c.Conn }

func (c *poisonous) Read(b []byte) (int, error) {
	if c.due {
		panic("poison")
	}
	n, err := c.Conn.Read(b)
	if at := bytes.Index(b[:n], []byte("poison")); at >= 0 {
		if c.due = true; at == 0 {
			panic("poison")
		}
		return at, nil
	}
	return n, err
}

// TestAConnectionThatPanicsEndsAlone: what came before is stored, by RELP answered as
// well, and the next connection is served. It fails where the panic ends the process,
// and where the connection stays and nobody reads it.
func TestAConnectionThatPanicsEndsAlone(t *testing.T) {
	s, dir, _ := prepare(t)
	s.tap = func(conn net.Conn) net.Conn { return &poisonous{Conn: conn} }
	run(t, s)
	ends := func(conn net.Conn) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the connection stays")
		}
		_ = conn.Close()
	}
	stream, err := net.Dial("tcp", s.Addrs("tcp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	sends(t, stream, 0, 1)
	has(t, dir, "cn1", "seq=0.")
	if _, err := fmt.Fprintln(stream, "<13>Nov 25 12:00:00 cn1 test: poison"); err != nil {
		t.Fatal(err)
	}
	ends(stream)
	if stream, err = net.Dial("tcp", s.Addrs("tcp")[0].String()); err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	sends(t, stream, 1, 2)
	has(t, dir, "cn1", "seq=1.")
	if lost, panics := testutil.ToFloat64(s.metrics.lost[viaTCP]), testutil.ToFloat64(s.metrics.panics[viaTCP]); lost != 1 || panics != 1 {
		t.Errorf("%v lines and %v panics are counted, want 1", lost, panics)
	}
	c, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	line := func(text string) []byte {
		return c.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 cn2 test: "+text))
	}
	if _, err := c.conn.Write(line("seq=0.")); err != nil {
		t.Fatal(err)
	}
	if err := c.read(0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.conn.Write(line("poison")); err != nil {
		t.Fatal(err)
	}
	ends(c.conn)
	if err := numberedLines(s, "cn3", 3); err != nil {
		t.Error(err)
	}
	if n := testutil.ToFloat64(s.metrics.panics[viaRELP]); n != 1 {
		t.Errorf("%v panics are counted by RELP", n)
	}
	has(t, dir, "cn2", "seq=0.")
}

// overfill has the next Add to a batch panic: its memory has no end.
func overfill(batch *journal.Batch) {
	buf := reflect.ValueOf(batch).Elem().FieldByName("buf").Addr()
	slice := (*struct {
		at       unsafe.Pointer
		len, cap int
	})(buf.UnsafePointer())
	slice.len, slice.cap = math.MaxInt, math.MaxInt
}

// TestALineThatPanicsIsNotAnswered, by RELP: it is not stored, and comes again. It
// fails where the panic goes on, and where its answer is written before its line is
// taken.
func TestALineThatPanicsIsNotAnswered(t *testing.T) {
	for where, inject := range map[string]func(c *relpConn){
		"hashed": func(c *relpConn) { c.s.recent.seed = maphash.Seed{} },
		"taken":  func(c *relpConn) { overfill(&c.batch) },
	} {
		s, _, _ := prepare(t)
		s.recent = newRecent()
		here, there := net.Pipe()
		defer here.Close()
		defer there.Close()
		c := s.newRELP(here, viaRELP)
		var client relp.Client
		if n, err := c.frame(client.AppendOpen(nil), 0); err != nil || n == 0 {
			t.Fatal(n, err)
		}
		answers := len(c.owe().answers)
		inject(c)
		if _, err := c.frame(client.AppendLine(nil, []byte("x")), 0); !errors.Is(err, errBug) {
			t.Errorf("%s: the error is %v", where, err)
		}
		if len(c.owe().answers) != answers || c.batch.Len() != 0 {
			t.Errorf("%s: %d lines are taken, and answered: %q", where, c.batch.Len(), c.owe().answers)
		}
	}
}

// TestAHandshakeThatPanicsEndsAlone: whoever can connect can make one.
func TestAHandshakeThatPanicsEndsAlone(t *testing.T) {
	s, _, _, connect := leavingBy(t, "tls")
	config := s.tls[0].Clone()
	var later atomic.Bool
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if !later.Swap(true) {
			panic("poison")
		}
		return nil, nil
	}
	s.tls[0] = config
	run(t, s)
	conn, err := net.Dial("tcp", s.Addrs("tls")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.Context()); err == nil { //nolint:gosec // it fails
		t.Error("a handshake that panicked went well")
	}
	eventually(t, time.Minute, "the panic is counted", func() error {
		if n := testutil.ToFloat64(s.metrics.panics[viaTLS]); n != 1 {
			return fmt.Errorf("%v", n)
		}
		return nil
	})
	sends(t, connect(), 0, 1)
	eventually(t, time.Minute, "the next connection's line is taken", func() error {
		if n := testutil.ToFloat64(s.metrics.input(viaTLS).lines); n != 1 {
			return fmt.Errorf("%v lines", n)
		}
		return nil
	})
}
