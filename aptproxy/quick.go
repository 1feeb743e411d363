package aptproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/aptproxy/cas"
)

// quick answers plain requests for files that are here, with two system calls
// each. A connection that wants anything else is given to net/http for the rest
// of its life, with what was read of it.
type quick struct {
	server   *Server
	handed   chan net.Conn // to net/http
	stopping atomic.Bool
	stopped  chan struct{} // closed with it
	work     sync.WaitGroup

	mu    sync.Mutex
	conns map[*net.TCPConn]struct{}
}

func newQuick(s *Server) *quick {
	return &quick{server: s, handed: make(chan net.Conn), stopped: make(chan struct{}), conns: map[*net.TCPConn]struct{}{}}
}

// serve accepts connections until halt and the end of the listener, then returns
// nil; an error is the listener's.
func (q *quick) serve(l net.Listener) error {
	var wait time.Duration
	for {
		c, err := l.Accept()
		switch {
		case q.stopping.Load():
			if err == nil {
				_ = c.Close()
			}
			return nil
		case err == nil:
			wait = 0
			q.begin(c.(*net.TCPConn))
		case passing(err):
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			q.server.log.Warn("no connection can be accepted for the moment", "error", err, "again_in", wait)
			select {
			case <-q.stopped:
				return nil
			case <-time.After(wait):
			}
		default:
			return fmt.Errorf("aptproxy: serve %s: %w", l.Addr(), err)
		}
	}
}

// passing tells of an error of accept whether it will pass.
func passing(err error) bool {
	return slices.ContainsFunc([]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPROTO, syscall.EPERM},
		func(e error) bool { return errors.Is(err, e) })
}

func (q *quick) begin(c *net.TCPConn) {
	q.mu.Lock()
	q.conns[c] = struct{}{}
	q.mu.Unlock()
	q.work.Go(func() {
		defer q.end(c)
		client := clientAt(c.RemoteAddr().String())
		one := &quickConn{quick: q, tcp: c, client: client, name: client.String(), buf: make([]byte, quickBuffer)}
		if !one.run() {
			_ = c.Close()
		}
	})
}

// end forgets a connection. A panic costs its client the connection, as in
// net/http.
func (q *quick) end(c *net.TCPConn) {
	q.mu.Lock()
	delete(q.conns, c)
	q.mu.Unlock()
	if p := recover(); p != nil {
		_ = c.Close()
		q.server.log.Error("a request could not be answered", "client", c.RemoteAddr(), "panic", p)
	}
}

// halt ends the connections that wait for a request, and serve once its listener
// is closed. It is called once.
func (q *quick) halt() {
	q.stopping.Store(true)
	close(q.stopped)
	q.each(func(c *net.TCPConn) { _ = c.SetReadDeadline(time.Unix(1, 0)) })
}

// wait blocks until all connections have ended, after serve has. Those that are
// in the middle of an answer are broken when ctx ends.
func (q *quick) wait(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { q.each(func(c *net.TCPConn) { _ = c.Close() }) })
	defer stop()
	q.work.Wait()
}

func (q *quick) each(f func(*net.TCPConn)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for c := range q.conns {
		f(c)
	}
}

// Accept makes it, with Close and Addr, the listener of net/http.
func (q *quick) Accept() (net.Conn, error) {
	select {
	case c := <-q.handed:
		return c, nil
	case <-q.stopped:
		return nil, net.ErrClosed
	}
}

// Close does nothing: halt ends Accept.
func (q *quick) Close() error { return nil }

// Addr is nobody's: there may be several listeners.
func (q *quick) Addr() net.Addr { return &net.TCPAddr{} }

// readConn is a connection of which something was read already.
type readConn struct {
	*net.TCPConn // with its ReadFrom, which is sendfile
	head         []byte
}

func (c *readConn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.TCPConn.Read(p)
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	return n, nil
}

// WriteTo is not for those who would read past Read.
func (c *readConn) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}

// quickBuffer is how much is read at once, and the longest plain head, in bytes.
const quickBuffer = 4 << 10

// deadlineSlack is how much earlier than it should a deadline may come, so that
// not every request has to move it.
const deadlineSlack = 10 * time.Second

// quickConn is a connection that has asked for nothing unusual so far.
type quickConn struct {
	quick   *quick
	tcp     *net.TCPConn
	client  netip.Addr
	name    string // the client's address
	buf     []byte
	r, w    int       // what was read and not answered is buf[r:w]
	since   time.Time // what is waited for: a head from its first byte on, the first of all from accept on
	served  bool      // it had an answer
	readBy  time.Time
	writeBy time.Time
	head    []byte
	parts   [2][]byte
}

// run answers requests. It is true when the connection is net/http's now.
func (c *quickConn) run() (handed bool) {
	c.since = time.Now()
	for {
		h, n, v := parseHead(c.buf[c.r:c.w])
		if v == incomplete && c.w-c.r < len(c.buf) {
			if err := c.more(); err != nil {
				return false
			}
			continue
		}
		if v != plainGet {
			return c.hand()
		}
		ok, err := c.answer(h, time.Now())
		if err != nil {
			return false
		}
		if !ok {
			return c.hand()
		}
		c.r += n
		c.since, c.served = time.Now(), true
	}
}

// more reads. A head must come within clientHeaderTimeout, the next request
// within clientIdleTimeout.
func (c *quickConn) more() error {
	if c.r > 0 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	idle := c.w == 0 && c.served
	by := c.since.Add(clientHeaderTimeout)
	if idle {
		by = c.since.Add(clientIdleTimeout)
	}
	if early := by.Sub(c.readBy); !idle || early < 0 || early > deadlineSlack {
		c.readBy = by
		if err := c.tcp.SetReadDeadline(by); err != nil {
			return err
		}
	}
	if c.quick.stopping.Load() { // it moves the deadline after it says so
		return net.ErrClosed
	}
	n, err := c.tcp.Read(c.buf[c.w:])
	c.w += n
	if idle {
		c.since = time.Now()
	}
	if n > 0 {
		return nil
	}
	return err
}

// hand gives the connection to net/http.
func (c *quickConn) hand() bool {
	if c.tcp.SetDeadline(time.Time{}) != nil {
		return false
	}
	select {
	case c.quick.handed <- &readConn{c.tcp, slices.Clone(c.buf[c.r:c.w])}:
		return true
	case <-c.quick.stopped:
		return false
	}
}

// answer answers a request, if it is for a file that is vouched for and here.
// After an error nothing more can be sent.
func (c *quickConn) answer(h head, began time.Time) (ok bool, err error) {
	s := c.quick.server
	set := s.active.Load().settings
	if !set.allows(c.client) || set.limiterFor(c.client) != nil {
		return false, nil
	}
	repo, name, ok := s.quickTarget(h.target)
	if !ok {
		return false, nil
	}
	f, ok := s.resolveHere(repo, c.name, name)
	if !ok {
		return false, nil
	}
	if _, is := f.generation.expired(s.now()); is {
		return false, nil
	}
	size, sent, err := c.send(f.sum, name, began)
	if size < 0 {
		return false, nil
	}
	s.recent.note(Request{s.nameOf(c.client), repo.name, name, f.size, s.now()})
	s.metrics.hit.Inc()
	s.metrics.served.Add(float64(size))
	if set.accessLog {
		s.noteAccess(access{c.client, http.MethodGet, h.target, h.agent, http.StatusOK, sent, time.Since(began)})
	}
	return true, err
}

// quickTarget finds the repository's file that a request line means.
func (s *Server) quickTarget(text string) (*repository, string, bool) {
	u, err := url.ParseRequestURI(text)
	if err != nil || !u.IsAbs() && isOwn(u.Path) {
		return nil, "", false
	}
	t, err := parseTarget(u)
	if err != nil {
		return nil, "", false
	}
	return s.match(t)
}

// send sends a blob. size is negative when nothing was sent: the store has none.
func (c *quickConn) send(sum cas.Sum, name string, now time.Time) (size, sent int64, err error) {
	s := c.quick.server
	if b := s.hotOf(sum); b != nil {
		// Not too late either: the answer before may have been a large one.
		if by := deadlineFor(smallBody); c.writeBy.Sub(now) < graceFor || c.writeBy.After(by) {
			c.writeBy = by
			if err := c.tcp.SetWriteDeadline(c.writeBy); err != nil {
				return 0, 0, err
			}
		}
		c.head = appendHead(c.head[:0], sum, int64(len(b.data)), name, b.modified, now)
		c.parts = [2][]byte{c.head, b.data}
		list := net.Buffers(c.parts[:])
		n, err := list.WriteTo(c.tcp)
		return int64(len(b.data)), max(0, n-int64(len(c.head))), err
	}
	blob, err := s.store.Open(sum)
	if err != nil {
		return -1, 0, nil
	}
	defer blob.File.Close()
	c.writeBy = deadlineFor(blob.Size)
	if err := c.tcp.SetWriteDeadline(c.writeBy); err != nil {
		return 0, 0, err
	}
	c.head = appendHead(c.head[:0], sum, blob.Size, name, blob.Modified, now)
	if _, err := c.tcp.Write(c.head); err != nil {
		return blob.Size, 0, err
	}
	sent, err = io.CopyN(c.tcp, blob.File, blob.Size) // by sendfile
	if errors.Is(err, io.EOF) {
		err = os.ErrInvalid // it was proven, and is shorter now: the client must not wait for the rest
	}
	return blob.Size, sent, err
}
