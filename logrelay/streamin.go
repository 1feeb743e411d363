package logrelay

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/kernel/sockopt"
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
	// begun: something was taken of it. asked: it is to go elsewhere. Both may be set
	// by different goroutines, and whoever sets the second sees the first.
	begun, asked atomic.Bool
	away         sync.Once
	taken        uint64 // bytes that were read
}

// serveStream serves a sender of syslog over TCP or TLS until it leaves, its
// address has gone from this machine, or ctx ends. Nothing is acknowledged: the
// protocol has no word for it.
func (s *Server) serveStream(ctx context.Context, conn net.Conn, via uint8) error {
	c := &streamConn{
		s: s, conn: conn, via: via, source: addrOf(conn.RemoteAddr()), framer: syslog.Framer{Max: maxLine},
		buf: make([]byte, 0, firstBuffer), keep: s.newKeeper(ctx, via),
	}
	session, left := s.sessions.enterStream(ctx, addrOf(conn.LocalAddr()), c.dismiss)
	defer left()
	defer c.keep.end()
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
	if c.taken += uint64(n); n > 0 {
		if c.begun.Store(true); c.asked.Load() {
			c.goAway()
		}
	}
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

// dismiss asks the sender to go elsewhere, once something was taken of it: rsyslog
// takes a connection that ends before its first line for a failed attempt, and
// passes over what it has for 30 s. It says whether this is the first time, and may
// be called from any goroutine.
func (c *streamConn) dismiss() bool {
	first := !c.asked.Swap(true)
	if c.begun.Load() {
		c.goAway()
	}
	return first
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
// address has gone: to close before throws away what the kernel has received. When
// the address has gone nothing new can come, so it reads until nothing is left,
// however long that takes; while lines may not come, it waits there. When the relay
// ends, it reads for as long as the sender is not quiet, for patience at most; what
// the kernel has by then is the last that is taken, and what is not is counted.
func (c *streamConn) hearOut(ctx context.Context) error {
	c.goAway()
	disk, cancel := context.WithCancel(context.WithoutCancel(ctx)) // ends when the disk was waited for
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(answerWithin, cancel) })
	defer stop()
	var until time.Time // when the patience is over
	var err error
	for left := math.MaxInt; err == nil && left > 0; {
		if c.s.gate.wait(ctx) != nil { // the relay ends
			if c.s.gate.held() != "" || disk.Err() != nil {
				break
			}
			if until.IsZero() {
				until = time.Now().Add(c.s.patience)
			}
			if left == math.MaxInt && time.Now().After(until) {
				left = c.unread()
				continue
			}
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(c.s.quiet))
		before := c.taken
		err = c.receive(disk)
		if left != math.MaxInt {
			left -= int(c.taken - before)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && c.unread() > 0 {
			err = nil // it was us who stood still: a deadline that has passed is not tried
		}
	}
	c.last(time.Now().UnixNano())
	c.keep.put(disk, &c.batch)
	if err == nil {
		c.drop()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// unread is how many bytes the kernel has received that were not read; 0 if it
// can't be said.
func (c *streamConn) unread() int {
	tcp := below(c.conn)
	if tcp == nil {
		return 0
	}
	n, err := sockopt.Unread(tcp)
	if err != nil {
		return 0 // the sender is gone
	}
	return n
}

// drop counts the lines that the kernel has received and that nobody will take.
func (c *streamConn) drop() {
	size := c.unread()
	if size == 0 {
		return
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(c.s.quiet)) // what is there is read at once
	buf, lines := make([]byte, 2*maxLine), 0
	kept, read := 0, 0
	for read < size {
		n, err := c.conn.Read(buf[kept:])
		read, kept = read+n, kept+n
		at := 0
		for at < kept {
			message, taken, failed := c.framer.Next(buf[at:kept])
			if failed != nil || taken == 0 {
				break
			}
			if at += taken; len(message) > 0 {
				lines++
			}
		}
		if kept = copy(buf, buf[at:kept]); err != nil || kept == len(buf) {
			break
		}
	}
	if kept > 0 {
		lines++ // its end is not here, or will never be found
	}
	c.s.metrics.lost[c.via].Add(float64(lines))
	c.s.log.Error("lines that no sender keeps are lost: the relay ends and they were not read",
		"input", inputName(c.via), "client", c.source, "lines", lines, "bytes", size)
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
