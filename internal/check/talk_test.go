package check

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/state"
	"holdfast/lab/stall"
)

// answerer is a TCP server that reads a line and answers what reply makes of it,
// in two pieces.
func answerer(t *testing.T, reply func(line string) string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				line, _ := bufio.NewReader(conn).ReadString('\n')
				text := reply(line)
				_, _ = conn.Write([]byte(text[:len(text)/2]))
				_, _ = conn.Write([]byte(text[len(text)/2:]))
			}()
		}
	}()
	return listener.Addr().String()
}

func TestTCPSaysAndHears(t *testing.T) {
	address := answerer(t, func(line string) string {
		if line == "PING\r\n" {
			return "+PONG\r\n"
		}
		return "-ERR unknown\r\n"
	})
	expect(t, probe(t, Definition{TCP: address, Send: "PING\r\n", Expect: "+PONG"}, nil), state.Passing, `answered "+PONG"`)
	expect(t, probe(t, Definition{TCP: address, Send: "PONG\r\n", Expect: "+PONG"}, nil), state.Critical,
		`"+PONG" did not come: EOF`, `heard "-ERR unknown\r\n"`)
	expect(t, probe(t, Definition{TCP: address, Send: "PING\r\n"}, nil), state.Passing, "sent 6 bytes")
	expect(t, probe(t, Definition{TCP: address, Expect: "+PONG", Timeout: 100 * time.Millisecond}, nil), state.Critical, "no answer within 100ms")
}

func TestTCPDoesNotListenForEver(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for { // until the probe has had enough
			if _, err := conn.Write(make([]byte, 4<<10)); err != nil {
				return
			}
		}
	}()
	expect(t, probe(t, Definition{TCP: listener.Addr().String(), Expect: "+PONG", Timeout: 5 * time.Minute}, nil), state.Critical, "not in the first 65536 bytes")
}

// datagrams is a UDP server; reply "" is silence.
func datagrams(t *testing.T, reply func(text string) string) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if text := reply(string(buffer[:n])); text != "" {
				_, _ = conn.WriteTo([]byte(text), from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

func TestUDPIsRefusedSilentOrAnswers(t *testing.T) {
	address := datagrams(t, func(text string) string {
		if text == "" {
			return ""
		}
		return "echo " + text
	})
	expect(t, probe(t, Definition{UDP: address}, nil), state.Passing, "not refused")
	expect(t, probe(t, Definition{UDP: address, Send: "x", Expect: "echo x", Timeout: time.Minute}, nil), state.Passing, `answered "echo x"`)
	// It must hear what it does not want: a time limit in which the server did not
	// come to answer shows nothing, and is doubled.
	for limit := 500 * time.Millisecond; ; limit *= 2 {
		got := probe(t, Definition{UDP: address, Send: "x", Expect: "echo y", Timeout: limit}, nil)
		expect(t, got, state.Critical, "no answer within "+limit.String())
		if strings.Contains(got.Output, `heard "echo x"`) || t.Failed() {
			break
		}
		if limit > time.Minute {
			t.Fatalf("within %s it did not hear what was said: %s", limit, got.Output)
		}
	}
	// An answer that nobody expects is waited for only as long as a refusal is.
	machine := stall.Test(t, "")
	machine.Repeat(t, "an answer that nobody expects", 5, refusalTime/4, func() (from, to time.Time, missed error) {
		from = time.Now()
		got := probe(t, Definition{UDP: address, Send: "x"}, nil)
		to = time.Now()
		expect(t, got, state.Passing)
		if !strings.Contains(got.Output, "answered") {
			missed = fmt.Errorf("it was answered, and says %s", got.Output)
		}
		return from, to, missed
	})
	expect(t, probe(t, Definition{UDP: address, Expect: "x", Timeout: 100 * time.Millisecond}, nil), state.Critical, "no answer within 100ms")

	const nobody = "127.0.0.1:1" // one of the kernel's own choice might be given to another meanwhile
	expect(t, probe(t, Definition{UDP: nobody, Send: "x"}, nil), state.Critical, "connection refused")
	expect(t, probe(t, Definition{UDP: nobody, Send: "x", Expect: "y"}, nil), state.Critical, "connection refused")
}

// TestWhatCameWhileThisProcessStoodStillCounts: the time to wait is over when it
// goes on, and net reads nothing then, though the answer or the refusal is there.
// It fails where that is taken for silence.
func TestWhatCameWhileThisProcessStoodStillCounts(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	look := func(conn net.Conn) (string, error) {
		if err := conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		room := make([]byte, 10)
		_, late := conn.Read(room)
		if !isTimeout(late) {
			t.Fatalf("read after the deadline: %v", late)
		}
		n, err := lastLook(conn, room, late)
		return string(room[:n]), err
	}
	dial := func(address string) net.Conn {
		conn, err := net.Dial("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	until := func(what string, conn net.Conn, seen func(string, error) bool) {
		t.Helper()
		end := time.Now().Add(time.Minute)
		for {
			text, err := look(conn)
			if seen(text, err) {
				return
			}
			if !isTimeout(err) || time.Now().After(end) {
				t.Fatalf("%s: %q, %v", what, text, err)
			}
		}
	}
	conn := dial(server.LocalAddr().String())
	if text, err := look(conn); text != "" || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing came: %q, %v", text, err)
	}
	if _, err := server.WriteTo([]byte("here"), conn.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	until("an answer", conn, func(text string, err error) bool { return text == "here" && err == nil })
	refused := dial("127.0.0.1:1")
	if _, err := refused.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	until("a refusal", refused, func(_ string, err error) bool {
		return errors.Is(err, syscall.ECONNREFUSED) && reason(err, time.Second) == "read: connection refused"
	})
}

// lateUntil makes connections whose time is over and on which something was sent,
// has them looked at, and returns at the result that is wanted: what was sent may
// need a moment to come.
func lateUntil(t *testing.T, network, address string, send func(at net.Conn), hear func(net.Conn) Result, want state.Status) Result {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		conn, err := net.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		send(conn)
		got := hear(conn)
		conn.Close()
		if got.Status == want {
			return got
		}
		if time.Now().After(end) {
			t.Fatalf("what came before the time was over: %+v", got)
		}
	}
}

// TestAnAnswerBehindOthersCountsWhenLookedForLate: it fails where only the first
// datagram that came while this process stood still is looked at, and where who
// sends without end is listened to without end.
func TestAnAnswerBehindOthersCountsWhenLookedForLate(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	say := func(texts ...string) func(net.Conn) {
		return func(conn net.Conn) {
			for _, text := range texts {
				if _, err := server.WriteTo([]byte(text), conn.LocalAddr()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	address := server.LocalAddr().String()
	p := udpProbe{address: address, send: "x", expect: "yes", limit: time.Second}
	got := lateUntil(t, "udp", address, say("no", "nor this", "yes"), p.hear, state.Passing)
	expect(t, got, state.Passing, `answered "yes"`)

	endless := lateUntil(t, "udp", address, func(net.Conn) {}, func(conn net.Conn) Result {
		return p.hear(endlessly{conn, say("no")})
	}, state.Critical)
	expect(t, endless, state.Critical, "no answer within 1s")
}

// endlessly is a connection to which more is sent at each look.
type endlessly struct {
	net.Conn
	more func(net.Conn)
}

func (e endlessly) SyscallConn() (syscall.RawConn, error) {
	e.more(e.Conn)
	return e.Conn.(syscall.Conn).SyscallConn()
}

// TestAnAnswerOnAStreamCountsWhenLookedForLate: it fails where an answer that is
// there when the time is over is taken for none, be it longer than one look; and
// where the end of a stream is taken for more to come.
func TestAnAnswerOnAStreamCountsWhenLookedForLate(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	say := func(text string) func(net.Conn) {
		return func(net.Conn) {
			conn, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			conn.Close()
		}
	}
	address := listener.Addr().String()
	p := tcpProbe{address: address, expect: "+PONG", limit: time.Second}
	got := lateUntil(t, "tcp", address, say(strings.Repeat("x", 6<<10)+"+PONG"), p.hear, state.Passing)
	expect(t, got, state.Passing, `answered "+PONG"`)
	for end := time.Now().Add(time.Minute); ; {
		got := lateUntil(t, "tcp", address, say("no"), p.hear, state.Critical)
		if strings.Contains(got.Output, "EOF; heard \"no\"") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the end of a stream: %s", got.Output)
		}
	}
}
