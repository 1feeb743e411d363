package api

import (
	"net/http"
	"time"
)

// recorder remembers the status of an answer, and how long the client has to take
// it.
type recorder struct {
	http.ResponseWriter
	code    int
	streams bool      // HTTP/2, where each limit is a message to the connection's own goroutine
	limited time.Time // when the limit was set; zero: there is none
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

func (r *recorder) status() int {
	if r.code == 0 {
		return http.StatusOK
	}
	return r.code
}

// slack is by how much a limit of a request may be shorter, so that it is not set
// anew for each of its parts.
const slack = time.Second

// wait takes the time limit of writing away until there is something to
// write: what the connection's last request left may be over, and in HTTP/2 a
// limit that passes breaks a query off that waits for a change. There a request
// begins without one.
func (r *recorder) wait() {
	if r.streams && r.limited.IsZero() {
		return
	}
	r.limited = time.Time{}
	_ = http.NewResponseController(r.ResponseWriter).SetWriteDeadline(time.Time{}) // as in extend
}

// extend gives the connection time to take an answer.
func (r *recorder) extend(d time.Duration) {
	now := time.Now()
	if r.streams && now.Sub(r.limited) < slack {
		return
	}
	r.limited = now
	// A test's recorder has no deadlines; that is no reason to fail.
	_ = http.NewResponseController(r.ResponseWriter).SetWriteDeadline(now.Add(d))
}
