package api

import (
	"context"
	"slices"
	"sync"
	"time"

	"holdfast/internal/state"
)

// watcher follows the state for what a snapshot does not tell: that the
// gossip's view of who lives has changed, and since when a check has been as
// it is. The replicated state knows no times, so the since is this node's own:
// when it saw the change, or when it began to look.
type watcher struct {
	state state.Reader
	now   func() time.Time

	users sync.Mutex // of the two below
	count int        // who asked for it
	end   func()     // and waits

	mu       sync.Mutex
	changed  chan struct{}                                // closed when a member's liveness changes
	members  map[string]sighting[state.Liveness]          // by folded name
	checks   map[string]map[string]sighting[state.Status] // by folded node name and check ID
	steps    map[string][]ExplainedStep                   // of a check, by folded node name, slash and ID; the oldest first
	watching bool                                         // everything was looked at once
}

// sighting is a value with the time it was first seen so.
type sighting[T comparable] struct {
	value T
	since time.Time
	// exact: the change was seen; otherwise it was so when we began to look.
	exact bool
}

func newWatcher(reader state.Reader, now func() time.Time) *watcher {
	return &watcher{
		state:   reader,
		now:     now,
		changed: make(chan struct{}),
		members: map[string]sighting[state.Liveness]{},
		checks:  map[string]map[string]sighting[state.Status]{},
		steps:   map[string][]ExplainedStep{},
	}
}

// follow has it run until release is called, which waits for its end. Several
// may ask for it: it runs once. When follow returns, everything was looked at once,
// and no change from then on is missed.
func (w *watcher) follow() (release func()) {
	w.users.Lock()
	defer w.users.Unlock()
	if w.count++; w.count == 1 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		next := w.state.Changed() // before the snapshot
		snap := w.state.Snapshot()
		w.rebuild(snap)
		go func() {
			defer close(done)
			w.run(ctx, snap, next)
		}()
		w.end = func() {
			cancel()
			<-done
		}
	}
	return sync.OnceFunc(func() {
		w.users.Lock()
		defer w.users.Unlock()
		if w.count--; w.count == 0 {
			w.end()
		}
	})
}

// run follows the state from a snapshot on, which was looked at, until ctx ends;
// next closes when there is a newer one.
func (w *watcher) run(ctx context.Context, snap *state.Snapshot, next <-chan struct{}) {
	for version := snap.Version(); ; version = snap.Version() {
		select {
		case <-next:
		case <-ctx.Done():
			return
		}
		next = w.state.Changed()
		snap = w.state.Snapshot()
		if keys, ok := w.state.Since(version); ok {
			w.update(snap, keys)
		} else {
			w.rebuild(snap)
		}
	}
}

// gossip returns a channel that closes at the next change of a member's
// liveness: take it before the snapshot it belongs to.
func (w *watcher) gossip() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// checkSince tells since when a check has been as it is; exact is false when
// it was so already when this node began to look. The zero time: not seen yet.
func (w *watcher) checkSince(node, id string) (since time.Time, exact bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.checks[state.Fold(node)][id]
	return seen.since, seen.exact
}

// maxSteps is how many changes of a check are remembered.
const maxSteps = 8

// checkHistory lists the changes of a check that this node saw, the oldest first.
func (w *watcher) checkHistory(node, id string) []ExplainedStep {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.steps[state.Fold(node)+"/"+id])
}

// remember notes that a check changed.
func (w *watcher) remember(c *state.Check, from state.Status) {
	key := state.Fold(c.Node) + "/" + c.ID
	text := evidence(c)
	steps := append(w.steps[key], ExplainedStep{Time: w.now(), Node: c.Node, Check: c.ID, From: from, To: c.Status, Output: text[:min(len(text), 256)]})
	w.steps[key] = steps[max(0, len(steps)-maxSteps):]
}

// forget drops the changes of checks that are gone.
func (w *watcher) forget(node string, gone map[string]sighting[state.Status], left map[string]sighting[state.Status]) {
	for id := range gone {
		if _, ok := left[id]; !ok {
			delete(w.steps, node+"/"+id)
		}
	}
}

// memberSince is checkSince for a member's liveness.
func (w *watcher) memberSince(name string) (since time.Time, exact bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.members[state.Fold(name)]
	return seen.since, seen.exact
}

// update folds in what changed.
func (w *watcher) update(snap *state.Snapshot, keys []state.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	members := false
	for _, key := range keys {
		switch key.Table {
		case state.TableCheck:
			w.lookAtChecks(snap, key.Name)
		case state.TableMember:
			members = true
		}
	}
	if members {
		w.lookAtMembers(snap)
	}
}

// rebuild looks at everything: at the start, after a restore, and when more
// changed than is remembered.
func (w *watcher) rebuild(snap *state.Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	nodes, _ := snap.Nodes(nil)
	known := map[string]bool{}
	for _, node := range nodes {
		known[state.Fold(node.Name)] = true
		w.lookAtChecks(snap, node.Name)
	}
	for name := range w.checks {
		if !known[name] {
			w.forget(name, w.checks[name], nil)
			delete(w.checks, name)
		}
	}
	w.lookAtMembers(snap)
	w.watching = true
}

func (w *watcher) lookAtChecks(snap *state.Snapshot, node string) {
	node = state.Fold(node)
	checks, _ := snap.NodeChecks(nil, node)
	before := w.checks[node]
	if len(checks) == 0 {
		w.forget(node, before, nil)
		delete(w.checks, node)
		return
	}
	seen := make(map[string]sighting[state.Status], len(checks))
	for _, c := range checks {
		seen[c.ID] = w.sight(before, c.ID, c.Status)
		if had, ok := before[c.ID]; ok && had.value != c.Status {
			w.remember(c, had.value)
		}
	}
	w.forget(node, before, seen)
	w.checks[node] = seen
}

func (w *watcher) sight(before map[string]sighting[state.Status], id string, now state.Status) sighting[state.Status] {
	if had, ok := before[id]; ok && had.value == now {
		return had
	}
	return sighting[state.Status]{value: now, since: w.now(), exact: w.watching}
}

// lookAtMembers wakes who waits for the gossip when a member appeared, went
// or changed between alive and not.
func (w *watcher) lookAtMembers(snap *state.Snapshot) {
	members := snap.Members()
	seen := make(map[string]sighting[state.Liveness], len(members))
	differs := len(members) != len(w.members)
	for _, m := range members {
		name := state.Fold(m.Name)
		had, ok := w.members[name]
		if !ok || had.value != m.Liveness {
			differs = true
			had = sighting[state.Liveness]{value: m.Liveness, since: w.now(), exact: w.watching}
		}
		seen[name] = had
	}
	w.members = seen
	if differs {
		close(w.changed)
		w.changed = make(chan struct{})
	}
}
