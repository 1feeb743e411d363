package aptproxy

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"holdfast/cluster"
	"holdfast/internal/state"
)

// kindView are the documents of frozen suites: the key is VIEW/REPOSITORY/DIR.
const kindView = "apt/view"

// proposeTimeout bounds a change of views.
const proposeTimeout = 5 * time.Second

// frozenSuite is the document of a suite in a view. It holds the Release itself,
// so that a service node that never saw it serves the same.
type frozenSuite struct {
	Nodes      string    `json:"nodes"` // a node set; "" every client
	Generation string    `json:"generation"`
	Frozen     time.Time `json:"frozen"`
	Published  time.Time `json:"published"` // when the node that froze it first served it
	Inline     []byte    `json:"inline,omitempty"`
	Plain      []byte    `json:"plain,omitempty"` // gzip, as the others
	Signature  []byte    `json:"signature,omitempty"`
	Resigned   *resigned `json:"resigned,omitempty"`
}

// views are the frozen suites that the store holds, compiled. Immutable.
type views struct{ list []view }

type view struct {
	name   string
	nodes  map[string]bool           // nil: all clients
	suites map[[2]string]*generation // by repository and directory
	broken map[[2]string]string      // suites that can't be served, and why
	docs   map[[2]string]frozenSuite // what was compiled
}

// viewFor is the view that a client is held at; nil when it is free. One that
// names it comes before one for all.
func (v *views) viewFor(node string) *view {
	if v == nil {
		return nil
	}
	var found *view
	for i := range v.list {
		one := &v.list[i]
		if one.nodes[node] {
			return one
		}
		if one.nodes == nil && found == nil {
			found = one
		}
	}
	return found
}

// frozen is the generation of a suite that a client is held at; nil when it is
// free. An error: it is held at one that can't be served here.
func (s *Server) frozen(r *repository, client, dir string) (*generation, error) {
	v := s.views.Load()
	if v == nil || len(v.list) == 0 {
		return nil, nil
	}
	node := client
	if addr, err := netip.ParseAddr(client); err == nil {
		node = s.nameOf(addr)
	}
	held := v.viewFor(node)
	if held == nil {
		return nil, nil
	}
	key := [2]string{r.name, dir}
	if why := held.broken[key]; why != "" {
		return nil, fmt.Errorf("view %s: %s %s is frozen, and can't be served here: %s", held.name, r.name, dir, why)
	}
	return held.suites[key], nil
}

// viewOf is the generation of a suite that a client is to see now.
func (s *Server) viewOf(ctx context.Context, r *repository, client, dir string) (*generation, error) {
	if g, err := s.frozen(r, client, dir); g != nil || err != nil {
		return g, err
	}
	return s.refresh(ctx, r, dir)
}

// followViews compiles the views whenever the store has others, until ctx ends.
func (s *Server) followViews(ctx context.Context) {
	if s.state == nil {
		return
	}
	for {
		changed := s.state.Changed()
		s.compileViews()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// compileViews makes the views of what the store holds.
func (s *Server) compileViews() {
	s.compiling.Lock()
	defer s.compiling.Unlock()
	docs, index := s.state.Snapshot().Documents(nil, kindView)
	if old := s.views.Load(); old != nil && s.viewsIndex == index {
		return
	}
	s.viewsIndex = index
	by := map[string]*view{}
	for _, d := range docs {
		s.compileView(by, d)
	}
	compiled := &views{}
	for _, v := range by {
		compiled.list = append(compiled.list, *v)
	}
	slices.SortFunc(compiled.list, func(a, b view) int { return strings.Compare(a.name, b.name) })
	s.views.Store(compiled)
	s.log.Info("views taken over from the store", "views", len(compiled.list))
}

func (s *Server) compileView(by map[string]*view, d *state.Document) {
	part := strings.SplitN(d.Key, "/", 3)
	var doc frozenSuite
	if err := json.Unmarshal(d.Value, &doc); err != nil || len(part) != 3 {
		s.log.Error("a view in the store can't be read", "key", d.Key, "error", err)
		return
	}
	v := by[part[0]]
	if v == nil {
		v = &view{name: part[0], suites: map[[2]string]*generation{}, broken: map[[2]string]string{}, docs: map[[2]string]frozenSuite{}}
		by[part[0]] = v
	}
	key := [2]string{part[1], part[2]}
	v.docs[key] = doc
	if doc.Nodes != "" {
		if v.nodes == nil {
			v.nodes = map[string]bool{} // not nil: that would mean every client
		}
		names, err := cluster.ExpandList(doc.Nodes)
		if err != nil {
			s.log.Error("a view's nodes can't be read", "key", d.Key, "nodes", doc.Nodes, "error", err)
			return
		}
		for _, n := range names {
			v.nodes[n] = true
		}
	}
	g, err := s.thawed(part[1], part[2], doc)
	if err != nil {
		s.log.Error("a frozen suite can't be served here", "key", d.Key, "error", err)
		v.broken[key] = err.Error()
		return
	}
	v.suites[key] = g
}

// thawed makes a generation of a document, verified as if a mirror had sent it.
func (s *Server) thawed(name, dir string, doc frozenSuite) (*generation, error) {
	i := slices.IndexFunc(s.active.Load().repositories, func(r *repository) bool { return r.name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no repository %s in the cluster file", name)
	}
	r := s.active.Load().repositories[i]
	if su := r.suite(dir); su != nil && doc.Resigned == nil {
		if g := su.find(doc.Generation); g != nil {
			return g, nil
		}
	}
	text, err := doc.text(r)
	if err != nil {
		return nil, err
	}
	files, err := doc.files()
	if err != nil {
		return nil, err
	}
	g, err := newGeneration(dir, s.keepRelease(dir, files[0], files[1], files[2]), text, doc.Published)
	if err == nil && g.id != doc.Generation {
		err = fmt.Errorf("the document says generation %s and holds %s", clip(doc.Generation), g.id)
	}
	if err != nil {
		return nil, err
	}
	if doc.Resigned != nil {
		if g, err = doc.Resigned.generation(s, dir, text, doc); err != nil {
			return nil, fmt.Errorf("signed anew: %w", err)
		}
	}
	r.know(dir)
	return g, nil
}

// files are InRelease, Release and Release.gpg; absent ones are nil.
func (doc frozenSuite) files() (files [3][]byte, err error) {
	for i, packed := range [][]byte{doc.Inline, doc.Plain, doc.Signature} {
		if files[i], err = expand(packed); err != nil {
			return files, err
		}
	}
	return files, nil
}

// text is what the repository signed.
func (doc frozenSuite) text(r *repository) ([]byte, error) {
	files, err := doc.files()
	if err != nil {
		return nil, err
	}
	if files[0] != nil {
		return r.keyring.Inline(files[0], doc.Published)
	}
	return files[1], r.keyring.Detached(files[1], files[2], doc.Published)
}

// know makes a suite known, so that requests for what is below it are its.
func (r *repository) know(dir string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.suites[dir] == nil {
		r.suites[dir] = &suite{dir: dir, used: map[string]time.Time{}}
	}
}

// pack and expand keep Release files small in the store.
func pack(data []byte) []byte {
	if data == nil {
		return nil
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(data) // into memory
	_ = w.Close()
	return out.Bytes()
}

func expand(packed []byte) ([]byte, error) {
	if packed == nil {
		return nil, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, maxRelease+1))
	if err == nil && len(data) > maxRelease {
		err = errors.New("a Release in the store is too large")
	}
	return data, err
}
