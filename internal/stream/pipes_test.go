package stream

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"syscall"
	"testing"
	"time"
)

// These tests are about what happens within some seconds, and run in virtual time
// (testing/synctest): while a machine stands still no time passes there, so that no
// server is silent for it. Virtual time waits for who waits for a socket, and so
// servers listen in memory.

// pipes is a listener whose connections are in memory.
type pipes struct {
	name    string // its address
	far     time.Duration
	conns   chan net.Conn
	closed  chan struct{}
	closing sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.closing.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return p }

// Network and String make it its own address.
func (p *pipes) Network() string { return "pipe" }
func (p *pipes) String() string  { return p.name + ":80" }

// dial connects, which takes as long as it is far.
func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	select {
	case <-time.After(p.far):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	near, far := net.Pipe()
	var err error
	select {
	case p.conns <- far:
		return near, nil
	case <-p.closed:
		err = syscall.ECONNREFUSED
	case <-ctx.Done():
		err = ctx.Err()
	}
	_, _ = near.Close(), far.Close()
	return nil, err
}

// serve answers in memory until the test ends.
func serve(t *testing.T, name string, handler http.Handler) (*httptest.Server, *pipes) {
	t.Helper()
	listener := &pipes{name: name, conns: make(chan net.Conn), closed: make(chan struct{})}
	web := httptest.NewUnstartedServer(handler)
	if err := web.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	web.Listener = listener
	web.Start()
	t.Cleanup(func() {
		web.CloseClientConnections()
		web.Close()
	})
	return web, listener
}

// client reaches these listeners until the test ends. wrap, which may be nil, is
// given each connection.
func client(t *testing.T, wrap func(*pipes, net.Conn) net.Conn, listeners ...*pipes) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		for _, p := range listeners {
			if p.String() != address {
				continue
			}
			conn, err := p.dial(ctx)
			if err != nil || wrap == nil {
				return conn, err
			}
			return wrap(p, conn), nil
		}
		return nil, syscall.EHOSTUNREACH
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}
