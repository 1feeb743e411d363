package aptproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/aptproxy/cas"
)

// withheld is how much of the end of a download nobody gets before its hash is
// found right, in bytes: a body without its end is known to be broken.
const withheld = 64 << 10

// sizeUnknown is the size of a file that only its hash is known of.
const sizeUnknown = -1

// want is a file that is looked for: where, and what it has to be.
type want struct {
	sum    cas.Sum
	size   int64 // bytes, or sizeUnknown
	paths  []string
	mirror []*mirror
	peers  []*mirror // asked by hash when no mirror has it
}

// errLied says that a server sent something else than the file.
var errLied = errors.New("what came is not the file that the repository's signature vouches for")

// flight is a download under way, for all who want the file.
type flight struct {
	body *body

	known    chan struct{} // closed when size and modified are, or the flight has failed
	begin    sync.Once
	size     int64 // of the whole body; sizeUnknown: it has no announced end
	modified time.Time

	// Of an answer that nothing vouches for:
	header  http.Header
	keep    *cas.Entry // how it is to be remembered; nil: not at all
	kept    *cas.Entry // the one that we have is served instead
	warning string     // what is said with it

	done chan struct{} // closed when it is over and, if it can be, stored
}

func newFlight(w *cas.Writer) *flight {
	return &flight{body: newBody(w), known: make(chan struct{}), size: sizeUnknown, done: make(chan struct{})}
}

// flights are the downloads under way, by what they are.
type flights struct {
	mu sync.Mutex
	by map[string]*flight
}

// join gives a reader of the flight under a key, and begins the flight if there
// is none, only one that has failed and has not left yet, or one whose beginning
// is not to be had any more.
func (f *flights) join(key string, begin func() *flight) (*flight, *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	one := f.by[key]
	if one == nil || one.body.lost() || one.body.broken() {
		one = begin()
		f.by[key] = one
	}
	return one, one.body.read()
}

func (f *flights) leave(key string, one *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.by[key] == one {
		delete(f.by, key)
	}
}

func (f *flights) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.by)
}

// fetch begins the download of a file that is vouched for, or joins it. It does
// not block; the download goes on when who asked is gone.
func (s *Server) fetch(w want) (*flight, *reader) {
	key := w.sum.String()
	return s.flights.join(key, func() *flight {
		writer, err := s.store.Create(max(0, w.size))
		if err != nil {
			s.log.Warn("a download is passed through, because it can't be stored", "sum", key, "error", err)
		}
		one := newFlight(writer)
		if w.size >= 0 {
			one.size = w.size
		}
		s.work.Go(func() {
			defer close(one.done)
			err := s.fly(s.life(), one, w)
			one.announce()
			one.body.end(err)
			s.land(one, w, err)
			s.flights.leave(key, one)
			one.body.close()
		})
		return one
	})
}

// announce tells that size and modified are known.
func (f *flight) announce() { f.begin.Do(func() { close(f.known) }) }

// land stores what came.
func (s *Server) land(one *flight, w want, err error) {
	if err != nil {
		s.metrics.failed.Inc()
		s.log.Warn("a download failed", "path", w.paths[0], "error", err)
	}
	if one.body.writer == nil || err != nil {
		return
	}
	if err := one.body.writer.Commit(w.sum, one.modified); err != nil && !errors.Is(err, cas.ErrFull) {
		s.log.Error("a download can't be stored", "path", w.paths[0], "error", err)
	}
}

// fly asks mirror after mirror until one gave the whole file. What one sent
// before it broke is continued from the next: the hash covers all of it.
func (s *Server) fly(ctx context.Context, one *flight, w want) error {
	if s.landed(ctx, one, w) {
		return nil
	}
	var failed error
	lied := map[*mirror]bool{}
	for round := range 2 {
		for _, m := range inOrder(w.mirror, s.now()) {
			if lied[m] || round > 0 && m.resting(s.now()) && len(w.mirror) > 1 {
				continue
			}
			err := s.flyFrom(ctx, one, w, m)
			switch {
			case err == nil:
				return nil
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case errors.Is(err, errNobody):
				return err
			case errors.Is(err, errLied):
				lied[m] = true
				s.metrics.lies.Inc()
				s.log.Error("a mirror sent a file that is not what the repository's signature vouches for", "mirror", m.String(), "path", w.paths[0], "sum", w.sum, "error", err)
				m.failed(s.now(), err)
				if !s.restart(one, w) {
					return err
				}
			}
			failed = better(failed, err)
		}
		if failed != nil && isAbsent(failed) {
			break
		}
	}
	for _, p := range w.peers {
		if s.flyPath(ctx, one, w, p, p.at(w.sum.String())) == nil {
			return nil
		}
	}
	if failed == nil {
		failed = errors.New("no mirror was asked")
	}
	return failed
}

// landed takes the file from the store, where the flight before may have brought
// it after the client had looked there and before it came to join.
func (s *Server) landed(ctx context.Context, one *flight, w want) bool {
	blob, err := s.store.Open(w.sum)
	if err != nil {
		return false
	}
	defer blob.File.Close()
	one.size, one.modified = blob.Size, blob.Modified
	one.announce()
	return s.receive(ctx, one, w, blob.File, 0) == nil
}

// better chooses the error that tells more: that a file is absent is known only
// when every mirror said so.
func better(a, b error) error {
	if a == nil || isAbsent(a) {
		return b
	}
	return a
}

// restart begins the download anew, if no client has any of it.
func (s *Server) restart(one *flight, w want) bool {
	writer, err := s.store.Create(max(0, w.size))
	if err != nil {
		writer = nil
	}
	if one.body.restart(writer) {
		return true
	}
	if writer != nil {
		_ = writer.Close()
	}
	return false
}

// flyFrom asks one mirror for what is missing.
func (s *Server) flyFrom(ctx context.Context, one *flight, w want, m *mirror) error {
	var err error
	for _, path := range w.paths {
		if err = s.flyPath(ctx, one, w, m, m.at(path)); err == nil || !isAbsent(err) {
			return err
		}
	}
	return err
}

func (s *Server) flyPath(ctx context.Context, one *flight, w want, m *mirror, where *url.URL) error {
	from := one.body.length()
	header := http.Header{}
	if from > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	asked := s.now()
	response, err := s.upstream().ask(ctx, where, header)
	if err != nil {
		if ctx.Err() == nil {
			m.failed(s.now(), err)
		}
		return err
	}
	defer response.Body.Close()
	s.metrics.upstream.WithLabelValues(strconv.Itoa(response.StatusCode/100) + "xx").Inc()
	skip, err := s.examine(one, w, where, response, from)
	if err != nil {
		if response.StatusCode >= 500 {
			m.failed(s.now(), err)
		} else {
			m.worked(s.now().Sub(asked))
		}
		return err
	}
	m.worked(s.now().Sub(asked))
	defer func() { m.gave(max(0, one.body.length()-from)) }()
	if err := s.receive(ctx, one, w, response.Body, skip); err != nil {
		if ctx.Err() == nil && !errors.Is(err, errNobody) {
			m.failed(s.now(), err)
		}
		return fmt.Errorf("%s: %w", where.Redacted(), err)
	}
	return nil
}

// examine looks at an answer before its body: is it what was asked for? It
// tells how many bytes of it are here already.
func (s *Server) examine(one *flight, w want, where *url.URL, response *http.Response, from int64) (skip int64, err error) {
	switch response.StatusCode {
	case http.StatusOK:
		skip = from // it ignores ranges
		if n := response.ContentLength; n >= 0 && one.size >= 0 && n != one.size {
			return 0, fmt.Errorf("%w: %s has %d bytes, not %d", errLied, where.Redacted(), n, one.size)
		}
		if one.size < 0 && from == 0 {
			one.size = response.ContentLength
		}
	case http.StatusPartialContent:
		if !strings.HasPrefix(response.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", from)) || from == 0 {
			return 0, fmt.Errorf("%w: %s sends the range %q, not what follows byte %d", errLied, where.Redacted(), clip(response.Header.Get("Content-Range")), from)
		}
	case http.StatusRequestedRangeNotSatisfiable:
		return 0, fmt.Errorf("%w: %s ends before byte %d", errLied, where.Redacted(), from)
	default:
		return 0, statusError(where, response)
	}
	if from == 0 {
		if at, err := http.ParseTime(response.Header.Get("Last-Modified")); err == nil {
			one.modified = at
		}
	}
	one.announce()
	return skip, nil
}

// chunk is how much is received at once, in bytes.
const chunk = 64 << 10

// receive takes the body in, holds the end back, and releases it when the hash
// of the whole is right.
func (s *Server) receive(ctx context.Context, one *flight, w want, in io.Reader, skip int64) error {
	buf := s.buffers.Get().(*[chunk]byte)
	defer s.buffers.Put(buf)
	if skip > 0 {
		if _, err := io.CopyN(io.Discard, in, skip); err != nil {
			return err
		}
	}
	for {
		n, err := in.Read(buf[:])
		if n > 0 {
			if fetch := s.active.Load().settings.fetch; fetch != nil {
				if err := fetch.WaitN(ctx, n); err != nil {
					return err
				}
			}
			if one.size >= 0 && one.body.length()+int64(n) > one.size {
				return fmt.Errorf("%w: more than %d bytes came", errLied, one.size)
			}
			if err := one.body.append(ctx, buf[:n]); err != nil {
				return err
			}
			s.metrics.fetchedBytes.Add(float64(n))
			one.body.release(one.body.length() - withheld)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	length := one.body.length()
	if one.size >= 0 && length < one.size {
		return fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, length, one.size)
	}
	if got := one.body.sum(); got != w.sum {
		return fmt.Errorf("%w: SHA-256 %s, not %s", errLied, got, w.sum)
	}
	return nil
}
