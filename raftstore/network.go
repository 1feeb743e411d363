package raftstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"holdfast/internal/peer"
)

// Connections that have not introduced themselves yet: in all, and from one
// address, so that one machine that says nothing can't keep the others out.
const (
	maxGreeting         = 128
	maxGreetingOfSource = 32
)

// network is the RPC port: it knows who is at the other end of every
// connection before a byte of Raft or RPC is read, and closes all of them at
// the end.
type network struct {
	self    func() hello // who we are now: the store may still be unknown
	trust   *peer.Trust  // nil: plain text
	times   timings
	log     *slog.Logger
	metrics *metrics
	limit   *limiter
	// adopt is called when a server of store id sends Raft messages to us,
	// who have no store: it made us part of it.
	adopt func(id string) error
	// stranger is told of a server that has another store than ours.
	stranger func(name, store string)
	// distrusted is told of a server of our cluster by whose authority we don't
	// go, or that doesn't go by ours.
	distrusted func(name, reason string)

	ending context.Context // done when nobody is to be dialled any more
	cancel context.CancelFunc

	listener net.Listener
	raft     *streamQueue
	rpc      *streamQueue
	follow   *streamQueue // nil: nobody may follow the state

	mu       sync.Mutex
	open     map[*stream]struct{}
	greeting map[string]int          // by source
	greeted  int                     // sum of greeting
	follows  map[string]int          // connections of nodes that follow the state, by name
	lines    map[*renewable]struct{} // what Raft has dialled; see renewRaft
	renewals int                     // how often that ran
	closed   bool
	group    sync.WaitGroup
}

// stream is a connection whose other end is known.
type stream struct {
	net.Conn            // plain or TLS; replaced only while the stream is greeted
	raw      net.Conn   // the TCP connection below, for those who can't know
	dialled  streamKind // what we made the connection for; 0: the other side did
	peer     hello
	forget   func()
}

func (s *stream) Close() error {
	s.forget()
	return s.Conn.Close()
}

// serve accepts connections until the listener is closed.
func (n *network) serve() error {
	for {
		conn, err := n.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || isExhausted(err) {
				n.refuse(nil, refusedBusy, fmt.Sprintf("accept: %v", err))
				pause(20 * time.Millisecond)
				continue
			}
			return fmt.Errorf("accept connections on %v: %w", n.listener.Addr(), err)
		}
		n.receive(conn)
	}
}

// receive greets a new connection in the background, if there is a place.
func (n *network) receive(conn net.Conn) {
	source := sourceOf(conn)
	n.mu.Lock()
	closed, full := n.closed, n.greeted >= maxGreeting || n.greeting[source] >= maxGreetingOfSource
	if !closed && !full {
		n.greeted++
		n.greeting[source]++
		n.group.Go(func() {
			defer n.release(source)
			n.greet(conn)
		})
	}
	n.mu.Unlock()
	if full {
		n.refuse(conn, refusedBusy, "too many connections have not introduced themselves yet")
	}
	if closed || full {
		conn.Close()
	}
}

func (n *network) release(source string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.greeted--
	if n.greeting[source]--; n.greeting[source] == 0 {
		delete(n.greeting, source)
	}
}

func sourceOf(conn net.Conn) string {
	host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	return host
}

// track makes a stream that close ends; nil when the network is closed.
func (n *network) track(conn net.Conn, dialled streamKind) *stream {
	s := &stream{Conn: conn, raw: conn, dialled: dialled}
	s.forget = func() {
		n.mu.Lock()
		delete(n.open, s)
		n.mu.Unlock()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.open[s] = struct{}{}
	return s
}

// hangUp ends dialling, and the Raft connections that we made: Raft waits at
// its end for messages under way, which a server that lost its power never
// answers.
func (n *network) hangUp() {
	n.cancel()
	n.mu.Lock()
	defer n.mu.Unlock()
	for s := range n.open {
		if s.dialled == kindRaft {
			s.raw.Close()
		}
	}
}

// stop closes the port and every connection, and waits for those who were
// greeting.
func (n *network) stop() {
	n.cancel()
	n.mu.Lock()
	n.closed = true
	streams := make([]*stream, 0, len(n.open))
	for s := range n.open {
		streams = append(streams, s)
	}
	n.mu.Unlock()
	n.listener.Close()
	n.raft.Close()
	n.rpc.Close()
	if n.follow != nil {
		n.follow.Close()
	}
	for _, s := range streams {
		s.raw.Close()
	}
	n.group.Wait()
}

// greet takes a new connection to where it belongs, or refuses it.
func (n *network) greet(raw net.Conn) {
	s := n.track(raw, 0)
	if s == nil {
		raw.Close()
		return
	}
	if err := raw.SetDeadline(time.Now().Add(n.times.greet)); err != nil {
		s.Close()
		return
	}
	code, reason := n.introduce(s)
	if code == refusedNot && s.peer.Kind == kindFollow && !n.countFollow(s) {
		code, reason = refusedBusy, fmt.Sprintf("%s has %d connections that follow the state", s.peer.Name, maxFollowsOfNode)
	}
	if code != refusedNot {
		n.refuse(raw, code, reason)
		s.Close()
		return
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		s.Close()
		return
	}
	queue := n.rpc
	switch s.peer.Kind {
	case kindRaft:
		queue = n.raft
	case kindFollow:
		queue = n.follow
	}
	queue.push(s)
}

// introduce completes the handshake and the greeting of an accepted stream.
func (n *network) introduce(s *stream) (refusal, string) {
	var id peer.Identity
	if n.trust != nil {
		conn := tls.Server(s.Conn, n.trust.Server(n.roles()...))
		if err := conn.HandshakeContext(context.Background()); err != nil { // the deadline is the connection's
			return classifyTLS(err), n.trust.Explain(err).Error()
		}
		var err error
		if id, err = peer.PeerIdentity(conn.ConnectionState()); err != nil {
			return refusedTLS, err.Error()
		}
		s.Conn = conn
	}
	h, err := readHello(s.Conn)
	if err != nil {
		return classifyGreeting(err), fmt.Sprintf("greeting: %v", err)
	}
	code, reason := n.judge(h, id)
	self := n.self()
	answer, err := verdict{Refused: code, Reason: reason, ID: self.ID, Store: self.Store, levels: self.levels}.encode()
	if err == nil {
		_, err = s.Conn.Write(answer)
	}
	if err != nil && code == refusedNot {
		return classifyGreeting(err), fmt.Sprintf("answer the greeting of %s: %v", h.Name, err)
	}
	s.peer = h
	return code, reason
}

// judge decides about a greeting. id is the certificate's, zero without TLS.
func (n *network) judge(h hello, id peer.Identity) (refusal, string) {
	if n.trust != nil && foldName(id.Name) != foldName(h.Name) {
		return refusedPreamble, fmt.Sprintf("it calls itself %s, its certificate is that of %v", h.Name, id)
	}
	if n.trust != nil && id.Role != peer.RoleServer && h.Kind != kindFollow {
		return refusedRole, fmt.Sprintf("the certificate of %v is not for a connection of kind %v", id, h.Kind)
	}
	if h.Kind == kindFollow && n.follow == nil {
		return refusedRole, "nobody can follow the state here"
	}
	self := n.self()
	code, reason := judge(self, h)
	if code == refusedStore && h.Store != "" && self.Store != "" {
		n.stranger(h.Name, h.Store)
	}
	if code != refusedNot || self.Store != "" || h.Kind != kindRaft {
		return code, reason
	}
	if err := n.adopt(h.Store); err != nil {
		return refusedStore, fmt.Sprintf("join store %s: %v", h.Store, err)
	}
	return refusedNot, ""
}

// judge is the pure part: may the sender of h talk to self?
func judge(self, h hello) (refusal, string) {
	switch {
	case h.Cluster != self.Cluster:
		return refusedCluster, fmt.Sprintf("%s is of cluster %q, %s is of %q", h.Name, h.Cluster, self.Name, self.Cluster)
	case h.Store != "" && self.Store != "" && h.Store != self.Store:
		return refusedStore, fmt.Sprintf("%s has store %s, %s has %s", h.Name, h.Store, self.Name, self.Store)
	case h.Kind == kindRPC, h.Kind == kindFollow:
		return refusedNot, ""
	case h.Target != self.ID:
		return refusedTarget, fmt.Sprintf("%s looks for the server with ID %s, here is %s with ID %s", h.Name, h.Target, self.Name, self.ID)
	case h.Store == "":
		return refusedStore, fmt.Sprintf("%s has no store yet", h.Name)
	}
	if why := tooOld(self, h); why != "" {
		return refusedLevel, why
	}
	return refusedNot, ""
}

// refuse counts a refusal and logs it: the first a minute of each source and
// reason as a warning.
func (n *network) refuse(conn net.Conn, code refusal, reason string) {
	n.metrics.refused.WithLabelValues(code.String()).Inc()
	source := ""
	if conn != nil {
		source = sourceOf(conn)
	}
	level := slog.LevelDebug
	if n.limit.allow(source + " " + code.String()) {
		level = slog.LevelWarn
	}
	n.log.Log(context.Background(), level, "connection refused", "from", source, "why", code.String(), "reason", reason)
}

// explain says whose certificate was not believed, when that was it.
func (n *network) explain(name string, err error) error {
	if n.trust == nil || !peer.Distrusted(err) {
		return peer.Explain(err)
	}
	err = n.trust.Explain(err)
	n.distrusted(name, err.Error())
	return err
}

func classifyTLS(err error) refusal {
	if peer.Distrusted(err) {
		return refusedAuthority
	}
	if _, ok := errors.AsType[*peer.RefusedError](err); ok {
		return refusedRole
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return refusedTimeout
	}
	return refusedTLS
}

func classifyGreeting(err error) refusal {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return refusedTimeout
	}
	return refusedPreamble
}

// dialError says that a connection did not come about, so that nothing sent
// over it can have had an effect.
type dialError struct {
	to      string
	refused refusal // by the other end; refusedNot when it never answered
	err     error
}

func (e *dialError) Error() string { return fmt.Sprintf("connect to %s: %v", e.to, e.err) }
func (e *dialError) Unwrap() error { return e.err }

// dial connects to a server: name is checked against its certificate unless
// it is "", target is the node ID that a raft connection is for.
func (n *network) dial(ctx context.Context, kind streamKind, address, name, target string) (net.Conn, error) {
	s, err := n.dialStream(ctx, kind, address, name, target)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (n *network) dialStream(ctx context.Context, kind streamKind, address, name, target string) (*stream, error) {
	s, code, err := n.connect(ctx, kind, address, name, target)
	if err == nil {
		return s, nil
	}
	to := address
	if name != "" {
		to = name + " (" + address + ")"
	}
	return nil, &dialError{to: to, refused: code, err: err}
}

func (n *network) connect(ctx context.Context, kind streamKind, address, name, target string) (*stream, refusal, error) {
	ctx, cancel := context.WithTimeout(ctx, n.times.transport)
	defer cancel()
	defer context.AfterFunc(n.ending, cancel)()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, refusedNot, err
	}
	s := n.track(raw, kind)
	if s == nil {
		raw.Close()
		return nil, refusedNot, net.ErrClosed
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	code, err := n.presentOurselves(s, kind, name, target)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		s.Close()
		return nil, code, err
	}
	return s, refusedNot, nil
}

// presentOurselves is the dialling side of introduce.
func (n *network) presentOurselves(s *stream, kind streamKind, name, target string) (refusal, error) {
	if n.trust != nil {
		conn := tls.Client(s.Conn, n.trust.Client(name))
		if err := conn.HandshakeContext(context.Background()); err != nil { // the deadline is the connection's
			return refusedNot, n.explain(name, err)
		}
		s.Conn = conn
	}
	h := n.self()
	h.Kind, h.Target = kind, target
	greeting, err := h.encode()
	if err != nil {
		return refusedNot, err
	}
	if _, err := s.Conn.Write(greeting); err != nil {
		return refusedNot, fmt.Errorf("greet: %w", err)
	}
	v, err := readVerdict(s.Conn)
	if err != nil { // in TLS 1.3 what the server says to our certificate comes here
		return refusedNot, fmt.Errorf("greet: %w", n.explain(name, err))
	}
	if h.Store != "" && v.Store != "" && h.Store != v.Store {
		n.stranger(name, v.Store)
	}
	if v.Refused != refusedNot {
		return v.Refused, fmt.Errorf("it refused us (%v): %s", v.Refused, v.Reason)
	}
	s.peer = hello{Kind: kind, Name: name, ID: v.ID, Store: v.Store, levels: v.levels}
	if s.peer.Name == "" {
		s.peer.Name = s.raw.RemoteAddr().String()
	}
	if why := tooOld(h, s.peer); why != "" && kind == kindRaft { // an old one does not know that it is too old
		return refusedLevel, errors.New(why)
	}
	return refusedNot, nil
}

// streamQueue is a net.Listener of streams that have been greeted.
type streamQueue struct {
	addr    net.Addr
	streams chan *stream
	done    chan struct{}
	once    sync.Once
}

func newStreamQueue(addr net.Addr) *streamQueue {
	return &streamQueue{addr: addr, streams: make(chan *stream), done: make(chan struct{})}
}

// push hands a stream to Accept, or closes it when nobody accepts any more.
func (q *streamQueue) push(s *stream) {
	select {
	case q.streams <- s:
	case <-q.done:
		s.Close()
	}
}

// Accept waits for the next stream.
func (q *streamQueue) Accept() (net.Conn, error) {
	select {
	case s := <-q.streams:
		return s, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; it may be called twice.
func (q *streamQueue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr is the address other servers know us by.
func (q *streamQueue) Addr() net.Addr { return q.addr }

var _ io.Closer = (*streamQueue)(nil)
