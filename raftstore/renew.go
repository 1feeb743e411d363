package raftstore

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// renewPoll is how often is looked whether a connection waits for nothing, or
// was answered.
const renewPoll = 5 * time.Millisecond

// renewable is a connection that Raft made to a server. Raft keeps it in a pool
// of its own, and a closed one that it finds there costs it a heartbeat or a
// vote. So what is below can be replaced by another connection to the same
// server, while no answer is awaited: for Raft it is one that never broke.
type renewable struct {
	net         *network
	address, id string

	mu       sync.Mutex
	stream   *stream
	deadline time.Time
	waits    bool // a request is under way
	piped    bool // or many are, now and always
	answered bool // over this stream
	closed   bool
}

// dialRaft makes a connection for Raft to the server id.
func (n *network) dialRaft(ctx context.Context, address, id string) (net.Conn, error) {
	for {
		n.mu.Lock()
		before := n.renewals
		n.mu.Unlock()
		s, err := n.dialStream(ctx, kindRaft, address, "", id)
		if err != nil {
			return nil, err
		}
		r := &renewable{net: n, address: address, id: id, stream: s}
		if n.note(r, before) {
			return r, nil
		}
		s.Close() // it showed the certificate that was changed meanwhile
	}
}

// note keeps a connection for renewRaft, unless that ran since it was begun.
func (n *network) note(r *renewable, renewals int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.renewals != renewals {
		return false
	}
	if n.lines == nil {
		n.lines = map[*renewable]struct{}{}
	}
	n.lines[r] = struct{}{}
	return true
}

// renewRaft makes the connections that Raft has dialled anew, of one server after
// the other, so that a leader never waits for two of them at a time. It blocks
// for at most three times the transport's time-out for each server.
func (n *network) renewRaft(ctx context.Context) {
	servers := map[string][]*renewable{}
	n.mu.Lock()
	n.renewals++
	for r := range n.lines {
		servers[r.id] = append(servers[r.id], r)
	}
	n.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(servers)) {
		if ctx.Err() != nil {
			return
		}
		n.renewServer(ctx, id, servers[id])
	}
}

// renewServer replaces a server's connections when the new ones stand. Those over
// which many requests are under way are closed: Raft repeats what was, and
// heartbeats go over another.
func (n *network) renewServer(ctx context.Context, id string, lines []*renewable) {
	part, cancel := context.WithTimeout(ctx, 2*n.times.transport) // a dial, and the end of a request
	defer cancel()
	var piped []*renewable
	for _, r := range lines {
		if r.renew(part) {
			continue
		}
		if r.isPiped() {
			piped = append(piped, r)
		}
		r.current().raw.Close()
	}
	if piped == nil {
		return
	}
	part, cancel = context.WithTimeout(ctx, n.times.transport)
	defer cancel()
	for !n.hears(id, piped) && sleep(part, renewPoll) {
	}
}

// hears tells whether a server answered over a new connection, none of old.
func (n *network) hears(id string, old []*renewable) bool {
	n.mu.Lock()
	lines := slices.Collect(maps.Keys(n.lines))
	n.mu.Unlock()
	return slices.ContainsFunc(lines, func(r *renewable) bool {
		if r.id != id || slices.Contains(old, r) {
			return false
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.answered
	})
}

// renew puts a new stream below; false: it could not, and the old one should be
// closed.
func (r *renewable) renew(ctx context.Context) bool {
	if r.isPiped() {
		return false
	}
	next, err := r.net.dialStream(ctx, kindRaft, r.address, "", r.id)
	if err != nil {
		return false
	}
	for {
		if old := r.swap(next); old != nil {
			old.Close()
			return true
		}
		if r.isPiped() || !sleep(ctx, renewPoll) {
			next.Close()
			return false
		}
	}
}

// swap gives the stream that was replaced; nil: this is no moment for it.
func (r *renewable) swap(next *stream) (old *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return next
	case r.waits || r.piped || next.SetDeadline(r.deadline) != nil:
		return nil
	}
	old, r.stream, r.answered = r.stream, next, false
	return old
}

func (r *renewable) isPiped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.piped
}

func (r *renewable) current() *stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stream
}

// Read implements net.Conn. An answer of Raft's comes in one piece; if it did
// not, and the stream were replaced within it, the request would fail.
func (r *renewable) Read(p []byte) (int, error) {
	count, err := r.current().Read(p)
	if count > 0 {
		r.mu.Lock()
		r.waits, r.answered = false, true
		r.mu.Unlock()
	}
	return count, err
}

// asks notes that a request has begun.
func (r *renewable) asks() *stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waits = true
	return r.stream
}

// Write implements net.Conn.
func (r *renewable) Write(p []byte) (int, error) { return r.asks().Write(p) }

// SetDeadline implements net.Conn: it is what Raft begins a request with, the
// only one that is under way then.
func (r *renewable) SetDeadline(t time.Time) error {
	s := r.asks()
	r.mu.Lock()
	r.deadline = t
	r.mu.Unlock()
	return s.SetDeadline(t)
}

// pipes notes what Raft does with connections over which many requests are under
// way, and with no other.
func (r *renewable) pipes() *stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.piped = true
	return r.stream
}

// SetReadDeadline implements net.Conn.
func (r *renewable) SetReadDeadline(t time.Time) error { return r.pipes().SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (r *renewable) SetWriteDeadline(t time.Time) error { return r.pipes().SetWriteDeadline(t) }

// Close implements net.Conn.
func (r *renewable) Close() error {
	r.net.mu.Lock()
	delete(r.net.lines, r)
	r.net.mu.Unlock()
	r.mu.Lock()
	r.closed = true
	s := r.stream
	r.mu.Unlock()
	return s.Close()
}

// LocalAddr implements net.Conn.
func (r *renewable) LocalAddr() net.Addr { return r.current().LocalAddr() }

// RemoteAddr implements net.Conn.
func (r *renewable) RemoteAddr() net.Addr { return r.current().RemoteAddr() }
