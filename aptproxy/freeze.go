package aptproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"holdfast/aptproxy/deb"
	"holdfast/cluster"
	"holdfast/internal/state"
)

// kindBefore are the documents of what a view was before its last change: the
// key is VIEW/REPOSITORY/DIR, too.
const kindBefore = "apt/view-before"

// errNoStore says that nothing can be frozen.
var errNoStore = errors.New("aptproxy: nothing can be frozen here: there is no store")

// FreezeRequest says what to freeze.
type FreezeRequest struct {
	View  string    `json:"view"`
	Nodes string    `json:"nodes"` // a node set; "" all clients
	At    time.Time `json:"at"`    // the newest generation that was served at that time; zero: now
	// Resign has the Releases signed by the cluster's own key, without Valid-Until.
	Resign bool `json:"resign"`
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
	Resigned   bool      `json:"resigned"`
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
	var signer *deb.Signer
	if f.Resign {
		if signer, err = loadSigner(s.active.Load().settings.signKey); err != nil {
			return nil, err
		}
	}
	docs := map[string]frozenSuite{}
	for _, r := range s.active.Load().repositories {
		for _, su := range r.all() {
			g := su.at(f.At)
			if g == nil {
				continue
			}
			doc, err := s.document(r, f.Nodes, g, signer)
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

// document holds a generation, signed anew if there is a signer.
func (s *Server) document(r *repository, nodes string, g *generation, signer *deb.Signer) (frozenSuite, error) {
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
	if signer == nil {
		return doc, nil
	}
	text, err := doc.text(r)
	if err == nil {
		doc.Resigned, err = s.resign(signer, text)
	}
	return doc, err
}

// replaceView writes the suites of a view and removes those that it had.
func (s *Server) replaceView(ctx context.Context, name string, docs map[string]frozenSuite) error {
	if s.proposer == nil {
		return errNoStore
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	values := map[string][]byte{}
	for key, doc := range docs {
		value, err := json.Marshal(doc)
		if err != nil {
			return err
		}
		if len(value) > state.MaxValue {
			return fmt.Errorf("%w: the Release of %s is too large for the store", state.ErrInvalid, key)
		}
		values[key] = value
	}
	// What it held is written first: whatever is left half done can be undone.
	commands := append(s.replacing(kindBefore, name, s.held(name)), s.replacing(kindView, name, values)...)
	for i, c := range commands {
		if _, err := s.proposer.Propose(ctx, c); err != nil {
			return fmt.Errorf("aptproxy: after %d of %d suites: %w", i, len(commands), err)
		}
	}
	return nil
}

// held are the documents of a view, as they are.
func (s *Server) held(name string) map[string][]byte { return s.documents(kindView, name) }

func (s *Server) documents(kind, name string) map[string][]byte {
	values := map[string][]byte{}
	list, _ := s.state.Snapshot().Documents(nil, kind)
	for _, d := range list {
		if strings.HasPrefix(d.Key, name+"/") {
			values[d.Key] = d.Value
		}
	}
	return values
}

// replacing are the commands that make values the only documents of a kind that
// a view has.
func (s *Server) replacing(kind, name string, values map[string][]byte) (commands []state.PutDocument) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		commands = append(commands, state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kind, Key: key, Value: values[key]}})
	}
	for _, key := range slices.Sorted(maps.Keys(s.documents(kind, name))) {
		if _, stays := values[key]; !stays {
			commands = append(commands, state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: kind, Key: key}})
		}
	}
	return commands
}

// Rollback makes a view hold what it held before the last freeze, promotion,
// thaw or rollback. The error wraps state.ErrNotFound when nothing is known of
// before.
func (s *Server) Rollback(ctx context.Context, name string) ([]FrozenReport, error) {
	if s.state == nil {
		return nil, errNoStore
	}
	docs := map[string]frozenSuite{}
	for key, value := range s.documents(kindBefore, name) {
		var doc frozenSuite
		if err := json.Unmarshal(value, &doc); err != nil {
			return nil, fmt.Errorf("aptproxy: what %s was before can't be read: %w", key, err)
		}
		docs[key] = doc
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("%w: nothing is kept of what view %q was before its last change", state.ErrNotFound, clip(name))
	}
	if err := s.replaceView(ctx, name, docs); err != nil {
		return nil, err
	}
	s.log.Info("rolled back", "view", name, "suites", len(docs))
	s.compileViews()
	return s.Views(), nil
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
				View: one.name, Nodes: doc.Nodes, Repository: key[0], Suite: key[1], Generation: doc.Generation, Frozen: doc.Frozen,
				Resigned: doc.Resigned != nil, Trouble: one.broken[key],
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
