package aptproxy

import (
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"holdfast/aptproxy/cas"
)

// maxHot bounds the bodies that are held in memory, in bytes.
const maxHot = 8 << 20

// hot holds small blobs that were asked for lately: to open, prove and read a
// file costs more than to send it.
type hot struct {
	mu    sync.Mutex
	by    map[cas.Sum]*hotBlob
	bytes int
}

// hotBlob is a blob in memory. It is immutable.
type hotBlob struct {
	data     []byte
	modified time.Time
}

// hotOf gives a small blob that the store has; nil when it has none of that
// hash, or a larger one.
func (s *Server) hotOf(sum cas.Sum) *hotBlob {
	size, ok := s.store.Use(sum)
	if !ok || size > smallBody {
		return nil
	}
	s.hot.mu.Lock()
	b := s.hot.by[sum]
	s.hot.mu.Unlock()
	if b != nil {
		return b
	}
	blob, err := s.store.Open(sum)
	if err != nil {
		return nil
	}
	defer blob.File.Close()
	b = &hotBlob{data: make([]byte, blob.Size), modified: blob.Modified}
	// Hashed once more: what is in memory is not looked at again.
	if _, err := io.ReadFull(blob.File, b.data); err != nil || cas.Sum(sha(b.data)) != sum {
		return nil
	}
	s.hot.keep(sum, b)
	return b
}

// keep holds a blob, and drops any others for it: those that are wanted come back.
func (h *hot) keep(sum cas.Sum, b *hotBlob) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil {
		h.by = map[cas.Sum]*hotBlob{}
	}
	if _, had := h.by[sum]; had {
		return
	}
	for other, old := range h.by {
		if h.bytes+len(b.data) <= maxHot {
			break
		}
		delete(h.by, other)
		h.bytes -= len(old.data)
	}
	h.by[sum] = b
	h.bytes += len(b.data)
}

// appendHead appends the head of the answer to a GET of a whole file that is
// vouched for, word for word as net/http writes it for serveVouched.
func appendHead(p []byte, sum cas.Sum, size int64, name string, modified, now time.Time) []byte {
	p = append(p, "HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: "...)
	p = strconv.AppendInt(p, size, 10)
	p = append(append(p, "\r\nContent-Type: "...), contentType(name)...)
	p = append(append(p, "\r\nEtag: "...), etag(sum)...)
	if !modified.IsZero() {
		p = append(p, "\r\nLast-Modified: "...)
		p = modified.UTC().AppendFormat(p, http.TimeFormat)
	}
	p = append(p, "\r\nDate: "...)
	p = now.UTC().AppendFormat(p, http.TimeFormat)
	return append(p, "\r\n\r\n"...)
}
