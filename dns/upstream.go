package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxStray is how many datagrams that are no reply to our question one
	// try puts up with: someone is guessing, and TCP can't be guessed.
	maxStray = 64
	// maxReply is the largest datagram read, in bytes: servers without EDNS
	// send 512, those that ignore our limit up to this.
	maxReply = 4096
)

// upstream is one forwarder.
type upstream struct {
	addr      netip.AddrPort
	label     string
	large     turn          // of the route
	downUntil atomic.Int64  // Unix nanoseconds; asked last until then
	heard     atomic.Uint64 // replies to our questions, of any content
	latency   atomic.Int64  // nanoseconds, smoothed; 0: not measured yet
	folds     atomic.Bool   // does not keep the case of questions
	looping   atomic.Bool   // leads back to us
	probed    atomic.Bool   // the last probe came back
}

// measured takes the time of one reply into the smoothed latency (RFC 6298
// §2); at least that long when the reply was not waited for.
func (u *upstream) measured(took time.Duration, replied bool) {
	old := time.Duration(u.latency.Load())
	switch {
	case old == 0:
		u.latency.Store(int64(max(took, 1)))
	case replied:
		u.latency.Store(int64(max(old+(took-old)/8, 1)))
	case took > old:
		u.latency.Store(int64(took))
	}
}

// ask puts q's question to the forwarder: over UDP from a new socket, whose
// port the kernel chose at random, in letters of random case; over TCP when
// the reply was truncated (RFC 7766 §5), or may be forged. It blocks until ctx
// ends.
func (u *upstream) ask(ctx context.Context, q *query, edns bool) (*dns.Msg, error) {
	m, err := upstreamQuery(q, edns)
	if err != nil {
		return nil, err
	}
	if u.folds.Load() {
		m.Question[0].Name = strings.ToLower(m.Question[0].Name)
	} else {
		m.Question[0].Name = mixCase(m.Question[0].Name, rand.Uint64)
	}
	reply, err := u.exchange(ctx, "udp", m)
	if errors.Is(err, errStray) || errors.Is(err, errFolded) || err == nil && reply.Truncated {
		reply, err = u.exchange(ctx, "tcp", m)
		if errors.Is(err, errFolded) { // over TCP it is its own word
			u.folds.Store(true)
			err = nil
		}
	}
	if err == nil && reply.Truncated {
		err = fmt.Errorf("%w: truncated over TCP", errMalformed)
	}
	return reply, err
}

// exchange sends m on a connection of its own and returns the reply. The
// socket is connected: datagrams from elsewhere don't reach it. Nothing of it
// is left when it returns.
func (u *upstream) exchange(ctx context.Context, network string, m *dns.Msg) (*dns.Msg, error) {
	socket, err := new(net.Dialer).DialContext(ctx, network, u.addr.String())
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	stop := context.AfterFunc(ctx, func() { _ = socket.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := &dns.Conn{Conn: socket, UDPSize: maxReply}
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	reply, err := u.await(ctx, conn, m, network == overTCP)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("no reply: %w", ctx.Err())
	}
	return reply, err
}

// await reads until the reply to m comes. Datagrams that are none are passed
// over, up to a number; on a stream the first one is the end.
func (u *upstream) await(ctx context.Context, conn *dns.Conn, m *dns.Msg, stream bool) (*dns.Msg, error) {
	for range maxStray {
		wire, err := conn.ReadMsgHeader(nil)
		if err != nil && !errors.Is(err, dns.ErrShortRead) {
			return nil, err
		}
		if len(wire) > maxReply {
			if err := u.large.take(ctx); err != nil {
				return nil, err
			}
			defer u.large.end()
		}
		reply, err := readReply(wire, m)
		if !errors.Is(err, errStray) {
			u.heard.Add(1)
			return reply, err
		}
		if stream {
			return nil, fmt.Errorf("%w: another ID or question over TCP", errMalformed)
		}
	}
	return nil, fmt.Errorf("%d datagrams: %w", maxStray, errStray)
}
