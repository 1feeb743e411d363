package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	maxTalk   = 4 << 10 // bytes that a probe sends
	maxExpect = 256     // bytes that it waits for
	// maxHeard is how much of an answer is searched for what is expected.
	maxHeard = 64 << 10
	// maxLooks is how often a probe looks for more of what came before its time
	// was over.
	maxLooks = 16
)

// tcpProbe connects, says what is to be said, and waits for what is expected;
// without either it closes at once.
type tcpProbe struct {
	address string
	send    string
	expect  string
	via     Via
	limit   time.Duration
}

func (p tcpProbe) Probe(ctx context.Context) Result {
	conn, err := p.via.dial(ctx, "tcp", p.address)
	if err != nil {
		return critical("TCP connect %s: %s", p.address, reason(err, p.limit))
	}
	defer conn.Close()
	if p.send == "" && p.expect == "" {
		return passing("TCP connect %s: success", p.address)
	}
	if err := talk(ctx, conn, p.send); err != nil {
		return critical("TCP %s: connected, but sending failed: %s", p.address, reason(err, p.limit))
	}
	if p.expect == "" {
		return passing("TCP %s: sent %d bytes", p.address, len(p.send))
	}
	return p.hear(conn)
}

// hear waits for what is expected, until the connection's deadline.
func (p tcpProbe) hear(conn net.Conn) Result {
	var heard []byte
	part := make([]byte, 4<<10)
	for looks := 0; len(heard) <= maxHeard; {
		n, err := conn.Read(part)
		if isTimeout(err) && looks < maxLooks {
			looks++
			if n, err = lastLook(conn, part, err); n == 0 && err == nil {
				err = io.EOF
			}
		}
		heard = append(heard, part[:n]...)
		if bytes.Contains(heard, []byte(p.expect)) {
			return passing("TCP %s: answered %q", p.address, p.expect)
		}
		if err != nil {
			return critical("TCP %s: %q did not come: %s%s", p.address, p.expect, reason(err, p.limit), heardText(heard))
		}
	}
	return critical("TCP %s: %q is not in the first %d bytes", p.address, p.expect, maxHeard)
}

// udpProbe sends one datagram. When an answer is expected, it must come; when
// none is, silence is as good, and only a refusal (ICMP port unreachable, RFC
// 1122 §4.1.3.1) is bad news, as for Consul.
type udpProbe struct {
	address string
	send    string
	expect  string
	limit   time.Duration
}

// refusalTime is how long a refusal is waited for when no answer is expected.
const refusalTime = 200 * time.Millisecond

func (p udpProbe) Probe(ctx context.Context) Result {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", p.address)
	if err != nil {
		return critical("UDP %s: %s", p.address, reason(err, p.limit))
	}
	defer conn.Close()
	if err := talk(ctx, conn, p.send); err != nil {
		return critical("UDP %s: %s", p.address, reason(err, p.limit))
	}
	if p.expect == "" { // of the time from here on: sending may have taken longer
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, refusalTime)
		defer cancel()
		defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	}
	return p.hear(conn)
}

// hear waits for what is expected, or whatever comes, until the connection's deadline.
func (p udpProbe) hear(conn net.Conn) Result {
	datagram := make([]byte, maxHeard)
	var last []byte
	for looks := 0; ; {
		n, err := conn.Read(datagram)
		if isTimeout(err) && looks < maxLooks {
			looks++
			n, err = lastLook(conn, datagram, err)
		}
		switch {
		case err == nil && p.expect == "":
			return passing("UDP %s: answered", p.address)
		case err == nil && bytes.Contains(datagram[:n], []byte(p.expect)):
			return passing("UDP %s: answered %q", p.address, p.expect)
		case err == nil:
			last = append(last[:0], datagram[:n]...)
		case p.expect == "" && isTimeout(err):
			return passing("UDP %s: not refused", p.address)
		default:
			return critical("UDP %s: %s%s", p.address, reason(err, p.limit), heardText(last))
		}
	}
}

// lastLook takes what has come to a socket, a datagram or a part of a stream, by the
// time that waiting for it was over: a process that stood still until then has not
// looked once. If nothing has, the error is the one that is given. The end of a
// stream is no byte and no error.
func lastLook(conn net.Conn, into []byte, nothing error) (n int, err error) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return 0, nothing
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	failed := raw.Control(func(fd uintptr) { n, _, err = syscall.Recvfrom(int(fd), into, syscall.MSG_DONTWAIT) })
	switch {
	case failed != nil:
		return 0, failed
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
		return 0, nothing
	case err != nil:
		return 0, os.NewSyscallError("read", err) // as net says it
	}
	return n, nil
}

// talk sends what is to be said and has everything on the connection end with
// ctx. An empty text goes out as an empty datagram; on a stream it is nothing.
func talk(ctx context.Context, conn net.Conn, text string) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	_, err := conn.Write([]byte(text))
	return err
}

// heardText is what was heard instead, for the output.
func heardText(heard []byte) string {
	if len(heard) == 0 {
		return ""
	}
	return fmt.Sprintf("; heard %.100q", heard)
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}
