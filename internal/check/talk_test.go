package check

import (
	"bufio"
	"net"
	"testing"
	"time"

	"holdfast/internal/state"
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
	expect(t, probe(t, Definition{TCP: listener.Addr().String(), Expect: "+PONG", Timeout: 20 * time.Second}, nil), state.Critical, "not in the first 65536 bytes")
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
	expect(t, probe(t, Definition{UDP: address, Send: "x"}, nil), state.Passing, "answered")
	expect(t, probe(t, Definition{UDP: address, Send: "x", Expect: "echo x"}, nil), state.Passing, `answered "echo x"`)
	expect(t, probe(t, Definition{UDP: address, Send: "x", Expect: "echo y", Timeout: 2 * time.Second}, nil), state.Critical, // it must hear what it does not want
		"no answer within 2s", `heard "echo x"`)
	expect(t, probe(t, Definition{UDP: address, Expect: "x", Timeout: 100 * time.Millisecond}, nil), state.Critical, "no answer within 100ms")

	const nobody = "127.0.0.1:1" // one of the kernel's own choice might be given to another meanwhile
	expect(t, probe(t, Definition{UDP: nobody, Send: "x"}, nil), state.Critical, "connection refused")
	expect(t, probe(t, Definition{UDP: nobody, Send: "x", Expect: "y"}, nil), state.Critical, "connection refused")
}
