package logrelay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

// maxLine is the greatest syslog message over TCP in bytes; more is cut.
const maxLine = 128 << 10

// streamConn is the connection of a sender of syslog by TCP or TLS. It belongs to one
// goroutine, but for goAway.
type streamConn struct {
	s      *Server
	conn   net.Conn
	via    uint8
	source netip.Addr
	framer syslog.Framer
	buf    []byte // received and not taken apart
	batch  journal.Batch
	keep   *keeper
	away   sync.Once
}

// serveStream serves a sender of syslog over TCP or TLS until it leaves, its
// address has gone from this machine, or ctx ends. Nothing is acknowledged: the
// protocol has no word for it.
func (s *Server) serveStream(ctx context.Context, conn net.Conn, via uint8) error {
	c := &streamConn{
		s: s, conn: conn, via: via, source: addrOf(conn.RemoteAddr()), framer: syslog.Framer{Max: maxLine},
		buf: make([]byte, 0, firstBuffer), keep: s.newKeeper(ctx, via),
	}
	session, left, away := s.sessions.enterStream(ctx, addrOf(conn.LocalAddr()), c.goAway)
	defer left()
	defer c.keep.end()
	if away {
		c.goAway()
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(session, func() {
		defer close(woken)
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	for s.gate.wait(session) == nil {
		switch err := c.receive(session); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && session.Err() == nil:
			return err
		}
	}
	<-woken // else it may still set the deadline for reads
	return c.hearOut(ctx)
}

// receive reads what is there, one byte at least, and has its lines kept. It
// blocks while too much waits for the disk, or until ctx ends.
func (c *streamConn) receive(ctx context.Context) error {
	if len(c.buf) == cap(c.buf) {
		c.buf = append(make([]byte, 0, min(2*cap(c.buf), 2*maxLine)), c.buf...)
	}
	n, failed := c.conn.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	now, at := time.Now().UnixNano(), 0
	for {
		message, size, err := c.framer.Next(c.buf[at:])
		if err != nil {
			failed = errors.Join(failed, err)
			break
		}
		if at += size; size == 0 {
			break
		}
		if len(message) > 0 {
			c.batch.Add(journal.Record{Time: now, Source: c.source, Input: c.via, Data: message})
		}
	}
	c.buf = append(c.buf[:0], c.buf[at:]...)
	if errors.Is(failed, io.EOF) {
		c.last(now)
	}
	c.s.metrics.cutLines(c.via, &c.framer.Cut)
	c.keep.put(ctx, &c.batch)
	return failed
}

// last takes the last line, which lacks its end.
func (c *streamConn) last(now int64) {
	if len(c.buf) > 0 {
		c.batch.Add(journal.Record{Time: now, Source: c.source, Input: c.via, Data: c.buf})
		c.buf = c.buf[:0]
	}
}

// goAway closes our half of the connection, which tells a sender that looks to
// connect anew; rsyslog looks before each line, and sends that by the new
// connection. What comes is read as before. TLS's close_notify is left out, since
// rsyslog looks with recv for an end of the stream, and would find the alert in
// front of it. It doesn't block, and may be called from any goroutine.
func (c *streamConn) goAway() {
	c.away.Do(func() {
		if tcp := below(c.conn); tcp != nil {
			_ = tcp.CloseWrite() // else the sender is gone
		}
	})
}

// hearOut takes what the sender has sent, at the end of the relay or when its
// address has gone, until it is quiet or was heard for long: to close before
// throws away what the kernel has received. While lines may not come, it waits
// there for as long as the relay runs.
func (c *streamConn) hearOut(ctx context.Context) error {
	c.goAway()
	_ = c.s.gate.wait(ctx)
	if c.s.gate.held() != "" {
		return nil
	}
	hearing, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.s.patience)
	defer cancel()
	var err error
	for err == nil && hearing.Err() == nil {
		_ = c.conn.SetReadDeadline(time.Now().Add(c.s.quiet))
		err = c.receive(hearing)
	}
	c.last(time.Now().UnixNano())
	c.keep.put(hearing, &c.batch)
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// put appends a batch that nobody waits for, and empties it.
func (s *Server) put(ctx context.Context, batch *journal.Batch, via uint8, p *promises) error {
	if batch.Len() == 0 {
		return nil
	}
	commit, err := s.journal.Append(context.WithoutCancel(ctx), batch)
	if err == nil {
		p.add(commit, batch.Len())
	}
	s.metrics.input(via).took(batch.Len(), batch.Size())
	batch.Reset()
	return err
}
