package logrelay

import (
	"context"
	"fmt"
	"sync"
	"time"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// output is one that reads the journal. run calls well when its
// target takes lines, and this node's disk gives them; its error is a target that refuses, and it is called
// again: it goes on where its cursor stands.
type output struct {
	name   string
	run    func(ctx context.Context, well func()) error
	helper func(ctx context.Context) // beside it; may be nil
	retry  time.Duration             // longest pause between two tries; 0: lastRetry
	state  *outputState
}

// outputState is what an admin sees of an output, and asks of it. Its methods
// may be called from any goroutine.
type outputState struct {
	cursor  *journal.Cursor
	backlog *backlog // of a target; nil: nothing is let go

	// Only bound touches these: lines let go, and the end of the journal then,
	// from which on the target has all again; 0: it has.
	gone, goal uint64

	mu    sync.Mutex
	err   error     // why it does not take lines; nil: it does
	since time.Time // it does not
	again func()    // begins the run anew; nil: none is under way
	from  *uint64   // where the next run begins; nil: where the cursor stands
	hurry chan struct{}
}

func newOutputState(cursor *journal.Cursor) *outputState {
	return &outputState{cursor: cursor, hurry: make(chan struct{}, 1)}
}

// failed notes why an output takes no lines; nil: it does.
func (o *outputState) failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil && o.err == nil {
		o.since = time.Now()
	}
	o.err = err
}

// begin makes the context of a run, and moves the cursor if a replay asks for it.
func (o *outputState) begin(ctx context.Context) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithCancel(ctx)
	o.mu.Lock()
	from := o.from
	o.from, o.again = nil, cancel
	o.mu.Unlock()
	if from == nil {
		return ctx, cancel, nil
	}
	return ctx, cancel, o.cursor.Commit(*from)
}

// replay has the output begin anew at a record.
func (o *outputState) replay(from uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.from = &from
	if o.again != nil {
		o.again()
	}
	o.tryNow()
}

// tryNow ends a pause between two tries.
func (o *outputState) tryNow() {
	select {
	case o.hurry <- struct{}{}:
	default:
	}
}

// asked is a flush that an admin asks for, of an output that waits for lines.
type asked struct {
	mu  sync.Mutex
	due bool
	end func()
}

// ends says what ends the wait that begins.
func (a *asked) ends(wait func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.end = wait; a.due {
		wait()
	}
}

// ask has the output write now.
func (a *asked) ask() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.due = true; a.end != nil {
		a.end()
	}
}

// take tells whether that was asked for.
func (a *asked) take() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	due := a.due
	a.due, a.end = false, nil
	return due
}

// Pause between two tries of an output.
const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// newOutputs makes the outputs with their cursors.
func (s *Server) newOutputs(j *journal.Journal) ([]output, error) {
	keep, losts := []string{"files", "replicas"}, map[string]*lostLines{}
	files, err := s.newFiles(j)
	if err != nil {
		return nil, err
	}
	files.rotator.room = &room{board: s.board, removed: s.metrics.removed}
	list := []output{{name: "files", run: files.run, helper: files.rotator.run, state: newOutputState(files.cursor)}}
	for _, t := range s.settings.forward {
		cursor, err := j.Cursor("to-"+t.name, true)
		if err != nil {
			return nil, fmt.Errorf("logrelay: %w", err)
		}
		f := &forward{
			target: t, pool: pool{size: len(t.addresses), least: s.returnAfter}, dialer: s.dialer, tls: s.tls[1], journal: j, cursor: cursor, names: s.names(), rules: s.newRules(),
			metrics: s.metrics.output(t.name), log: s.log.With("target", t.name), board: s.board, bugs: s.bugs,
		}
		lost, err := s.newLostLines(j, t)
		if err != nil {
			return nil, err
		}
		losts[t.name] = lost
		state := newOutputState(cursor)
		state.backlog = &t.backlog
		list = append(list, output{name: t.name, run: f.run, helper: lost.run, state: state})
		keep = append(append(keep, "to-"+t.name), lost.keeps()...)
	}
	if s.settings.replicas > 1 {
		shipper, err := s.newShipper(j)
		if err != nil {
			return nil, err
		}
		list = append(list, output{name: "replica", run: shipper.run, retry: replicaRetry, state: newOutputState(shipper.cursor)})
		keep = append(keep, "replica")
	} else if err := keepRenumbered(s.dir(), s.log, j.End()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.outputs, s.lost = map[string]*outputState{}, losts
	for _, o := range list {
		s.outputs[o.name] = o.state
	}
	s.mu.Unlock()
	if err := j.Forget(keep...); err != nil {
		return nil, fmt.Errorf("logrelay: %w", err)
	}
	return list, nil
}

func (s *Server) newFiles(j *journal.Journal) (*files, error) {
	cursor, err := j.Cursor("files", false)
	if err != nil {
		return nil, fmt.Errorf("logrelay: %w", err)
	}
	paths, before, err := openPaths(s.dir(), s.settings.dir, s.settings.path, cursor.Next() > 0)
	if err != nil {
		return nil, fmt.Errorf("logrelay: %w", err)
	}
	layout := newLayout(s.settings.path, before)
	rules, apps := s.newRules(), newApps(s.settings.apps)
	apps.rules = rules
	rotator := newRotator(s.settings.dir, s.settings.rotate, layout, s.log)
	rotator.owner = s.settings.owner
	return &files{
		config: filesConfig{dir: s.settings.dir, undo: s.dir(), rotate: s.settings.rotate, owner: s.settings.owner, format: s.settings.format},
		syncs:  kernelSyncs(), journal: j, cursor: cursor, names: s.names(), rules: rules, log: s.log, bugs: s.bugs,
		metrics: s.metrics.output("files"), now: time.Now, most: openFilesMost(),
		rotator: rotator,
		layout:  layout, paths: paths, apps: apps, blocked: blocked{board: s.board, names: map[string]blockedName{}},
		silence: s.silence, gaps: s.gaps, missing: s.metrics.missing, asked: &s.flushing, catchUp: s.catchUp,
	}, nil
}

func (s *Server) names() *names {
	return &names{table: &s.table, relays: s.settings.relays, node: s.config.Node, most: s.settings.hosts, known: map[string]bool{}}
}

// newRules makes the rules for one output.
func (s *Server) newRules() *rules {
	r := &rules{list: s.settings.rules}
	for _, text := range s.settings.redact {
		one, err := compileSecret(text)
		if err != nil {
			panic(err) // decode read it
		}
		r.secrets = append(r.secrets, one)
	}
	return r
}

// runOutputs runs them side by side until ctx ends.
func (s *Server) runOutputs(ctx context.Context, list []output) {
	var group sync.WaitGroup
	for _, o := range list {
		group.Go(func() { s.keepRunning(ctx, o) })
		if o.helper != nil {
			group.Go(func() { o.helper(ctx) })
		}
	}
	group.Wait()
}

// keepRunning runs an output again whenever it fails, with a condition
// meanwhile.
func (s *Server) keepRunning(ctx context.Context, o output) {
	pause, most := firstRetry, lastRetry
	if o.retry > 0 {
		most = o.retry
	}
	for {
		began := time.Now()
		running, end, err := o.state.begin(ctx)
		if err == nil {
			err = o.run(running, func() {
				o.state.failed(nil)
				s.board.Clear(conditionOutput + o.name)
			})
		}
		again := running.Err() != nil
		end()
		if ctx.Err() != nil {
			if err != nil {
				s.log.Warn("an output did not end well; it goes on at the next start", "output", o.name, "error", err)
			}
			return
		}
		if again && err == nil {
			continue // a replay
		}
		o.state.failed(err)
		if time.Since(began) > lastRetry {
			pause = firstRetry
		}
		s.board.Raise(conditionOutput+o.name, health.Error, fmt.Sprintf(
			"output %s does not take lines, which wait in the journal: %v", o.name, err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		case <-o.state.hurry:
			pause = firstRetry
		}
		pause = min(2*pause, most)
	}
}
