package aptproxy

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"holdfast/aptproxy/cas"
)

// smallBody is up to how many bytes a blob is sent by one write instead of
// sendfile: two packets, and two system calls, cost more than the copy.
const smallBody = chunk

// minRate is how slowly a client may read, in bytes per second, after grace.
const (
	minRate  = 1 << 10
	graceFor = time.Minute
)

// serveRelease answers with a Release file.
func (s *Server) serveRelease(w http.ResponseWriter, r *http.Request, f found) {
	s.metrics.hit.Inc()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Etag", etag(f.sum))
	h.Set("Cache-Control", "no-cache")
	s.warnExpired(h, f.generation)
	modified := f.generation.release.Date
	exactly(r, modified)
	s.metrics.served.Add(float64(len(f.data)))
	http.ServeContent(w, r, "", modified, bytes.NewReader(f.data))
}

// serveVouched answers with a file of which the hash is known.
func (s *Server) serveVouched(w http.ResponseWriter, r *http.Request, repo *repository, f found, name string) {
	h := w.Header()
	h.Set("Content-Type", contentType(name))
	h.Set("Etag", etag(f.sum))
	s.warnExpired(h, f.generation)
	if s.serveBlob(w, r, f.sum) {
		s.metrics.hit.Inc()
		return
	}
	if r.Header.Get("If-None-Match") == etag(f.sum) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	s.metrics.miss.Inc()
	if r.Method == http.MethodHead && f.size >= 0 {
		h.Set("Content-Length", strconv.FormatInt(f.size, 10))
		h.Set("Accept-Ranges", "bytes")
		return
	}
	one, reader := s.fetch(s.wantOf(repo, f.vouched, f.paths))
	defer reader.close()
	s.serveFlight(w, r, one, reader)
}

func etag(sum cas.Sum) string { return `"` + sum.String() + `"` }

// serveBlob answers from the store. It is false, and nothing was answered, when
// the store has no such blob, or only a damaged one.
func (s *Server) serveBlob(w http.ResponseWriter, r *http.Request, sum cas.Sum) bool {
	blob, err := s.store.Open(sum)
	if err != nil {
		return false
	}
	defer blob.File.Close()
	_ = http.NewResponseController(w).SetWriteDeadline(deadlineFor(blob.Size))
	exactly(r, blob.Modified)
	s.metrics.served.Add(float64(blob.Size))
	if blob.Size > smallBody || conditional(r) || r.Method == http.MethodHead {
		http.ServeContent(w, r, "", blob.Modified, blob.File)
		return true
	}
	buf := s.buffers.Get().(*[chunk]byte)
	defer s.buffers.Put(buf)
	n, err := io.ReadFull(io.NewSectionReader(blob.File, 0, blob.Size), buf[:blob.Size])
	if err != nil {
		panic(http.ErrAbortHandler) // it was proven, and can't be read any more
	}
	h := w.Header()
	h.Set("Content-Length", strconv.Itoa(n))
	h.Set("Accept-Ranges", "bytes")
	if !blob.Modified.IsZero() {
		h.Set("Last-Modified", blob.Modified.UTC().Format(http.TimeFormat))
	}
	_, _ = w.Write(buf[:n]) // the client is gone: nobody to tell
	return true
}

// deadlineFor is when a client must have taken a body of a size.
func deadlineFor(size int64) time.Time {
	return time.Now().Add(graceFor + time.Duration(size/minRate)*time.Second)
}

// conditional tells whether a request asks for less than the whole.
func conditional(r *http.Request) bool {
	for _, name := range []string{"Range", "If-Modified-Since", "If-None-Match", "If-Match", "If-Unmodified-Since"} {
		if r.Header[name] != nil {
			return true
		}
	}
	return false
}

// exactly makes a client's date count only when it is the file's own: a file
// that was replaced by an older one has changed, too.
func exactly(r *http.Request, modified time.Time) {
	at, err := http.ParseTime(r.Header.Get("If-Modified-Since"))
	if err != nil || at.Unix() != modified.Unix() {
		r.Header.Del("If-Modified-Since")
	}
}

// serveFlight answers with a download that is under way. It is complete, or the
// connection is broken.
func (s *Server) serveFlight(w http.ResponseWriter, r *http.Request, one *flight, reader *reader) {
	select {
	case <-one.known:
	case <-r.Context().Done():
		return
	}
	h := w.Header()
	if at, err := http.ParseTime(r.Header.Get("If-Modified-Since")); err == nil && !one.modified.IsZero() && at.Unix() == one.modified.Unix() {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	status, left := http.StatusOK, one.size
	if from, to, ok := rangeOf(r, one); ok {
		status, left = http.StatusPartialContent, to-from
		h.Set("Content-Range", "bytes "+strconv.FormatInt(from, 10)+"-"+strconv.FormatInt(to-1, 10)+"/"+strconv.FormatInt(one.size, 10))
		reader.seek(from)
	}
	buf := s.buffers.Get().(*[chunk]byte)
	defer s.buffers.Put(buf)
	n, err := reader.next(r.Context(), buf[:])
	if err != nil {
		if r.Context().Err() == nil {
			clearBody(h)
			s.answerError(w, err)
		}
		return
	}
	if left >= 0 {
		h.Set("Content-Length", strconv.FormatInt(left, 10))
		h.Set("Accept-Ranges", "bytes")
	}
	if !one.modified.IsZero() {
		h.Set("Last-Modified", one.modified.UTC().Format(http.TimeFormat))
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	s.copyFlight(w, r, reader, left, buf, n)
}

// copyFlight sends what is read until left bytes are sent, or the body ends.
// The first n bytes are in buf.
func (s *Server) copyFlight(w http.ResponseWriter, r *http.Request, reader *reader, left int64, buf *[chunk]byte, n int) {
	control := http.NewResponseController(w)
	for n > 0 && left != 0 {
		if left > 0 {
			n = int(min(int64(n), left))
			left -= int64(n)
		}
		_ = control.SetWriteDeadline(deadlineFor(int64(n)))
		if _, err := w.Write(buf[:n]); err != nil {
			return
		}
		s.metrics.served.Add(float64(n))
		if left == 0 {
			return
		}
		if reader.waits() {
			_ = control.Flush()
		}
		var err error
		if n, err = reader.next(r.Context(), buf[:]); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if left > 0 {
		panic(http.ErrAbortHandler) // less came than was announced
	}
}

// waits tells whether there is nothing to read yet.
func (r *reader) waits() bool {
	r.body.mu.Lock()
	defer r.body.mu.Unlock()
	return r.at >= r.body.released && !r.body.ended
}

// clearBody takes back what was said of a body that does not come.
func clearBody(h http.Header) {
	for _, name := range []string{"Etag", "Content-Range", "Content-Length", "Last-Modified", "Cache-Control", "Warning", "Content-Type"} {
		h.Del(name)
	}
}

// rangeOf reads a range of one part (RFC 9110 §14.2) of a download. Anything
// else is answered with the whole, as it may be.
func rangeOf(r *http.Request, one *flight) (from, to int64, ok bool) {
	spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok || one.size < 0 || strings.Contains(spec, ",") {
		return 0, 0, false
	}
	if condition := r.Header.Get("If-Range"); condition != "" {
		at, err := http.ParseTime(condition)
		if err != nil || one.modified.IsZero() || at.Unix() != one.modified.Unix() {
			return 0, 0, false
		}
	}
	first, last, ok := strings.Cut(spec, "-")
	if !ok {
		return 0, 0, false
	}
	to = one.size
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n <= 0 {
			return 0, 0, false
		}
		return max(0, one.size-n), to, one.size > 0
	}
	from, err := strconv.ParseInt(first, 10, 64)
	if err != nil || from < 0 || from >= one.size {
		return 0, 0, false
	}
	if last != "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < from {
			return 0, 0, false
		}
		to = min(to, n+1)
	}
	return from, to, true
}

// failure is why a body that has ended is not whole; nil when it is.
func (b *body) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		return errors.New("the download has not ended")
	}
	return b.err
}
