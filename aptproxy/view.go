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

	"holdfast/aptproxy/cas"
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
	if su := r.suite(dir); su != nil {
		if g := su.find(doc.Generation); g != nil {
			return g, nil
		}
	}
	var files [3][]byte
	for i, packed := range [][]byte{doc.Inline, doc.Plain, doc.Signature} {
		var err error
		if files[i], err = expand(packed); err != nil {
			return nil, err
		}
	}
	text := files[1]
	var err error
	if files[0] != nil {
		text, err = r.keyring.Inline(files[0], doc.Published)
	} else {
		err = r.keyring.Detached(files[1], files[2], doc.Published)
	}
	if err != nil {
		return nil, err
	}
	var sums [3]string
	for i, data := range files {
		if data == nil {
			continue
		}
		sum := cas.Sum(sha(data))
		if _, err := s.store.Put(data, time.Time{}); err != nil {
			s.log.Warn("a frozen Release can't be stored", "suite", dir, "error", err)
		}
		s.keepInMemory(sum, data)
		sums[i] = sum.String()
	}
	g, err := newGeneration(dir, releaseBlobs{sums[0], sums[1], sums[2]}, text, doc.Published)
	if err == nil && g.id != doc.Generation {
		err = fmt.Errorf("the document says generation %s and holds %s", clip(doc.Generation), g.id)
	}
	if err != nil {
		return nil, err
	}
	r.know(dir)
	return g, nil
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

// FreezeRequest says what to freeze.
type FreezeRequest struct {
	View  string    `json:"view"`
	Nodes string    `json:"nodes"` // a node set; "" all clients
	At    time.Time `json:"at"`    // the newest generation that was served at that time; zero: now
}

// FrozenReport is one suite of a view.
type FrozenReport struct {
	View       string    `json:"view"`
	Nodes      string    `json:"nodes"`
	Repository string    `json:"repository"`
	Suite      string    `json:"suite"`
	Generation string    `json:"generation"`
	Released   time.Time `json:"released,omitzero"`
	ValidUntil time.Time `json:"valid_until,omitzero"`
	Frozen     time.Time `json:"frozen"`
	Trouble    string    `json:"trouble,omitempty"`
}

// Freeze holds clients at the generations of now, or of a time, in all suites
// that this node serves. It blocks until the store has it. The error wraps
// state.ErrInvalid or is the Proposer's.
func (s *Server) Freeze(ctx context.Context, f FreezeRequest) ([]FrozenReport, error) {
	if !validHost(f.View) || strings.Contains(f.View, ".") {
		return nil, fmt.Errorf("%w: %q is no name of a view: lower-case letters, digits and hyphens", state.ErrInvalid, clip(f.View))
	}
	nodes, err := s.literal(f.Nodes)
	if err != nil {
		return nil, err
	}
	f.Nodes = nodes
	docs := map[string]frozenSuite{}
	for _, r := range s.active.Load().repositories {
		for _, su := range r.all() {
			g := su.at(f.At)
			if g == nil {
				continue
			}
			doc, err := s.document(f.Nodes, g)
			if err != nil {
				return nil, err
			}
			docs[f.View+"/"+r.name+"/"+su.dir] = doc
		}
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("%w: this node has no generation of any suite from that time: see holdfast apt snapshots", state.ErrInvalid)
	}
	if err := s.replaceView(ctx, f.View, docs); err != nil {
		return nil, err
	}
	s.log.Info("frozen", "view", f.View, "nodes", f.Nodes, "suites", len(docs))
	s.compileViews()
	return s.Views(), nil
}

// literal writes a node set of the cluster file without its groups: what is
// frozen stays so when the file changes.
func (s *Server) literal(nodes string) (string, error) {
	if nodes == "" {
		return "", nil
	}
	names, err := s.active.Load().file.Expand(nodes)
	if err != nil {
		return "", fmt.Errorf("%w: %w", state.ErrInvalid, err)
	}
	return cluster.Fold(names), nil
}

// at is the generation that was current at a time; nil when none that is kept
// was.
func (su *suite) at(t time.Time) *generation {
	for _, g := range su.all() {
		if t.IsZero() || !g.published.After(t) {
			return g
		}
	}
	return nil
}

// document holds a generation.
func (s *Server) document(nodes string, g *generation) (frozenSuite, error) {
	blobs := g.releaseBlobs()
	doc := frozenSuite{Nodes: nodes, Generation: g.id, Frozen: s.now().UTC().Truncate(time.Second), Published: g.published}
	for _, part := range []struct {
		sum string
		to  *[]byte
	}{{blobs.Inline, &doc.Inline}, {blobs.Plain, &doc.Plain}, {blobs.Signature, &doc.Signature}} {
		if part.sum == "" {
			continue
		}
		sum, err := parseHex(part.sum)
		if err != nil {
			return doc, err
		}
		data, err := s.readBlob(sum)
		if err != nil {
			return doc, err
		}
		*part.to = pack(data)
	}
	return doc, nil
}

// replaceView writes the suites of a view and removes those that it had.
func (s *Server) replaceView(ctx context.Context, name string, docs map[string]frozenSuite) error {
	if s.proposer == nil {
		return errors.New("aptproxy: nothing can be frozen here: there is no store")
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	var commands []state.PutDocument
	for key, doc := range docs {
		value, err := json.Marshal(doc)
		if err != nil {
			return err
		}
		if len(value) > state.MaxValue {
			return fmt.Errorf("%w: the Release of %s is too large for the store", state.ErrInvalid, key)
		}
		commands = append(commands, state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kindView, Key: key, Value: value}})
	}
	old, _ := s.state.Snapshot().Documents(nil, kindView)
	for _, d := range old {
		if _, stays := docs[d.Key]; !stays && strings.HasPrefix(d.Key, name+"/") {
			commands = append(commands, state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: kindView, Key: d.Key}})
		}
	}
	for i, c := range commands {
		if _, err := s.proposer.Propose(ctx, c); err != nil {
			return fmt.Errorf("aptproxy: after %d of %d suites: %w", i, len(commands), err)
		}
	}
	return nil
}

// Thaw lets the clients of a view go. The error wraps state.ErrNotFound when
// there is no such view.
func (s *Server) Thaw(ctx context.Context, name string) error {
	if v := s.views.Load(); v == nil || !slices.ContainsFunc(v.list, func(o view) bool { return o.name == name }) {
		return fmt.Errorf("%w: there is no view %q", state.ErrNotFound, clip(name))
	}
	if err := s.replaceView(ctx, name, nil); err != nil {
		return err
	}
	s.log.Info("thawed", "view", name)
	s.compileViews()
	return nil
}

// Promote makes a view hold what another one holds. The nodes stay those that
// it had; a new view is for the nodes that are named.
func (s *Server) Promote(ctx context.Context, from, to, nodes string) error {
	nodes, err := s.literal(nodes)
	if err != nil {
		return err
	}
	v := s.views.Load()
	docs := map[string]frozenSuite{}
	if v != nil {
		for _, one := range v.list {
			for key, doc := range one.docs {
				if one.name == to && nodes == "" {
					nodes = doc.Nodes
				}
				if one.name == from {
					docs[to+"/"+key[0]+"/"+key[1]] = doc
				}
			}
		}
	}
	if len(docs) == 0 {
		return fmt.Errorf("%w: there is no view %q", state.ErrNotFound, clip(from))
	}
	if !validHost(to) || strings.Contains(to, ".") {
		return fmt.Errorf("%w: %q is no name of a view: lower-case letters, digits and hyphens", state.ErrInvalid, clip(to))
	}
	for key, doc := range docs {
		doc.Nodes = nodes
		docs[key] = doc
	}
	if err := s.replaceView(ctx, to, docs); err != nil {
		return err
	}
	s.log.Info("promoted", "from", from, "to", to)
	s.compileViews()
	return nil
}

// Views lists the suites of all views.
func (s *Server) Views() []FrozenReport {
	list := []FrozenReport{}
	v := s.views.Load()
	if v == nil {
		return list
	}
	for _, one := range v.list {
		for key, doc := range one.docs {
			r := FrozenReport{
				View: one.name, Nodes: doc.Nodes, Repository: key[0], Suite: key[1], Generation: doc.Generation, Frozen: doc.Frozen, Trouble: one.broken[key],
			}
			if g := one.suites[key]; g != nil {
				r.Released, r.ValidUntil = g.release.Date, g.release.ValidUntil
				if since, is := g.expired(s.now()); is {
					r.Trouble = fmt.Sprintf("expired %s ago: clients need [check-valid-until=no]", since.Round(time.Minute))
				}
			}
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b FrozenReport) int {
		return strings.Compare(a.View+a.Repository+a.Suite, b.View+b.Repository+b.Suite)
	})
	return list
}
