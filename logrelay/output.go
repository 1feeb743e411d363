package logrelay

import (
	"context"
	"fmt"
	"regexp"
	"sync"
	"time"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// output is one that reads the journal. run calls well when
// its target takes lines; its error is a target that refuses, and it is called
// again: it goes on where its cursor stands.
type output struct {
	name   string
	run    func(ctx context.Context, well func()) error
	helper func(ctx context.Context) // beside it; may be nil
	retry  time.Duration             // longest pause between two tries; 0: lastRetry
}

// Pause between two tries of an output.
const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// newOutputs makes the outputs with their cursors.
func (s *Server) newOutputs(j *journal.Journal) ([]output, error) {
	keep := []string{"files", "replicas"}
	files, err := s.newFiles(j)
	if err != nil {
		return nil, err
	}
	list := []output{{name: "files", run: files.run, helper: files.rotator.run}}
	cursors := map[string]*journal.Cursor{"files": files.cursor}
	for _, t := range s.settings.forward {
		cursor, err := j.Cursor("to-"+t.name, true)
		if err != nil {
			return nil, fmt.Errorf("logrelay: %w", err)
		}
		f := &forward{
			target: t, tls: s.tls[1], journal: j, cursor: cursor, names: s.names(), rules: s.newRules(),
			metrics: s.metrics.output(t.name), log: s.log.With("target", t.name),
		}
		list = append(list, output{name: t.name, run: f.run})
		cursors[t.name] = cursor
		keep = append(keep, "to-"+t.name)
	}
	if s.settings.replicas > 1 {
		shipper, err := s.newShipper(j)
		if err != nil {
			return nil, err
		}
		list = append(list, output{name: "replica", run: shipper.run, retry: replicaRetry})
		cursors["replica"] = shipper.cursor
		keep = append(keep, "replica")
	}
	s.mu.Lock()
	s.outputs = cursors
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
	return &files{
		config:  filesConfig{dir: s.settings.dir, undo: s.dir(), rotate: s.settings.rotate, mode: 0o640},
		journal: j, cursor: cursor, names: s.names(), rules: s.newRules(), log: s.log,
		metrics: s.metrics.output("files"), now: time.Now,
		rotator: newRotator(s.settings.dir, s.settings.rotate, s.log),
	}, nil
}

func (s *Server) names() *names {
	return newNames(s.file, s.config.Node, s.settings.relays, s.settings.hosts)
}

// newRules makes the rules for one output.
func (s *Server) newRules() *rules {
	r := &rules{list: s.settings.rules}
	for _, text := range s.settings.redact {
		r.secrets = append(r.secrets, regexp.MustCompile(text)) // decode read it
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
		err := o.run(ctx, func() { s.board.Clear(conditionOutput + o.name) })
		if ctx.Err() != nil {
			if err != nil {
				s.log.Warn("an output did not end well; it goes on at the next start", "output", o.name, "error", err)
			}
			return
		}
		if time.Since(began) > lastRetry {
			pause = firstRetry
		}
		s.board.Raise(conditionOutput+o.name, health.Error, fmt.Sprintf(
			"output %s does not take lines, which wait in the journal: %v", o.name, err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, most)
	}
}
