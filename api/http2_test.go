package api

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/peer"
	"holdfast/internal/state"
)

// pipes is a listener in memory, so that time can be virtual.
type pipes struct {
	dialled chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newPipes() *pipes { return &pipes{dialled: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.dialled:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.dialled <- theirs:
		return ours, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// In HTTP/2 a write deadline resets the stream when it passes, written to or
// not: a query that waits must not have one.
func TestBlockingQueriesOverHTTP2WaitAsLongAsTheyAsk(t *testing.T) {
	authority := filepath.Join(t.TempDir(), "ca")
	server := trust(t, authority, "foobar", "n1", peer.RoleServer)
	admin := trust(t, authority, "foobar", "fbadmin1", peer.RoleAdmin)
	synctest.Test(t, func(t *testing.T) {
		c := bench(t)
		c.apply(web("n1", "10.1.0.1", state.Passing))
		c.server.tls = server.ServerOptional()
		c.server.admin = func(*http.Request) bool { return true }
		ctx, stop := context.WithCancel(t.Context())
		pipe, ended := newPipes(), make(chan error, 1)
		go func() { ended <- c.server.serve(ctx, listener{pipe, fromTLS}) }()
		transport := &http.Transport{DialContext: pipe.dial, TLSClientConfig: admin.Client(""), ForceAttemptHTTP2: true}
		for _, path := range []string{"/v1/health/service/web?stale&wait=4m&index=", "/v1/kv/none?stale&wait=4m&index="} {
			began := time.Now()
			index := c.ask(path + "0").Header().Get("X-Consul-Index")
			request, err := http.NewRequestWithContext(ctx, "GET", "https://n1"+path+index, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			response, err := transport.RoundTrip(request)
			if err != nil {
				t.Errorf("%s: after %v: %v", path, time.Since(began), err)
				continue
			}
			response.Body.Close()
			if waited := time.Since(began); response.ProtoMajor != 2 || waited < 4*time.Minute {
				t.Errorf("%s: %s answered %s after %v, want HTTP/2 and 4 minutes", path, response.Proto, response.Status, waited)
			}
		}
		transport.CloseIdleConnections()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
