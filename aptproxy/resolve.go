package aptproxy

import (
	"context"
	"errors"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"holdfast/aptproxy/cas"
	"holdfast/aptproxy/deb"
)

// found is what a request for a file of a repository means.
type found struct {
	vouched
	listed     bool        // a signature vouches for it
	generation *generation // that it is from
	paths      []string    // where mirrors have it, the best first
	data       []byte      // a Release file, which is small
}

// resolve finds out what a client means by a path of a repository. It blocks
// while a Release or an index has to be asked for.
func (s *Server) resolve(ctx context.Context, r *repository, client, name string) (found, error) {
	dir, base := path.Dir(name), path.Base(name)
	known := r.above(name)
	isRelease := base == inlineFile || (base == plainFile || base == signatureFile) && (known == nil || known.dir == dir || known.dir == ".")
	if isRelease {
		return s.resolveRelease(ctx, r, client, dir, base)
	}
	if known == nil {
		known = s.unknownSuite(ctx, r, name)
	}
	if known != nil {
		if f, ok := s.resolveIndex(r, known, client, name); ok {
			return f, nil
		}
	}
	if f, ok := s.resolveFile(r, client, name); ok {
		return f, nil
	}
	return found{}, nil
}

// resolveHere is resolve for files of suites that are known, other than Release
// files: no mirror is asked whether there is something newer. It is false when
// resolve has to be asked.
func (s *Server) resolveHere(r *repository, client, name string) (found, bool) {
	switch path.Base(name) {
	case inlineFile, plainFile, signatureFile:
		return found{}, false
	}
	known := r.above(name)
	if known == nil && strings.HasPrefix(name, "dists/") {
		return found{}, false
	}
	if known != nil {
		if f, ok := s.resolveIndex(r, known, client, name); ok {
			return f, true
		}
	}
	return s.resolveFile(r, client, name)
}

// unknownSuite makes acquaintance with a suite of whose Release a client has a
// copy from elsewhere, or from before our store was lost.
func (s *Server) unknownSuite(ctx context.Context, r *repository, name string) *suite {
	part := strings.SplitN(name, "/", 3)
	if len(part) < 3 || part[0] != "dists" {
		return nil
	}
	dir := part[0] + "/" + part[1]
	if _, err := s.refresh(ctx, r, dir); err != nil {
		return nil
	}
	return r.suite(dir)
}

// resolveRelease answers with a generation, whole: a client never sees files of
// two generations. A generation whose Release was lost from the disk is asked
// for again.
func (s *Server) resolveRelease(ctx context.Context, r *repository, client, dir, base string) (found, error) {
	f, err := s.readRelease(ctx, r, client, dir, base)
	if errors.Is(err, cas.ErrNotFound) {
		f, err = s.readRelease(ctx, r, client, dir, base)
	}
	return f, err
}

func (s *Server) readRelease(ctx context.Context, r *repository, client, dir, base string) (found, error) {
	g, err := s.viewOf(ctx, r, client, dir)
	if err != nil {
		return found{}, err
	}
	if base != signatureFile { // it is asked for after Release, and belongs to it
		s.sightings.saw(client, r.name, dir, g)
	} else if seen := s.sightings.of(client, r.name, dir); seen != nil {
		g = seen
	}
	blobs := g.releaseBlobs()
	sum := map[string]string{inlineFile: blobs.Inline, plainFile: blobs.Plain, signatureFile: blobs.Signature}[base]
	if sum == "" && base != inlineFile {
		if blobs, err = s.completeRelease(ctx, r, g); err != nil {
			return found{}, err
		}
		sum = map[string]string{plainFile: blobs.Plain, signatureFile: blobs.Signature}[base]
	}
	if sum == "" {
		return found{}, &answerError{status: 404, where: path.Join(dir, base)}
	}
	parsed, err := deb.ParseSum(sum)
	if err != nil {
		return found{}, err
	}
	data, err := s.readBlob(cas.Sum(parsed))
	if err != nil {
		if su := r.suite(dir); su != nil {
			su.drop(g)
		}
		return found{}, err
	}
	return found{vouched: vouched{cas.Sum(parsed), int64(len(data))}, listed: true, generation: g, data: data}, nil
}

// completeRelease gets Release and Release.gpg of a generation that came as
// InRelease, for clients that ask for these.
func (s *Server) completeRelease(ctx context.Context, r *repository, g *generation) (releaseBlobs, error) {
	failed := error(&answerError{status: 404, where: path.Join(g.dir, plainFile)})
	for _, m := range inOrder(r.mirrors, s.now()) {
		blobs, text, err := s.detached(ctx, r, m, g.dir)
		if err == nil {
			other, bad := newGeneration(g.dir, blobs, text, s.now())
			if err = bad; err == nil && other.id != g.id {
				err = errStale
			}
		}
		if err == nil {
			g.complete(blobs)
			return g.releaseBlobs(), nil
		}
		if !isAbsent(err) {
			failed = err
		}
	}
	return releaseBlobs{}, failed
}

func (g *generation) releaseBlobs() releaseBlobs {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.blobs
}

func (g *generation) complete(more releaseBlobs) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.blobs.Plain, g.blobs.Signature = more.Plain, more.Signature
}

// drop forgets a generation whose Release was lost.
func (su *suite) drop(g *generation) {
	su.mu.Lock()
	defer su.mu.Unlock()
	su.generations = slices.DeleteFunc(su.generations, func(o *generation) bool { return o == g })
	su.checked = time.Time{}
}

// generationsFor are the generations of a suite that a client may mean, the
// likeliest first: the one that it saw last, the current one, older ones.
func (s *Server) generationsFor(r *repository, su *suite, client string) []*generation {
	list := su.all()
	if g, err := s.frozen(r, client, su.dir); g != nil || err != nil {
		// A client that is held sees nothing else, whatever it saw before.
		if g != nil {
			return []*generation{g}
		}
		return nil
	}
	if seen := s.sightings.of(client, r.name, su.dir); seen != nil {
		list = append([]*generation{seen}, list...)
	}
	return list
}

// resolveIndex finds a file that a Release vouches for. By its own name it is
// that of the generation the client saw last; by its hash, of any.
func (s *Server) resolveIndex(r *repository, su *suite, client, name string) (found, bool) {
	for _, g := range s.generationsFor(r, su, client) {
		f, ok := g.index(name)
		if !ok {
			continue
		}
		if su.use(f.Path, s.now()) {
			s.save(r, su)
		}
		if kind, plain := deb.KindOf(f.Path); kind != deb.NoIndex {
			s.preload(r, g, plain)
		}
		return found{vouched: vouched{cas.Sum(f.Sum), f.Size}, listed: true, generation: g, paths: g.paths(f)}, true
	}
	return found{}, false
}

// preload reads an index in the background: its client will ask for what it lists.
func (s *Server) preload(r *repository, g *generation, plain string) {
	g.mu.Lock()
	_, had := g.tables[plain]
	g.mu.Unlock()
	if !had {
		s.work.Go(func() { _, _ = s.table(r, g, plain) }) // who asks for a file tries again
	}
}

// resolveFile finds a file that an index vouches for: a package, a source, a
// patch, an image.
func (s *Server) resolveFile(r *repository, client, name string) (found, bool) {
	suites := r.all()
	// Suites that the client uses first: one name may stand for two files.
	slices.SortStableFunc(suites, func(a, b *suite) int {
		x, y := s.sightings.of(client, r.name, a.dir) != nil, s.sightings.of(client, r.name, b.dir) != nil
		switch {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	for _, su := range suites {
		for i, g := range s.generationsFor(r, su, client) {
			if v, ok := s.lookup(r, g, su.indices(g), name); ok {
				return found{vouched: v, listed: true, generation: g, paths: []string{name}}, true
			}
			if i == 0 {
				if v, ok := s.lookup(r, g, guess(g, name), name); ok {
					return found{vouched: v, listed: true, generation: g, paths: []string{name}}, true
				}
			}
		}
	}
	return found{}, false
}

func (s *Server) lookup(r *repository, g *generation, indices []string, name string) (vouched, bool) {
	for _, plain := range indices {
		t, err := s.table(r, g, plain)
		if err != nil {
			continue
		}
		if v, ok := t.find(name); ok {
			return v, true
		}
	}
	return vouched{}, false
}

// indices are those of a generation that clients use and that list files.
func (su *suite) indices(g *generation) (list []string) {
	su.mu.Lock()
	defer su.mu.Unlock()
	for name := range su.used {
		kind, plain := deb.KindOf(name)
		if _, ok := g.release.Files[name]; ok && kind != deb.NoIndex && !slices.Contains(list, plain) {
			list = append(list, plain)
		}
	}
	slices.Sort(list)
	return list
}

// guess are the indices in which a file of that name would stand, for clients
// that have their indices from before our store was made.
func guess(g *generation, name string) (list []string) {
	arch := ""
	if ext := path.Ext(name); ext == ".deb" || ext == ".udeb" {
		stem := strings.TrimSuffix(path.Base(name), ext)
		if arch = stem[strings.LastIndexByte(stem, '_')+1:]; arch == "all" {
			arch = runtime.GOARCH // every architecture's index has it; Debian's name for ours is mostly Go's
		}
	}
	for file := range g.release.Files {
		kind, plain := deb.KindOf(file)
		if slices.Contains(list, plain) {
			continue
		}
		switch {
		case kind == deb.Packages && arch != "" && (path.Base(path.Dir(plain)) == "binary-"+arch || path.Dir(plain) == "."),
			kind == deb.Sources && arch == "" && strings.HasPrefix(name, "pool/"):
			list = append(list, plain)
		}
	}
	slices.Sort(list)
	return list
}
