package aptproxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/aptproxy/cas"
	"holdfast/aptproxy/deb"
)

// repository is a tree of signed suites with its mirrors.
type repository struct {
	name    string
	keep    int
	max     int64        // bytes of the store; 0: no quota
	keyring *deb.Keyring // nil: signatures are not verified
	aliases []target
	mirrors []*mirror

	mu         sync.Mutex
	suites     map[string]*suite // by directory
	validators map[string]validator
}

// validator is what a mirror said of a Release file, to ask whether it changed.
type validator struct {
	etag, modified string
	sum            cas.Sum
}

func sha(data []byte) [32]byte { return sha256.Sum256(data) }

// suite finds a suite by its directory; nil when there is none.
func (r *repository) suite(dir string) *suite {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.suites[dir]
}

// all are the suites by directory.
func (r *repository) all() []*suite {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]*suite, 0, len(r.suites))
	for _, su := range r.suites {
		list = append(list, su)
	}
	slices.SortFunc(list, func(a, b *suite) int { return strings.Compare(a.dir, b.dir) })
	return list
}

// above is the suite whose directory a file is in: the deepest.
func (r *repository) above(name string) *suite {
	var found *suite
	for _, su := range r.all() {
		if su.dir != "." && !strings.HasPrefix(name, su.dir+"/") {
			continue
		}
		if found == nil || found.dir == "." || len(su.dir) > len(found.dir) {
			found = su
		}
	}
	return found
}

// freshFor is how long what a mirror said of a Release counts.
const freshFor = 10 * time.Second

// maxRelease bounds a Release file, in bytes; Debian's have 150 KB.
const maxRelease = 16 << 20

// errStale says that a mirror is behind what another one, or the same, had.
var errStale = errors.New("the mirror has an older Release than the one that was seen before")

// errNoRelease says that a directory has no Release: it is no suite.
var errNoRelease = errors.New("there is no Release")

// refresh sees whether a mirror has a newer generation of a suite and publishes
// it when all of it that clients use is here. It gives the current one, also
// when no mirror answers; an error only when there is none. It blocks for the
// mirrors.
func (s *Server) refresh(ctx context.Context, r *repository, dir string) (*generation, error) {
	su := r.suite(dir)
	if su == nil {
		su = &suite{dir: dir, used: map[string]time.Time{}}
		// Two clients may come here at once; the second's suite is dropped.
	}
	su.refreshing.Lock()
	defer su.refreshing.Unlock()
	now := s.now()
	if g := su.current(); g != nil && now.Sub(su.lastChecked()) < s.fresh {
		return g, nil
	}
	g, err := s.newestWhole(ctx, r, su)
	current := su.current()
	if err != nil {
		su.note(err)
		if current == nil {
			return nil, err
		}
		s.log.Warn("no newer Release: the one before is served", "repository", r.name, "suite", dir, "generation", current.String(), "error", err)
		return current, nil
	}
	if current == nil || current.id != g.id {
		su.publish(g, r.keep)
		s.log.Info("a new generation is served", "repository", r.name, "suite", dir, "generation", g.String())
	}
	su.seen(now)
	r.mu.Lock()
	if r.suites[dir] == nil {
		r.suites[dir] = su
	}
	su = r.suites[dir]
	r.mu.Unlock()
	s.save(r, su)
	return su.current(), nil
}

func (su *suite) lastChecked() time.Time {
	su.mu.Lock()
	defer su.mu.Unlock()
	return su.checked
}

func (su *suite) seen(now time.Time) {
	su.mu.Lock()
	defer su.mu.Unlock()
	su.checked, su.trouble = now, ""
}

func (su *suite) note(err error) {
	su.mu.Lock()
	defer su.mu.Unlock()
	su.trouble = err.Error()
}

// attempts is how often a generation is looked for while a mirror changes under
// our hands.
const attempts = 3

// newestWhole gives the newest generation with the indices that it needs. When
// the mirror has other indices than its Release said, a newer Release is there
// by now, or comes in a moment.
func (s *Server) newestWhole(ctx context.Context, r *repository, su *suite) (g *generation, err error) {
	for i := range attempts {
		if i > 0 {
			pause := time.NewTimer(s.pause << (i - 1))
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
				return nil, context.Cause(ctx)
			}
		}
		if g, err = s.newest(ctx, r, su); err != nil {
			return nil, err
		}
		if err = s.prefetch(ctx, r, su, g); !errors.Is(err, errLied) {
			return g, err
		}
	}
	return g, err
}

// newest asks mirror after mirror for a Release that is signed and no older
// than the current one.
func (s *Server) newest(ctx context.Context, r *repository, su *suite) (*generation, error) {
	var failed error
	for _, m := range inOrder(r.mirrors, s.now()) {
		g, err := s.releaseOf(ctx, r, su, m)
		if err == nil {
			return g, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		s.log.Debug("a mirror has no usable Release", "mirror", m.String(), "suite", su.dir, "error", err)
		failed = better(failed, err)
	}
	return nil, failed
}

// releaseOf gets the Release of one mirror and verifies it.
func (s *Server) releaseOf(ctx context.Context, r *repository, su *suite, m *mirror) (*generation, error) {
	inline, err := s.volatile(ctx, r, m, path.Join(su.dir, inlineFile))
	var blobs releaseBlobs
	var text []byte
	switch {
	case err == nil:
		if text, err = r.keyring.Inline(inline.data, s.now()); err != nil {
			m.failed(s.now(), err)
			return nil, fmt.Errorf("%s: %s/%s: %w", m, su.dir, inlineFile, err)
		}
		blobs.Inline = inline.sum.String()
	case isAbsent(err):
		if blobs, text, err = s.detached(ctx, r, m, su.dir); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	g, err := newGeneration(su.dir, blobs, text, s.now())
	if err != nil {
		m.failed(s.now(), err)
		return nil, fmt.Errorf("%s: %s: %w", m, su.dir, err)
	}
	current := su.current()
	if current != nil && g.release.Date.Before(current.release.Date) {
		return nil, fmt.Errorf("%s: %s: %w (%s, not %s)", m, su.dir, errStale, g.release.Date, current.release.Date)
	}
	if current != nil && current.id == g.id && current.blobs.Inline == g.blobs.Inline {
		return current, nil
	}
	return g, nil
}

// detached gets Release with Release.gpg.
func (s *Server) detached(ctx context.Context, r *repository, m *mirror, dir string) (releaseBlobs, []byte, error) {
	plain, err := s.volatile(ctx, r, m, path.Join(dir, plainFile))
	if err != nil {
		return releaseBlobs{}, nil, err
	}
	signature, err := s.volatile(ctx, r, m, path.Join(dir, signatureFile))
	if isAbsent(err) && r.keyring == nil {
		return releaseBlobs{Plain: plain.sum.String()}, plain.data, nil
	}
	if err != nil {
		return releaseBlobs{}, nil, err
	}
	if err := r.keyring.Detached(plain.data, signature.data, s.now()); err != nil {
		m.failed(s.now(), err)
		return releaseBlobs{}, nil, fmt.Errorf("%s: %s/%s: %w", m, dir, signatureFile, err)
	}
	return releaseBlobs{Plain: plain.sum.String(), Signature: signature.sum.String()}, plain.data, nil
}

// small is a file that was read whole.
type small struct {
	data []byte
	sum  cas.Sum
}

// volatile gets a Release file from a mirror, by a conditional request when it
// is known already, and keeps it. It never resumes: another state of the same
// file would follow the first part.
func (s *Server) volatile(ctx context.Context, r *repository, m *mirror, name string) (small, error) {
	where := m.at(name)
	key := where.String()
	r.mu.Lock()
	known, have := r.validators[key]
	r.mu.Unlock()
	header := http.Header{"Cache-Control": {"max-age=0"}}
	old, err := s.readBlob(known.sum)
	if have = have && err == nil; have {
		if known.etag != "" {
			header.Set("If-None-Match", known.etag)
		}
		if known.modified != "" {
			header.Set("If-Modified-Since", known.modified)
		}
	}
	asked := s.now()
	response, err := s.upstream().ask(ctx, where, header)
	if err != nil {
		if ctx.Err() == nil {
			m.failed(s.now(), err)
		}
		return small{}, err
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode == http.StatusNotModified && have:
		m.worked(s.now().Sub(asked))
		return small{old, known.sum}, nil
	case response.StatusCode != http.StatusOK:
		err := statusError(where, response)
		if response.StatusCode >= 500 {
			m.failed(s.now(), err)
		}
		return small{}, err
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxRelease+1))
	if err == nil && len(data) > maxRelease {
		err = fmt.Errorf("it is larger than %d bytes", maxRelease)
	}
	if err != nil {
		m.failed(s.now(), err)
		return small{}, fmt.Errorf("%s: %w", where.Redacted(), err)
	}
	m.worked(s.now().Sub(asked))
	sum, err := s.store.Put(data, time.Time{})
	if err != nil {
		// It is served from memory while the disk is full.
		s.log.Warn("a Release can't be stored", "path", name, "error", err)
	}
	s.keepInMemory(sum, data)
	r.mu.Lock()
	r.validators[key] = validator{response.Header.Get("ETag"), response.Header.Get("Last-Modified"), sum}
	r.mu.Unlock()
	return small{data, sum}, nil
}

// firstPatience bounds how long the first client of a suite waits for what it
// is likely to ask for next: apt itself waits for 30 s.
const firstPatience = 10 * time.Second

// prefetch gets the indices of a new generation that clients use. Of a suite
// that nobody used yet, those that are likely: they are not waited for for ever,
// and one that the mirror lacks is no error.
func (s *Server) prefetch(ctx context.Context, r *repository, su *suite, g *generation) error {
	current := su.current()
	if current != nil && current.id == g.id {
		return nil
	}
	needed := su.needed(g, s.now())
	first := current == nil && len(needed) == 0
	if !first {
		return s.prefetchAll(ctx, r, g, needed)
	}
	patience, cancel := context.WithTimeout(ctx, firstPatience)
	defer cancel()
	err := s.prefetchAll(patience, r, g, g.likely())
	if ctx.Err() == nil && !errors.Is(err, errLied) {
		return nil
	}
	return err
}

// prefetchAll has files fetched, all at once, and waits for them. What is under
// way goes on when ctx ends.
func (s *Server) prefetchAll(ctx context.Context, r *repository, g *generation, files []deb.File) error {
	var flights []*flight
	for _, f := range files {
		one := (*flight)(nil)
		if _, have := s.store.Has(cas.Sum(f.Sum)); !have {
			var reader *reader
			one, reader = s.fetch(s.wantOf(r, vouched{cas.Sum(f.Sum), f.Size}, g.paths(f)))
			reader.close()
		}
		flights = append(flights, one)
	}
	for i, one := range flights {
		if one == nil {
			continue
		}
		select {
		case <-one.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := one.body.failure(); err != nil && !errors.Is(err, errNobody) {
			return fmt.Errorf("the new generation %s is not complete: %s: %w", g, files[i].Path, err)
		}
	}
	return nil
}

// table gives the table of an index, reading it first if need be, from the
// mirrors if it is not here. It blocks meanwhile. plain is the path below the
// Release without a compression's suffix.
func (s *Server) table(r *repository, g *generation, plain string) (*table, error) {
	g.mu.Lock()
	cell := g.tables[plain]
	if cell == nil {
		cell = &tableCell{}
		g.tables[plain] = cell
	}
	g.mu.Unlock()
	cell.once.Do(func() {
		var t *table
		if t, cell.err = s.readTable(r, g, plain); cell.err == nil {
			cell.ready.Store(t)
		}
	})
	if cell.err != nil {
		g.mu.Lock() // the next one tries again
		if g.tables[plain] == cell {
			delete(g.tables, plain)
		}
		g.mu.Unlock()
	}
	return cell.ready.Load(), cell.err
}

// suffixes are the compressions of indices, the quickest to unpack first.
func suffixes() []string { return []string{"", ".zst", ".gz", ".lzma", ".xz", ".bz2"} }

// variant is the file of an index that is here, or else the one to fetch.
func (s *Server) variant(g *generation, plain string) (file deb.File, found bool) {
	for _, suffix := range suffixes() {
		f, ok := g.release.Files[plain+suffix]
		if !ok {
			continue
		}
		if _, here := s.store.Has(cas.Sum(f.Sum)); here {
			return f, true
		}
		if !found || f.Size < file.Size {
			file, found = f, true
		}
	}
	return file, found
}

func (s *Server) readTable(r *repository, g *generation, plain string) (*table, error) {
	file, found := s.variant(g, plain)
	if !found {
		return nil, fmt.Errorf("%s: %s: %w", g.dir, plain, errNoRelease)
	}
	data, err := s.whole(r, g, file)
	if err != nil {
		return nil, err
	}
	t, err := newTable(g.dir, file.Path, bytes.NewReader(data))
	if err != nil {
		s.log.Error("an index can't be read: what it lists is not vouched for", "repository", r.name, "suite", g.dir, "index", file.Path, "error", err)
	}
	return t, err
}

// whole reads an index, from the store or the mirrors.
func (s *Server) whole(r *repository, g *generation, f deb.File) ([]byte, error) {
	if data, err := s.readBlob(cas.Sum(f.Sum)); err == nil {
		return data, nil
	}
	one, reader := s.fetch(s.wantOf(r, vouched{cas.Sum(f.Sum), f.Size}, g.paths(f)))
	defer reader.close()
	var data bytes.Buffer
	buf := make([]byte, chunk)
	for {
		n, err := reader.next(s.life(), buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		data.Write(buf[:n])
	}
	<-one.done
	return data.Bytes(), nil
}

// readBlob reads a small blob.
func (s *Server) readBlob(sum cas.Sum) ([]byte, error) {
	if data, ok := s.inMemory(sum); ok {
		return data, nil
	}
	blob, err := s.store.Open(sum)
	if err != nil {
		return nil, err
	}
	defer blob.File.Close()
	data := make([]byte, blob.Size)
	if _, err := io.ReadFull(blob.File, data); err != nil {
		return nil, err
	}
	return data, nil
}
