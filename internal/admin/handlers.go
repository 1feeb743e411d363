package admin

import (
	"net/http"
	"sync"
)

// Handlers counts the requests of a server that are under way, so that what runs
// the server can wait for them; net/http's Close does not. It serves one run.
type Handlers struct {
	Next http.Handler

	mu     sync.Mutex
	count  int
	closed bool
	over   chan struct{} // closed when none is left; made by Wait
}

// ServeHTTP answers by Next, and once Wait was called with status 503: a connection
// may have been accepted just before its listener was closed.
func (h *Handlers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.begin() {
		w.Header().Set("Connection", "close")
		http.Error(w, "holdfast is stopping: ask again when it runs", http.StatusServiceUnavailable)
		return
	}
	defer h.end()
	h.Next.ServeHTTP(w, r)
}

// Wait lets no request begin any more, and blocks until none is under way.
func (h *Handlers) Wait() {
	h.mu.Lock()
	h.closed = true
	if h.over == nil {
		h.over = make(chan struct{})
		if h.count == 0 {
			close(h.over)
		}
	}
	over := h.over
	h.mu.Unlock()
	<-over
}

func (h *Handlers) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.count++
	return true
}

func (h *Handlers) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count--; h.count == 0 && h.over != nil {
		close(h.over)
	}
}
