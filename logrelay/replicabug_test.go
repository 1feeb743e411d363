package logrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// sour is a connection that panics as it is closed, and as nothing else.
type sour struct{ net.Conn }

func (sour) Close() error { panic("poison") }

func (c sour) NetConn() net.Conn { return c.Conn }

// TestANodeThatTakesLinesMayPanic: where it says who it is, and where it is read, written
// to and left. It fails where a panic ends the process, or where the connection is given
// to whoever ships lines without a guard.
func TestANodeThatTakesLinesMayPanic(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	list, err := tls.Listen("tcp", netip.AddrPortFrom(all[1].addr, testReplica).String(), all[1].deps.ReplicaTLS)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := list.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, conn) // shakes hands
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = list.Close(); <-done })
	other := Other{"fb2", all[1].addr}
	j := newJournal(t)
	cursor, err := j.Cursor("replica", false)
	if err != nil {
		t.Fatal(err)
	}
	s := &shipper{node: "fb1", port: testReplica, journal: j, cursor: cursor, replicas: &replicas{changed: make(chan struct{})}, bugs: all[0].bugs}
	s.tls = func(name string) *tls.Config {
		config := all[0].deps.PeerTLS(name).Clone()
		config.VerifyConnection = func(tls.ConnectionState) error { panic("poison") }
		return config
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.ship(ctx, other, func() {}); !errors.Is(err, errBug) {
		t.Errorf("a handshake that panics: %v", err)
	}
	s.tls = all[0].deps.PeerTLS
	conn, err := s.dial(ctx, other)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // or its listener waits
	guarded, ok := conn.(guardedConn)
	if !ok {
		t.Fatalf("the connection is a %T", conn)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	here, _ := pipe(t)
	guarded.Conn = broken{Conn: here, read: true, write: true}
	if err := s.answers(guarded, 0, func(uint64) {}); !errors.Is(err, errBug) {
		t.Errorf("an answer that panics: %v", err)
	}
	if _, err := guarded.Write([]byte("x")); !errors.Is(err, errBug) {
		t.Errorf("a write that panics: %v", err)
	}
	socket, there := tcpPair(t)
	guarded.Conn = sour{socket}
	if err := guarded.Close(); !errors.Is(err, errBug) {
		t.Errorf("an end that panics: %v", err)
	}
	if _, err := there.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the socket is open where TLS panics at its end: %v", err)
	}
	if n := s.bugs.count; n != 4 {
		t.Errorf("%d panics are told of, want 4", n)
	}
}

// tcpPair are the two ends of a connection. A read of the second waits for a minute at
// most.
func tcpPair(t *testing.T) (here, there net.Conn) {
	t.Helper()
	list, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	if there, err = net.Dial("tcp", list.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = there.Close() })
	if here, err = list.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = here.Close() })
	_ = there.SetReadDeadline(time.Now().Add(time.Minute))
	return here, there
}

// TestAClientThatSaysNothingIsLeftBelowTLS, which would write, and may panic where
// nothing recovers. It fails where it is asked, which ends the process, and where the
// connection stays.
func TestAClientThatSaysNothingIsLeftBelowTLS(t *testing.T) {
	s, _, _ := prepare(t)
	s.openWithin = time.Millisecond
	here, there := tcpPair(t)
	o := newOpening(s, sour{here})
	defer o.end()
	if _, err := there.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a minute later: %v", err)
	}
}
