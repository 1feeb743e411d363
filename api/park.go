package api

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/state"
)

// A query that waits in its handler keeps the stack of all that net/http and we
// called, two buffers, and the request with its headers: 26 KB, for minutes. So
// over HTTP/1 it is parked: its connection is taken from the server, and what is
// kept is the text of the request and what wakes it. Then the connection goes
// back to the server, which reads the request as if it had come now: token,
// filter and answer are those of that moment. In HTTP/2 a query is a stream among
// others and waits in its handler.

// lot keeps the connections of one server whose queries wait. To the server it
// is a listener, from which they come back.
type lot struct {
	serve func(net.Listener) // answers what comes back until the lot is closed; called once
	addr  net.Addr
	start sync.Once
	back  chan net.Conn
	over  chan struct{} // closed by Close
	close sync.Once

	mu      sync.Mutex
	waiting int
	leaving bool          // nobody may come any more
	empty   chan struct{} // closed when nobody waits and nobody may come
}

func newLot(addr net.Addr, serve func(net.Listener)) *lot {
	return &lot{serve: serve, addr: addr, back: make(chan net.Conn), over: make(chan struct{}), empty: make(chan struct{})}
}

// Accept waits for a connection that comes back.
func (l *lot) Accept() (net.Conn, error) {
	select {
	case conn := <-l.back:
		return conn, nil
	case <-l.over:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. Who comes back later finds no server.
func (l *lot) Close() error {
	l.close.Do(func() { close(l.over) })
	return nil
}

// Addr is the listener's from which the connections came first.
func (l *lot) Addr() net.Addr { return l.addr }

// enter takes a place; false: the server ends.
func (l *lot) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leaving {
		return false
	}
	l.waiting++
	return true
}

// leave gives the place back, once the server has the request again.
func (l *lot) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting--
	l.told()
}

// drain lets nobody in, and returns a channel that closes when all have left.
func (l *lot) drain() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leaving {
		l.leaving = true
		l.told()
	}
	return l.empty
}

// told closes empty if it is time to. The caller holds mu.
func (l *lot) told() {
	if l.leaving && l.waiting == 0 {
		close(l.empty)
	}
}

// maxWakes is how many channels a parked query may watch: its own, the gossip,
// the end of the server, a token and some policies. One with more waits in its
// handler.
const maxWakes = 10

// maxParked is how many bytes the text of a parked query may have. It is longer
// than what came by as much as its lines are, and must be read once more within
// the server's limit.
const maxParked = 16 << 10

// parked is a connection whose query waits, and later the same connection back
// at the server.
type parked struct {
	net.Conn
	lot    *lot
	tls    *tls.ConnectionState  // the server takes the connection for a plain one
	unread []byte                // what the server reads first: the query, and what the client sent after it
	place  atomic.Pointer[place] // of the query; nil once a handler has it again, or nobody will
	wakes  [maxWakes]<-chan struct{}
	limit  time.Duration

	gone     chan struct{} // closed when the client has gone
	listened chan struct{} // closed when listen has returned
	one      [1]byte
}

// Read gives what is unread, then what the client sends.
func (p *parked) Read(b []byte) (int, error) {
	if len(p.unread) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.unread)
	if p.unread = p.unread[n:]; len(p.unread) == 0 {
		p.unread = nil
	}
	return n, nil
}

// CloseWrite is what net/http ends a connection with, so that the client can
// read the last answer.
func (p *parked) CloseWrite() error {
	if half, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close ends the connection, also that of a query which the server would not read
// again.
func (p *parked) Close() error {
	p.resume().leave("refused")
	return p.Conn.Close()
}

// resume gives a query that came back its place again; nil when the request is
// another.
func (p *parked) resume() *place {
	found := p.place.Swap(nil)
	if found != nil {
		p.lot.leave()
	}
	return found
}

// park takes the call's connection from the server until something in ws
// happens, for at most limit. False: this one must wait in its handler.
func (c *call) park(ws state.WatchSet, limit time.Duration) bool {
	if c.lot == nil || c.ProtoMajor != 1 || c.ContentLength != 0 || c.URL.Host != "" || len(ws) > maxWakes {
		return false
	}
	text := asText(c.Request)
	if len(text) > maxParked || !c.lot.enter() {
		return false
	}
	conn, buffered, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		c.lot.leave()
		return false
	}
	if n := buffered.Reader.Buffered(); n > 0 {
		more, _ := buffered.Reader.Peek(n) // it has them
		text = append(text, more...)
	}
	if before, ok := conn.(*parked); ok {
		text, conn = append(text, before.unread...), before.Conn
	}
	p := &parked{
		Conn: conn, lot: c.lot, tls: c.TLS, unread: bytes.Clone(text), limit: limit,
		gone: make(chan struct{}), listened: make(chan struct{}),
	}
	p.place.Store(c.place)
	i := 0
	for ch := range ws {
		p.wakes[i] = ch
		i++
	}
	c.parked = true
	go p.listen()
	go p.wait()
	return true
}

// asText is a request without a body as it was sent, but for the order and the
// case of its headers.
func asText(r *http.Request) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s %s\r\n", r.Method, r.RequestURI, r.Proto)
	if r.Host != "" || r.ProtoAtLeast(1, 1) {
		fmt.Fprintf(&b, "Host: %s\r\n", r.Host)
	}
	_ = r.Header.Write(&b) // a buffer takes everything
	b.WriteString("\r\n")
	return b.Bytes()
}

// wait ends with the connection back at the server, or closed. It and listen
// call nothing deep before they wait: their stacks stay as small as they begin.
func (p *parked) wait() {
	limit, w := time.NewTimer(p.limit), &p.wakes
	select {
	case <-w[0]:
	case <-w[1]:
	case <-w[2]:
	case <-w[3]:
	case <-w[4]:
	case <-w[5]:
	case <-w[6]:
	case <-w[7]:
	case <-w[8]:
	case <-w[9]:
	case <-limit.C:
		p.place.Load().over = true
	case <-p.gone:
	}
	limit.Stop()
	p.wakes = [maxWakes]<-chan struct{}{}
	p.end()
}

// listen waits for the client to go. What it sends meanwhile, its next request,
// stays unread but for the first byte.
func (p *parked) listen() {
	defer close(p.listened)
	n, err := p.Conn.Read(p.one[:])
	if n > 0 {
		p.unread = append(p.unread, p.one[0])
		return
	}
	if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
		close(p.gone)
	}
}

// end stops listen and gives the connection back.
func (p *parked) end() {
	_ = p.SetReadDeadline(time.Unix(1, 0)) // listen returns; a connection that can't is broken, and read as such
	<-p.listened
	select {
	case <-p.gone:
		p.drop("gone")
		return
	default:
	}
	_ = p.SetReadDeadline(time.Time{})
	p.lot.start.Do(func() { go p.lot.serve(p.lot) })
	select {
	case p.lot.back <- p:
	case <-p.lot.over:
		p.drop("stopped")
	}
}

func (p *parked) drop(reason string) {
	p.resume().leave(reason)
	p.Close()
}
