package logrelay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// Limits of a RELP connection.
const (
	firstBuffer  = 4 << 10  // 10,000 idle clients take memory too
	windowBuffer = 64 << 10 // to which the buffer of one who fills it grows: a window goes into one append
	batchBytes   = 1 << 20  // lines of a connection that go into one append
	answerWithin = 2 * time.Minute
	lingerFor    = 5 * time.Second
	answersRead  = 300 * time.Millisecond // in which a client reads answers that were sent
	// At a planned end a client is heard out until it is quiet so long, and
	// one that never is for so long at most.
	quietFor    = 100 * time.Millisecond
	hearOutMost = time.Second
	// busyLines are so many lines at once that the client has more.
	busyLines = 8
)

// relpConn is a client's connection. It belongs to one goroutine, but for what
// waits for answers.
type relpConn struct {
	s       *Server
	conn    net.Conn
	source  netip.Addr
	via     uint8
	session relp.Server
	cutter  relp.Cutter
	own     *visit
	opening *opening
	buf     []byte // received and not taken apart
	filled  bool   // by the last read, to its end
	batch   journal.Batch
	owed    *owed          // for the frames that were taken apart and not stored; nil: there are none
	busy    bool           // the client has more to send than it may
	last    journal.Commit // of the lines before
	waiting waiting
	closed  bool // the client said close
	// The session's first frames, while it is not known whether they are here.
	resent     *resent
	held       journal.Batch
	heldTxnrs  []uint32
	heldHashes []uint64
	decideBy   time.Time // when that is to be known
	fits       fits      // those that are stored
	idleFrom   time.Time // when it was last set when an idle client gives back memory
}

// serveRELP serves a client until it leaves or ctx ends. Then what is durable
// is acknowledged, and the connection closed so that the client hears of it.
func (s *Server) serveRELP(ctx context.Context, conn net.Conn, via uint8) error {
	return s.newRELP(conn, via).serve(ctx)
}

func (s *Server) newRELP(conn net.Conn, via uint8) *relpConn {
	c := &relpConn{s: s, conn: conn, source: addrOf(conn.RemoteAddr()), via: via, own: &visit{}, buf: make([]byte, 0, firstBuffer)}
	c.waiting.turn.L = &c.waiting.mu
	return c
}

// serve is serveRELP, of a client whose open may have been answered.
func (c *relpConn) serve(ctx context.Context) (err error) {
	s, conn := c.s, c.conn
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	defer context.AfterFunc(s.ending, func() {
		if tcp := c.tcp(); tcp != nil {
			_ = tcp.Close() // who doesn't read answers; what is not answered comes again
		}
	})()
	defer func() {
		// It ended the connection, so the rest is what comes of that.
		if failed := c.settle(0); failed != nil {
			err = failed
		}
	}()
	if late := s.arrivals.wait(ctx, s.awaitable()); len(late) > 0 && s.arrivals.tell(time.Now()) {
		s.log.Warn("clients begin though lines of other nodes are still on their way here: their older ones may stand behind the next",
			"client", conn.RemoteAddr().String(), "nodes", late)
	}
	c.own = s.visits.enter(c.source, time.Now().UnixNano())
	defer s.visits.leave(c.source, c.own)
	c.compare(time.Now().UnixNano())
	defer c.endFits()
	c.compareAlone()
	c.opening = newOpening(s, conn)
	defer c.opening.end()
	c.opening.heard(&c.session)
	for held := len(c.buf) > 0; ; held = false { // behind its open
		if err := s.gate.wait(ctx); err != nil {
			return c.leave(ctx, woken)
		}
		c.deadline(ctx)
		var err error
		if !held {
			err = c.receive()
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
			c.quiet(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded), err == nil && ctx.Err() != nil:
			return c.leave(ctx, woken)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := c.take(ctx); err != nil {
			return err
		}
		if c.closed {
			return c.hangUp()
		}
	}
}

// receive reads what is there, one byte at least.
func (c *relpConn) receive() (failed error) {
	defer func() {
		if p := recover(); p != nil { // of TLS
			failed = c.s.bugs.input(c.via, p, "client", c.source)
		}
	}()
	if len(c.buf) == cap(c.buf) || c.filled {
		c.buf = append(make([]byte, 0, min(2*cap(c.buf), relp.MaxFrame+firstBuffer)), c.buf...)
	}
	n, err := c.conn.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	c.filled = len(c.buf) == cap(c.buf) && cap(c.buf) < windowBuffer
	if n > 0 {
		c.own.heard.Store(time.Now().UnixNano())
		return nil
	}
	return err
}

// take takes what was received apart, makes it durable and answers it.
func (c *relpConn) take(ctx context.Context) error {
	now := time.Now().UnixNano()
	at := 0
	for !c.closed {
		n, err := c.frame(c.buf[at:], now)
		c.opening.heard(&c.session)
		if err != nil {
			// What came before the mistake is stored and answered.
			return errors.Join(c.store(ctx), err)
		}
		if n == 0 {
			break
		}
		if at += n; c.batch.Size() >= batchBytes {
			if err := c.store(ctx); err != nil {
				return err
			}
		}
	}
	if c.cutter.Amid() {
		_ = sockopt.QuickAck(c.tcp()) // as below
	}
	c.buf = append(c.buf[:0], c.buf[at:]...)
	busy := c.batch.Len() >= busyLines || c.pending()
	if err := c.store(ctx); err != nil {
		return err
	}
	// librelp sends as Nagle's algorithm has it: a frame's second piece, and the
	// frames behind, wait until what it sent is acknowledged. Our answer does
	// that, but it waits for the disks; so those that could wait with this one,
	// and a frame that is not whole, are asked for.
	if len(c.buf) > 0 || busy || c.busy {
		_ = sockopt.QuickAck(c.tcp()) // else it is only slow
	}
	c.busy = busy
	if c.s.replicas == nil {
		// There is one disk, whose next sync nothing shortens: what comes until
		// this one ends is read at once then, and is fewer appends.
		return c.settle(0)
	}
	return nil
}

// frame acts on the frame at the start of b and returns how many bytes it took; 0
// while it is not whole. A panic is a bug that ends the session: the line was not
// answered, and comes again.
func (c *relpConn) frame(b []byte, now int64) (n int, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = c.s.bugs.input(c.via, p, "client", c.source, "bytes", len(b))
		}
	}()
	f, n, err := c.cutter.Next(b)
	if err == nil && len(f.Command) > 0 {
		c.s.metrics.cutLines(c.via, &c.cutter.Cut)
		err = c.step(f, now)
	}
	return n, err
}

func (c *relpConn) step(f relp.Frame, now int64) error {
	verdict, err := c.session.Step(f)
	if err != nil {
		return err
	}
	switch verdict {
	case relp.Reply:
		o := c.owe()
		o.answers = relp.AppendReply(o.answers, f)
	case relp.Store:
		c.line(journal.Record{Time: now, Source: c.source, Input: c.via, Data: f.Data}, f.Txnr)
	case relp.Close:
		c.judged(overdue)
		o := c.owe()
		o.answers = relp.AppendClosed(o.answers, f)
		c.closed = true
	}
	return nil
}

// line takes a line for the batch, unless it is here already.
func (c *relpConn) line(r journal.Record, txnr uint32) {
	hash := c.s.recent.hash(r.Data)
	if c.resent == nil {
		c.batch.Add(r)
		o := c.owe()
		o.line(txnr, hash)
		if c.fits.due {
			c.fits = fits{known: c.s.recent.outdated(c.source, r.Time)}
		}
		if c.fits.known != nil {
			c.fit(o, hash)
		}
		return
	}
	c.held.Add(r)
	c.heldTxnrs = append(c.heldTxnrs, txnr)
	c.heldHashes = append(c.heldHashes, hash)
	c.judged(c.bounded(c.resent.take(hash)))
}

// judged acts on what the session's first frames are.
func (c *relpConn) judged(j judgement) {
	if j == open || c.resent == nil {
		return
	}
	count, o := len(c.heldTxnrs), c.owe()
	if j == again {
		o.resumed = true
		c.s.metrics.again.Add(float64(count))
	} else {
		c.batch.Join(&c.held)
		o.hashes = append(o.hashes, c.heldHashes...)
	}
	switch j {
	case unseen:
		c.s.metrics.doubted.Add(float64(max(0, count-1)))
	case overdue:
		c.fits = fits{known: c.resent, sure: true}
	}
	for _, txnr := range c.heldTxnrs {
		o.answers = relp.AppendOK(o.answers, txnr)
	}
	c.resent, c.heldTxnrs, c.heldHashes = nil, nil, nil
	c.held = journal.Batch{} // it is used no more
}

// store gives the lines to the journal; the answers follow once they are
// durable. It waits for room though ctx has ended, until Server.ending: what is
// under way is brought to its end.
func (c *relpConn) store(ctx context.Context) error {
	if c.owed == nil {
		return nil
	}
	if err := c.settle(mostWaiting); err != nil {
		return err
	}
	appending, cancel := context.WithTimeout(c.s.ending, answerWithin)
	defer cancel()
	o := c.owed
	o.lines, o.bytes = c.batch.Len(), c.batch.Size()
	commit, err := c.s.journal.AppendAfter(appending, c.last, &c.batch, func() {
		// Before the answer: it may get lost, and then they come again.
		c.s.tellDoubled(o.doubled+c.s.recent.put(c.source, time.Now().UnixNano(), o.hashes...), "client", c.source)
	})
	if err != nil {
		return err
	}
	if o.commit = commit; o.lines > 0 {
		c.last = commit
	}
	c.owed = nil
	c.batch.Reset()
	c.await(ctx, o)
	return nil
}

// leave ends the session from our side. The client is heard out first:
// librelp looks at its connection only when it has a line to send, so what the
// last one before a silence left without an answer would wait in the client for
// its next. Then it is given a moment to read the answers, and the connection
// is reset. librelp sends again, at its next connection, exactly what was not
// answered, and of that nothing was stored. Neither serverclose nor a plain end
// of the stream will do: at both it loses the line in its hand (seen with
// Debian 12's).
func (c *relpConn) leave(ctx context.Context, woken <-chan struct{}) error {
	err := c.hearOut(ctx, woken)
	if err == nil {
		err = c.settle(0)
	}
	if err != nil || c.closed {
		return err
	}
	<-time.After(answersRead)
	if tcp := c.tcp(); tcp != nil {
		_ = tcp.SetLinger(0)
	}
	return nil
}

// hearOut takes lines until the client is quiet or has been heard for long.
func (c *relpConn) hearOut(ctx context.Context, woken <-chan struct{}) error {
	<-woken // else it may still set the deadline for reads
	if c.s.gate.held() != "" {
		return nil
	}
	for end := time.Now().Add(c.s.patience); time.Now().Before(end) && !c.closed; {
		if err := c.take(ctx); err != nil {
			return err
		}
		if err := c.settle(0); err != nil { // a client that waits for answers is not quiet
			return err
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(c.s.quiet))
		switch err := c.receive(); {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// hangUp closes our half after the client said close, and waits for its own.
func (c *relpConn) hangUp() error {
	if err := c.settle(0); err != nil {
		return err
	}
	c.s.recent.forget(c.source)
	err := c.s.guard(c.via, func() error {
		if half, ok := c.conn.(interface{ CloseWrite() error }); ok {
			if err := half.CloseWrite(); err != nil {
				return err
			}
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(lingerFor))
		_, err := io.Copy(io.Discard, c.conn)
		return err
	}, "client", c.source)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// tcp is the connection below all others.
func (c *relpConn) tcp() *net.TCPConn { return below(c.conn) }

// below is the connection below all others; nil if it is none of TCP.
func below(conn net.Conn) *net.TCPConn {
	for {
		above, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			tcp, _ := conn.(*net.TCPConn)
			return tcp
		}
		conn = above.NetConn()
	}
}

func addrOf(addr net.Addr) netip.Addr {
	p, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Unmap()
}
