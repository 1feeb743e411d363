package logrelay

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"
)

// A session that begins while its address may go is held. Its open is answered,
// and no more is read: librelp sends nothing while it waits for that answer, for
// as long as 90 s, and what does not send does not hear that another node has the
// address. Its first line goes there then, and is answered by a reset; or it
// comes here, and is stored when it is known that the address stays.

// enter begins a client's session once its address does not go. ok is false if
// it has gone, or if the relay's end came before: then the connection is reset as
// it is closed, and nothing of it was stored.
func (s *Server) enter(ctx context.Context, c *relpConn, at netip.Addr) (session context.Context, left func(), ok bool, err error) {
	for {
		if session, left, ok = s.sessions.enter(ctx, at); ok {
			return session, left, true, nil
		}
		if err := c.greet(ctx, time.Now().Add(s.sessions.wait(at))); err != nil {
			return nil, nil, false, err
		}
		s.sessions.await(ctx, at)
		if ctx.Err() != nil || s.hasLeft(at) {
			if tcp := c.tcp(); tcp != nil {
				_ = tcp.SetLinger(0)
			}
			return nil, nil, false, nil
		}
	}
}

// hasLeft tells whether an address that was about to go has gone from this
// machine's interfaces.
func (s *Server) hasLeft(at netip.Addr) bool {
	if !s.sessions.wasLocal(at) {
		return false // it is local by a route, if at all
	}
	local, err := s.localAddresses()
	if err != nil {
		s.log.Error("which addresses this machine has can't be seen", "error", err)
		return false
	}
	if local[at] {
		s.sessions.stays(at)
	}
	return !local[at]
}

// greet answers the client's open, if that comes by then, and takes nothing that
// stands behind it.
func (c *relpConn) greet(ctx context.Context, by time.Time) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	c.readBy(ctx, by)
	defer c.readBy(ctx, time.Time{})
	for !c.session.Opened() {
		n, err := c.frame(c.buf, time.Now().UnixNano())
		if err != nil {
			return err
		}
		if n > 0 {
			c.buf = append(c.buf[:0], c.buf[n:]...)
			continue
		}
		if err := c.receive(); errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if c.owed == nil {
		return nil // it was answered before
	}
	err := c.write(c.owed.answers)
	c.free(c.owed)
	c.owed = nil
	return err
}
