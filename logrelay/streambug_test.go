package logrelay

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/logrelay/syslog"
)

// TestAPanicCostsALineOnlyWhereSomethingWasRead, by a stream. It fails where one is
// counted though all that came is taken, and where what was read, and is lost, is not.
func TestAPanicCostsALineOnlyWhereSomethingWasRead(t *testing.T) {
	for _, test := range []struct {
		name   string
		reads  string
		inject func(*streamConn)
		lost   float64
	}{
		{"all is taken", "<13>Nov 25 12:00:00 cn1 test: a\n", nil, 0},
		{"half a line", "<13>Nov 25 12:00:00 cn1 test: ha", nil, 1},
		{"as it is taken apart", "<13>Nov 25 12:00:00 cn1 test: a\n", func(c *streamConn) { overfill(&c.batch) }, 1},
	} {
		s, _, _ := prepare(t)
		here, there := net.Pipe()
		c := &streamConn{s: s, conn: &poisonous{Conn: here}, via: viaTLS, framer: syslog.Framer{Max: maxLine}, buf: make([]byte, 0, firstBuffer)}
		if test.inject != nil {
			test.inject(c)
		}
		go func() { _, _ = io.WriteString(there, test.reads+"poison") }()
		var err error
		for err == nil {
			err = c.read()
		}
		_, _ = here.Close(), there.Close()
		lost, panics := testutil.ToFloat64(s.metrics.lost[viaTLS]), testutil.ToFloat64(s.metrics.panics[viaTLS])
		if !errors.Is(err, errBug) || lost != test.lost || panics != 1 {
			t.Errorf("%s: %v; %v lines and %v panics are counted, want %v and 1", test.name, err, lost, panics, test.lost)
		}
	}
}

// TestAPanicAtTheRelaysEndSaysThatThereMayBeMore: a sender goes on until the relay hears
// it out, and nobody reads what stands behind the panic. It fails where the log has no
// word of that.
func TestAPanicAtTheRelaysEndSaysThatThereMayBeMore(t *testing.T) {
	s, dir, _ := prepare(t)
	s.tap = func(conn net.Conn) net.Conn { return &poisonous{Conn: conn} }
	s.quiet, s.patience, s.endWithin = time.Minute, time.Minute, 2*time.Minute
	var log syncBuffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	stop := run(t, s)
	conn, err := net.Dial("tcp", s.Addrs("tcp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sends(t, conn, 0, 1)
	has(t, dir, "cn1", "seq=0.")
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the relay ends: %v", err)
	}
	if _, err := fmt.Fprintln(conn, "poison"); err != nil {
		t.Error(err)
	}
	<-stopped
	if text := log.String(); !strings.Contains(text, "or_more=true") {
		t.Errorf("the log has %s", text)
	}
}
