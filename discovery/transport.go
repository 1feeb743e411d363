package discovery

import (
	"context"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport is memberlist's own, but for the streams that this node opens:
// they end with ctx. Without that, a join of a host that is powered off would
// go on for seconds after the agent has stopped.
type transport struct {
	*memberlist.NetTransport
	ctx context.Context
}

// DialTimeout opens a stream to addr.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a stream to a node.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	stream := &stream{Conn: conn}
	stream.forget = context.AfterFunc(t.ctx, func() { _ = conn.Close() })
	return stream, nil
}

// stream is a connection that the end of a context closes.
type stream struct {
	net.Conn
	forget func() bool
}

// Close closes the connection and lets go of the context.
func (s *stream) Close() error {
	s.forget()
	return s.Conn.Close()
}
