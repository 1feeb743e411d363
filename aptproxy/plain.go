package aptproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"holdfast/aptproxy/cas"
)

// servePlain answers with a file that nothing vouches for but its server, by
// HTTP's own rules of caching (RFC 9111).
func (s *Server) servePlain(w http.ResponseWriter, r *http.Request, t target) {
	s.metrics.passed.Inc()
	key := t.url().String()
	entry, have := s.store.Name(key)
	if have {
		_, have = s.store.Has(entry.Sum)
	}
	if have && s.now().Before(entry.Fresh) && s.servePlainBlob(w, r, entry, "") {
		return
	}
	one, reader := s.flights.join("plain "+key, func() *flight { return s.beginPlain(t, key, entry, have) })
	defer reader.close()
	select {
	case <-one.known:
	case <-r.Context().Done():
		return
	}
	if one.kept != nil && s.servePlainBlob(w, r, *one.kept, one.warning) {
		return
	}
	for _, name := range []string{"Content-Type", "Etag", "Cache-Control", "Expires"} {
		if v := one.header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	s.serveFlight(w, r, one, reader)
}

// servePlainBlob answers from the store.
func (s *Server) servePlainBlob(w http.ResponseWriter, r *http.Request, e cas.Entry, warning string) bool {
	h := w.Header()
	if e.Type != "" {
		h.Set("Content-Type", e.Type)
	} else {
		h.Set("Content-Type", "application/octet-stream")
	}
	if e.ETag != "" {
		h.Set("Etag", e.ETag)
	}
	if warning != "" {
		h.Set("Warning", warning)
	}
	if s.serveBlob(w, r, e.Sum) {
		return true
	}
	clearBody(h)
	return false
}

// beginPlain asks a server, on behalf of all clients that want the file.
func (s *Server) beginPlain(t target, key string, entry cas.Entry, have bool) *flight {
	writer, err := s.store.Create(0)
	if err != nil {
		s.log.Warn("a download is passed through, because it can't be stored", "url", key, "error", err)
	}
	one := newFlight(writer)
	s.work.Go(func() {
		defer close(one.done)
		err := s.flyPlain(s.life(), one, t, key, entry, have)
		one.announce()
		one.body.end(err)
		// Who comes later asks the server anew, while the disk still syncs.
		s.flights.leave("plain "+key, one)
		if err == nil && one.kept == nil && one.keep != nil && writer != nil {
			s.landPlain(one, key)
		}
		one.body.close()
	})
	return one
}

// flyPlain downloads the file, or finds that the one we have still is it.
func (s *Server) flyPlain(ctx context.Context, one *flight, t target, key string, entry cas.Entry, have bool) error {
	header := http.Header{}
	if have && entry.ETag != "" {
		header.Set("If-None-Match", entry.ETag)
	}
	if have && entry.LastModified != "" {
		header.Set("If-Modified-Since", entry.LastModified)
	}
	response, err := s.upstream().ask(ctx, t.url(), header)
	if err != nil {
		if have && ctx.Err() == nil && !errors.Is(err, errForbidden) {
			one.kept, one.warning = &entry, `111 - "the server does not answer: this was right `+s.now().Sub(entry.Checked).Round(time.Second).String()+` ago"`
			return nil
		}
		return err
	}
	defer response.Body.Close()
	s.metrics.upstream.WithLabelValues(strconv.Itoa(response.StatusCode/100) + "xx").Inc()
	switch {
	case response.StatusCode == http.StatusNotModified && have:
		entry.Checked, entry.Fresh = s.now(), freshUntil(response.Header, s.now())
		s.store.SetName(key, entry)
		one.kept = &entry
		return nil
	case response.StatusCode >= 500 && have:
		one.kept, one.warning = &entry, `110 - "the server is in trouble: this may be old"`
		return nil
	case response.StatusCode != http.StatusOK:
		return statusError(t.url(), response)
	}
	one.size, one.header = response.ContentLength, response.Header
	if at, err := http.ParseTime(response.Header.Get("Last-Modified")); err == nil {
		one.modified = at
	}
	if storable(response.Header) {
		one.keep = &cas.Entry{
			Type: response.Header.Get("Content-Type"), ETag: response.Header.Get("Etag"), LastModified: response.Header.Get("Last-Modified"),
			Checked: s.now(), Fresh: freshUntil(response.Header, s.now()),
		}
	}
	one.announce()
	return s.receivePlain(ctx, one, response.Body)
}

// receivePlain passes the body on as it comes.
func (s *Server) receivePlain(ctx context.Context, one *flight, in io.Reader) error {
	buf := s.buffers.Get().(*[chunk]byte)
	defer s.buffers.Put(buf)
	for {
		n, err := in.Read(buf[:])
		if n > 0 {
			if err := one.body.append(ctx, buf[:n]); err != nil {
				return err
			}
			s.metrics.fetchedBytes.Add(float64(n))
			one.body.release(one.body.length())
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if length := one.body.length(); one.size >= 0 && length != one.size {
		return fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, length, one.size)
	}
	return nil
}

// landPlain stores the file under its hash and remembers its name.
func (s *Server) landPlain(one *flight, key string) {
	e := *one.keep
	e.Sum, e.Size = one.body.sum(), one.body.length()
	if err := one.body.writer.Commit(e.Sum, one.modified); err != nil {
		if !errors.Is(err, cas.ErrFull) {
			s.log.Error("a download can't be stored", "url", key, "error", err)
		}
		return
	}
	s.store.SetName(key, e)
}

// storable tells whether a shared cache may keep an answer (RFC 9111 §3). One
// that depends on more than the URL is not kept.
func storable(h http.Header) bool {
	control := strings.ToLower(h.Get("Cache-Control"))
	return !strings.Contains(control, "no-store") && !strings.Contains(control, "private") && h.Get("Set-Cookie") == "" &&
		(h.Get("Vary") == "" || strings.EqualFold(h.Get("Vary"), "Accept-Encoding")) && h.Get("Content-Encoding") == ""
}

// maxFresh bounds what a server may say, so that a mistake of its admin ends.
const maxFresh = 30 * 24 * time.Hour

// freshUntil is until when an answer need not be asked for again (RFC 9111
// §4.2.1). A server that says nothing is asked every time.
func freshUntil(h http.Header, now time.Time) time.Time {
	control := strings.ToLower(h.Get("Cache-Control"))
	if strings.Contains(control, "no-cache") {
		return now
	}
	age, _ := strconv.Atoi(h.Get("Age"))
	shared := -1
	for part := range strings.SplitSeq(control, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		seconds, err := strconv.Atoi(strings.Trim(value, `"`))
		if err != nil || name != "max-age" && name != "s-maxage" || seconds < 0 {
			continue
		}
		if shared < 0 || name == "s-maxage" {
			shared = seconds
		}
	}
	if shared >= 0 {
		return now.Add(min(maxFresh, time.Duration(max(0, shared-age))*time.Second))
	}
	expires, err := http.ParseTime(h.Get("Expires"))
	date, bad := http.ParseTime(h.Get("Date"))
	if err != nil || bad != nil || !expires.After(date) {
		return now
	}
	return now.Add(min(maxFresh, expires.Sub(date)))
}
