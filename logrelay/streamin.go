package logrelay

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

// maxLine is the greatest syslog message over TCP in bytes; more is cut.
const maxLine = 128 << 10

// streamsEnd is how long after the relay's end what streams brought may still be
// written to the disk. They are read in the first half of it, and what is left is
// counted in the third quarter; all tasks of the relay have ten seconds together.
const streamsEnd = 4 * time.Second

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
	taken        int // bytes that were read
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
		case errors.Is(err, errBug):
			return err // also where the session ends just then: nobody knows where the next line begins
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
	failed := c.read()
	c.s.metrics.cutLines(c.via, &c.framer.Cut)
	c.keep.put(ctx, &c.batch)
	return failed
}

// read reads what is there, one byte at least, and puts the lines into the batch.
// A panic is a bug that ends the connection: what came of it and was not taken
// apart is lost, and counts as one line, since nobody knows how many it is. Where
// nothing was read, as where TLS panics behind the last line, there is none.
func (c *streamConn) read() (failed error) {
	filled := false
	defer func() {
		if p := recover(); p != nil {
			failed = c.s.bugs.input(c.via, p, "client", c.source, "bytes", len(c.buf))
			if filled || len(c.buf) > 0 {
				c.s.metrics.lost[c.via].Inc()
			}
			c.buf = c.buf[:0]
		}
	}()
	failed = c.fill()
	filled = true
	now := time.Now().UnixNano()
	err := c.frames(func(message []byte) {
		c.batch.Add(journal.Record{Time: now, Source: c.source, Input: c.via, Data: message})
	})
	if err != nil {
		failed = errors.Join(failed, err)
	}
	if errors.Is(failed, io.EOF) {
		c.last(now)
	}
	return failed
}

// fill reads into the buffer what is there, one byte at least.
func (c *streamConn) fill() error {
	if len(c.buf) == cap(c.buf) {
		c.buf = append(make([]byte, 0, min(2*cap(c.buf), 2*maxLine)), c.buf...)
	}
	n, err := c.conn.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	if c.taken += n; n > 0 {
		if c.begun.Store(true); c.asked.Load() {
			c.goAway()
		}
	}
	return err
}

// frames gives each whole message of the buffer to take, and keeps what is behind.
func (c *streamConn) frames(take func(message []byte)) error {
	at := 0
	for {
		message, size, err := c.framer.Next(c.buf[at:])
		if err != nil || size == 0 {
			c.buf = append(c.buf[:0], c.buf[at:]...)
			return err
		}
		if at += size; len(message) > 0 {
			take(message)
		}
	}
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
// ends, it reads for as long as the sender is not quiet, for patience at most, and
// then what the kernel has, until Server.reading. What is not taken is counted.
func (c *streamConn) hearOut(ctx context.Context) error {
	c.goAway()
	var until time.Time // when the patience is over
	refused := false
	for {
		if c.s.gate.wait(ctx) != nil { // the relay ends
			if c.s.gate.held() != "" || c.s.reading.Err() != nil {
				c.drop()
				return nil
			}
			if until.IsZero() {
				until = time.Now().Add(c.s.patience)
			}
			if time.Now().After(until) {
				refused = true
				c.refuse()
			}
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(c.s.quiet))
		err := c.receive(c.s.reading)
		switch {
		case err == nil:
			continue
		case errors.Is(err, os.ErrDeadlineExceeded) && c.unread() > 0:
			continue // it was us who stood still: a deadline that has passed is not tried
		case errors.Is(err, os.ErrDeadlineExceeded) && c.via == viaTLS && ctx.Err() != nil && !refused:
			refused = true
			c.refuse() // the next read says whether this was amid a record
			continue
		case errors.Is(err, os.ErrDeadlineExceeded) || noMore(err):
			if amidRecord(err) && ctx.Err() != nil {
				c.s.lastLosses.more.Store(true) // the sender's kernel was told that it has come
			}
			err = nil
		case errors.Is(err, errBug) && ctx.Err() != nil:
			c.s.lastLosses.more.Store(true) // what stands behind it is not read
		}
		c.end()
		return err
	}
}

// refuse has the kernel take no more of the sender: a read waits no longer, and what
// comes behind our closed half is answered with a reset (tcp_rcv_state_process of
// Linux), so that the sender hears at once that nobody takes it. What has come stays
// and can be read.
func (c *streamConn) refuse() {
	if tcp := below(c.conn); tcp != nil {
		_ = tcp.CloseRead() // else the sender is gone
	}
}

// noMore tells whether the error of a read is that nothing more comes: the sender has
// ended, or went on behind refuse. By TLS the end may be amid a record.
func noMore(err error) bool {
	return errors.Is(err, io.EOF) || amidRecord(err) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// amidRecord tells whether a stream has ended amid a record of TLS (crypto/tls gives
// io.EOF only between two).
func amidRecord(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }

// end has the line kept of which nothing more will come.
func (c *streamConn) end() {
	c.last(time.Now().UnixNano())
	c.keep.put(c.s.reading, &c.batch)
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

// drop reads what has come and that nobody will take, and counts its lines, for a
// quarter of endWithin at most, behind which there may be more. So there may by TLS in
// a record that has not come whole: it can't be deciphered. Where nothing has come,
// the beginning of a line that was read before is the last, and kept.
func (c *streamConn) drop() {
	c.refuse()
	until := time.Now().Add(c.s.endWithin / 4)
	_ = c.conn.SetReadDeadline(until)
	lines, began := 0, c.taken
	count := func([]byte) { lines++ }
	var err error
	for err == nil && time.Now().Before(until) {
		err = c.s.guard(c.via, func() error { return errors.Join(c.fill(), c.frames(count)) })
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, errBug) || amidRecord(err) {
		c.s.lastLosses.more.Store(true)
	}
	if c.taken == began {
		c.end()
		return
	}
	if len(c.buf) > 0 {
		lines++ // its end is not here, or will never be found
	}
	c.s.lastLosses.add(c.s, c.via, lines, errors.New("they were not read: "+cmp.Or(c.s.gate.held(), "the time was over")))
}

// lastLosses are the lines of senders by TCP and TLS that are lost at the relay's end,
// and those that the journal has yet to write; each are told in one line of the log
// however many connections there were.
type lastLosses struct {
	mu                 sync.Mutex
	lines, connections int
	why                error       // of the first
	left               int         // lines that are not on the disk yet
	more               atomic.Bool // than lines may be lost: nobody counted them to the end
}

func (l *lastLosses) add(s *Server, via uint8, lines int, why error) {
	s.metrics.lost[via].Add(float64(lines))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines += lines
	l.connections++
	l.why = cmp.Or(l.why, why)
}

// leave notes lines that the journal has yet to write.
func (l *lastLosses) leave(lines int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left += lines
}

// tell is called when all connections have ended.
func (l *lastLosses) tell(log *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines > 0 || l.more.Load() {
		log.Error("lines that no sender keeps are lost: the relay ends", "lines", l.lines, "or_more", l.more.Load(), "times", l.connections, "error", l.why)
	}
	if l.left > 0 {
		log.Warn("lines that no sender keeps are not yet on the disk: the relay ends when it has taken them; to kill it loses them", "lines", l.left)
	}
	l.lines, l.connections, l.why, l.left = 0, 0, nil, 0
	l.more.Store(false)
}
