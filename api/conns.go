package api

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// connections counts those that end before a request came of them: net/http
// answers them, or closes them, without asking the handler. What they sent was
// too slow, too large or no HTTP.
type connections struct {
	server *Server
	of     sync.Map // net.Conn to *connection
}

type connection struct {
	back   *parked     // it is one that comes back; nil: no
	asked  atomic.Bool // the handler was called since the connection was last idle
	mu     sync.Mutex
	since  time.Time // it may send a request
	active bool      // and has begun to
}

type connectionKey struct{}

// context gives the handler the connection of its request.
func (c *connections) context(ctx context.Context, conn net.Conn) context.Context {
	one := &connection{since: time.Now()}
	one.back, _ = conn.(*parked)
	c.of.Store(conn, one)
	return context.WithValue(ctx, connectionKey{}, one)
}

// served notes that the handler was called, and returns the connection if it
// was parked before.
func served(r *http.Request) *parked {
	one, ok := r.Context().Value(connectionKey{}).(*connection)
	if !ok {
		return nil
	}
	one.asked.Store(true)
	return one.back
}

// state is http.Server's ConnState.
func (c *connections) state(conn net.Conn, state http.ConnState) {
	found, ok := c.of.Load(conn)
	if !ok {
		return // new: context comes first
	}
	one := found.(*connection)
	one.mu.Lock()
	defer one.mu.Unlock()
	switch state {
	case http.StateActive:
		one.active = true // net/http says so when the headers are there, or can't be had
	case http.StateIdle:
		one.active, one.since = false, time.Now()
		one.asked.Store(false)
	case http.StateClosed, http.StateHijacked:
		c.of.Delete(conn)
		if reason := one.ended(time.Now()); reason != "" {
			c.server.metrics.refused.WithLabelValues(reason).Inc()
		}
	}
}

// ended is why a connection that closes was refused; "": it was not. A client
// may go at any time, but not leave half a request.
func (c *connection) ended(now time.Time) string {
	switch {
	case c.asked.Load() || !c.active:
		return ""
	case now.Sub(c.since) >= headerTimeout:
		return "slow"
	default:
		return "malformed"
	}
}
