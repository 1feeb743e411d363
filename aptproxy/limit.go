package aptproxy

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"
)

// limit bounds how much the clients of some networks get together.
type limit struct {
	networks []netip.Prefix
	limiter  *rate.Limiter // of bytes per second
}

// newLimiter allows a rate of bytes per second; what is sent at once may be one
// chunk. nil for 0: no limit.
func newLimiter(bytes int64) *rate.Limiter {
	if bytes == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytes), chunk)
}

// limiterFor is the limit of a client: of the first class that it is in; nil
// when it is in none.
func (set *settings) limiterFor(client netip.Addr) *rate.Limiter {
	for _, l := range set.limits {
		if slices.ContainsFunc(l.networks, func(p netip.Prefix) bool { return p.Contains(client) }) {
			return l.limiter
		}
	}
	return nil
}

// pacedWriter sends no faster than its limiter allows. It is no io.ReaderFrom:
// what is paced is not sent by the kernel alone.
type pacedWriter struct {
	http.ResponseWriter
	ctx     context.Context
	limiter *rate.Limiter
}

// Unwrap lets deadlines through.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *pacedWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), chunk)]
		if err := w.limiter.WaitN(w.ctx, len(part)); err != nil {
			return n, err
		}
		more, err := w.ResponseWriter.Write(part)
		n += more
		if err != nil {
			return n, err
		}
		p = p[len(part):]
	}
	return n, nil
}

// countedWriter counts what is sent, for the access log.
type countedWriter struct {
	http.ResponseWriter
	status int // 0: none was written
	bytes  int64
}

// Unwrap lets deadlines through.
func (w *countedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *countedWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *countedWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// ReadFrom lets sendfile through.
func (w *countedWriter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(w.ResponseWriter, r)
	w.bytes += n
	return n, err
}

// logAccess writes a line of the access log.
func (s *Server) logAccess(r *http.Request, client netip.Addr, w *countedWriter, began time.Time) {
	status := w.status
	if status == 0 {
		status = http.StatusOK
	}
	s.noteAccess(access{client, r.Method, r.RequestURI, r.UserAgent(), status, w.bytes, time.Since(began)})
}

// access is an answered request.
type access struct {
	client             netip.Addr
	method, uri, agent string
	status             int
	bytes              int64 // of the body that were sent
	took               time.Duration
}

func (s *Server) noteAccess(a access) {
	s.log.Info("access", "client", a.client, "node", s.nameOf(a.client), "method", a.method, "uri", clip(a.uri),
		"status", a.status, "bytes", a.bytes, "took", a.took, "agent", clip(a.agent))
}
