package run

import (
	"net/http"
	"sync"
)

// Gate counts what is under way, so that an end can wait for it, and lets nothing
// begin any more once it is closed. It is for what others begin when they like,
// as requests are: a sync.WaitGroup does not bear that the first begins while
// somebody waits, and would let it begin after the wait. The zero Gate is open.
// Its methods may be called from any goroutine.
type Gate struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup
}

// Begin counts one in, who must call End; false: the gate is closed.
func (g *Gate) Begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.inside.Add(1)
	}
	return !g.closed
}

// End counts one out.
func (g *Gate) End() { g.inside.Done() }

// Close lets nobody in any more and blocks until all are out. It may be called
// again.
func (g *Gate) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}

// Handler answers with next as long as the gate is open, and with 503 after: a
// request may reach its handler after the server was closed (net/http waits for
// no handler then).
func (g *Gate) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.Begin() {
			w.Header().Set("Connection", "close")
			http.Error(w, "this server stops", http.StatusServiceUnavailable)
			return
		}
		defer g.End()
		next.ServeHTTP(w, r)
	})
}
