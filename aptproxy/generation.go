package aptproxy

import (
	"bytes"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/aptproxy/cas"
	"holdfast/aptproxy/deb"
)

// The files in which a Release comes.
const (
	inlineFile    = "InRelease"
	plainFile     = "Release"
	signatureFile = "Release.gpg"
)

// releaseBlobs are the files of a Release as they came: InRelease, or Release
// with Release.gpg, or all three.
type releaseBlobs struct {
	Inline    string `json:"inline,omitempty"` // SHA-256 in hex; "" absent
	Plain     string `json:"plain,omitempty"`
	Signature string `json:"signature,omitempty"`
}

// generation is a state of a suite that its repository signed. It is immutable
// but for the tables, which are read when they are needed.
type generation struct {
	id        string // the SHA-256 of the Release's text, in hex
	dir       string // of the Release, below the root of the repository; "." in a flat one
	blobs     releaseBlobs
	release   *deb.Release
	published time.Time

	mu     sync.Mutex
	tables map[string]*tableCell // by the index's path without its compression
}

// tableCell is a table that is being read, or was.
type tableCell struct {
	once  sync.Once
	ready atomic.Pointer[table] // nil until it is read
	err   error
}

// newGeneration makes a generation of a Release's text.
func newGeneration(dir string, blobs releaseBlobs, text []byte, now time.Time) (*generation, error) {
	release, err := deb.ParseRelease(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	id := cas.Sum(sha(normal(text)))
	return &generation{
		id: id.String(), dir: dir, blobs: blobs, release: release, published: now, tables: map[string]*tableCell{},
	}, nil
}

// normal is a Release's text without what signing inside of it may change: white
// space at the ends of lines and of the text (RFC 9580 §7.1).
func normal(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		out = append(append(out, bytes.TrimRight(line, " \t\r\n")...), '\n')
	}
	return bytes.TrimRight(out, "\n")
}

// below gives a path of the repository as one below the generation's directory.
func (g *generation) below(name string) (string, bool) {
	if g.dir == "." {
		return name, true
	}
	return strings.CutPrefix(name, g.dir+"/")
}

// index finds a file that the Release itself vouches for; name is relative to
// the root of the repository.
func (g *generation) index(name string) (deb.File, bool) {
	rel, ok := g.below(name)
	if !ok {
		return deb.File{}, false
	}
	return g.release.Find(rel)
}

// paths are where an index is on a mirror, the best first: under its hash it is
// the same while the mirror is being updated.
func (g *generation) paths(f deb.File) []string {
	var list []string
	if g.release.ByHash {
		list = append(list, path.Join(g.dir, f.ByHashPath()))
	}
	return append(list, path.Join(g.dir, f.Path))
}

// expired tells whether the Release is past its Valid-Until, and since when.
func (g *generation) expired(now time.Time) (since time.Duration, is bool) {
	if g.release.ValidUntil.IsZero() || now.Before(g.release.ValidUntil) {
		return 0, false
	}
	return now.Sub(g.release.ValidUntil), true
}

// suite is a directory with a Release: dists/bookworm, or "." of a flat
// repository.
type suite struct {
	dir string

	refreshing sync.Mutex // one refresh at a time

	mu          sync.Mutex
	generations []*generation        // oldest first; the last is current
	used        map[string]time.Time // indices that clients asked for, below dir, and when last
	checked     time.Time            // when a mirror last said that the current one is current
	trouble     string               // why there is no newer one; "" when there is no trouble
}

// current is the newest generation; nil when there is none.
func (su *suite) current() *generation {
	su.mu.Lock()
	defer su.mu.Unlock()
	if len(su.generations) == 0 {
		return nil
	}
	return su.generations[len(su.generations)-1]
}

// all are the generations, the newest first.
func (su *suite) all() []*generation {
	su.mu.Lock()
	defer su.mu.Unlock()
	list := slices.Clone(su.generations)
	slices.Reverse(list)
	return list
}

// find gives the generation with an id; nil when it is not there.
func (su *suite) find(id string) *generation {
	for _, g := range su.all() {
		if g.id == id {
			return g
		}
	}
	return nil
}

// usedFor is how long an index that nobody asks for any more is still fetched
// with every new generation.
const usedFor = 14 * 24 * time.Hour

// use notes that a client asked for an index. It tells whether that is new.
func (su *suite) use(name string, now time.Time) bool {
	su.mu.Lock()
	defer su.mu.Unlock()
	_, had := su.used[name]
	su.used[name] = now
	return !had
}

// needed are the indices that a new generation must have before it is shown.
func (su *suite) needed(g *generation, now time.Time) (list []deb.File) {
	su.mu.Lock()
	defer su.mu.Unlock()
	for name, last := range su.used {
		if now.Sub(last) > usedFor {
			delete(su.used, name)
			continue
		}
		if f, ok := g.release.Files[name]; ok {
			list = append(list, f)
		}
	}
	slices.SortFunc(list, func(a, b deb.File) int { return strings.Compare(a.Path, b.Path) })
	return list
}

// likely are the indices that a first client of a suite will ask for: those of
// this machine's architecture, in the compression that is the smallest.
func (g *generation) likely() (list []deb.File) {
	best := map[string]deb.File{}
	for name, f := range g.release.Files {
		kind, plain := deb.KindOf(name)
		if kind != deb.Packages || path.Base(path.Dir(plain)) != "binary-"+runtime.GOARCH && path.Dir(plain) != "." {
			continue
		}
		if old, ok := best[plain]; !ok || f.Size < old.Size {
			best[plain] = f
		}
	}
	for _, f := range best {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b deb.File) int { return strings.Compare(a.Path, b.Path) })
	return list
}

// publish makes a generation the current one, and keeps keep of them. One that
// is known already becomes current again.
func (su *suite) publish(g *generation, keep int) {
	su.mu.Lock()
	defer su.mu.Unlock()
	su.generations = slices.DeleteFunc(su.generations, func(old *generation) bool { return old.id == g.id })
	su.generations = append(su.generations, g)
	if over := len(su.generations) - keep; over > 0 {
		su.generations = slices.Delete(su.generations, 0, over)
	}
}

func (g *generation) String() string {
	return fmt.Sprintf("%s of %s", g.id[:12], g.release.Date.Format(time.DateTime))
}
