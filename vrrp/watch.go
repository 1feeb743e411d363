package vrrp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/kernel/link"
	"holdfast/internal/state"
)

// adoptGrace is how long after the adoption of a predecessor's addresses a
// check that fails does not count: a service of this very process is starting,
// too, and the address should not travel for that.
const adoptGrace = 3 * time.Second

const (
	defaultWatchEvery = time.Second
	maxWatchedFile    = 64 // bytes; a number has fewer
)

// watcher looks at what routers track, but for their own interfaces, and
// reports to the loop.
type watcher struct {
	log    *slog.Logger
	report func(name string, up bool, value int)

	checks *check.Runner
	ctx    context.Context
	wg     sync.WaitGroup

	mu         sync.Mutex
	polls      map[string]*poll
	interfaces []Watch
	links      map[int]watchedLink // by index
	graceUntil time.Time
	late       map[string]*time.Timer // words held back until then, by track
}

// watchedLink is what an interface is now: it keeps its index, not its name.
type watchedLink struct {
	name string
	runs bool
}

// poll is a file or a process that is asked again and again.
type poll struct {
	watch Watch
	stop  context.CancelFunc
}

func newWatcher(commands check.Commander, log *slog.Logger, report func(string, bool, int)) *watcher {
	w := &watcher{
		log: log, report: report, polls: map[string]*poll{}, links: map[int]watchedLink{}, late: map[string]*time.Timer{},
	}
	w.checks = check.NewRunner(check.Deps{Commands: commands, Log: log, Report: w.checked})
	return w
}

// run looks until ctx ends.
func (w *watcher) run(ctx context.Context, adopted bool) {
	w.mu.Lock()
	w.ctx = ctx
	if adopted {
		w.graceUntil = time.Now().Add(adoptGrace)
	}
	for _, p := range w.polls {
		w.start(p)
	}
	w.mu.Unlock()
	w.checks.Run(ctx)
	w.mu.Lock()
	w.ctx = nil
	for _, timer := range w.late {
		timer.Stop()
	}
	w.mu.Unlock()
	w.wg.Wait()
}

// set declares what is watched. What stays is not disturbed.
func (w *watcher) set(checks []check.Definition, watches []Watch) error {
	if err := w.checks.Set(checks); err != nil {
		return fmt.Errorf("vrrp: tracked checks: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	wanted := map[string]*poll{}
	w.interfaces = nil
	for _, watch := range watches {
		if watch.Kind == WatchInterface {
			w.interfaces = append(w.interfaces, watch)
			w.report(watch.Name, w.runs(watch.Target), 0)
			continue
		}
		p := w.polls[watch.Name]
		if p == nil || !reflect.DeepEqual(p.watch, watch) {
			p = &poll{watch: watch, stop: func() {}}
			if w.ctx != nil {
				w.start(p)
			}
		}
		wanted[watch.Name] = p
	}
	for name, p := range w.polls {
		if wanted[name] != p {
			p.stop()
		}
	}
	w.polls = wanted
	return nil
}

// checked takes a check's state. While the grace of an adoption lasts, bad
// news waits for its end, and is forgotten when good news come before.
func (w *watcher) checked(r check.Report) {
	if !r.Transition {
		return
	}
	up := isUp(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	if timer := w.late[r.ID]; timer != nil {
		timer.Stop()
		delete(w.late, r.ID)
	}
	w.log.Info("tracked check", "track", r.ID, "status", r.Status, "output", r.Output)
	wait := time.Until(w.graceUntil)
	if up || wait <= 0 {
		w.report(r.ID, up, 0)
		return
	}
	w.late[r.ID] = time.AfterFunc(wait, func() { w.report(r.ID, false, 0) })
}

// linkChanged takes notices about interfaces.
func (w *watcher) linkChanged(l *link.Link, gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ran := make([]bool, len(w.interfaces))
	for i, watch := range w.interfaces {
		ran[i] = w.runs(watch.Target)
	}
	if gone {
		delete(w.links, l.Index)
	} else {
		w.links[l.Index] = watchedLink{l.Name, l.Running}
	}
	for i, watch := range w.interfaces {
		if runs := w.runs(watch.Target); runs != ran[i] {
			w.report(watch.Name, runs, 0)
		}
	}
}

// runs tells whether there is an interface of that name that runs; w.mu is held.
func (w *watcher) runs(name string) bool {
	for _, l := range w.links {
		if l.name == name && l.runs {
			return true
		}
	}
	return false
}

// scriptTrack begins the name of a script's track.
const scriptTrack = "script "

// isUp judges a check. A service with a warning still answers. A script says
// no with any status but 0, as keepalived's do: `killall -0 nginx` ends with 1.
func isUp(r check.Report) bool {
	return r.Status == state.Passing || r.Status == state.Warning && !strings.HasPrefix(r.ID, scriptTrack)
}

// start asks about a file or a process until its end; w.mu is held.
func (w *watcher) start(p *poll) {
	ctx, cancel := context.WithCancel(w.ctx)
	p.stop = cancel
	every := p.watch.Every
	if every <= 0 {
		every = defaultWatchEvery
	}
	w.wg.Go(func() {
		defer cancel()
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		first, wasUp, before := true, false, 0
		for {
			up, value := look(ctx, &p.watch)
			if ctx.Err() != nil {
				return
			}
			if first || up != wasUp || value != before {
				w.report(p.watch.Name, up, value)
			}
			first, wasUp, before = false, up, value
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
}

func look(ctx context.Context, watch *Watch) (up bool, value int) {
	switch watch.Kind {
	case WatchFile:
		value, err := readNumber(watch.Target)
		return err == nil, value
	case WatchProcess:
		probe, err := check.NewProbe(check.Definition{Process: watch.Target}, nil)
		return err == nil && probe.Probe(ctx).Status == state.Passing, 0
	}
	return false, 0
}

// readNumber reads the number that a file begins with, as keepalived's
// track_file does. An empty file says 0.
func readNumber(path string) (int, error) {
	file, err := os.Open(filepath.Clean(path))
	if err != nil {
		return 0, err
	}
	defer file.Close()
	text := make([]byte, maxWatchedFile)
	n, err := file.Read(text)
	if err != nil && !errors.Is(err, io.EOF) { // a directory, for one
		return 0, err
	}
	fields := bytes.Fields(text[:n])
	if len(fields) == 0 {
		return 0, nil
	}
	number, err := strconv.Atoi(string(fields[0]))
	if err != nil {
		return 0, fmt.Errorf("%s: %q is no number", path, fields[0])
	}
	return min(max(number, -254), 254), nil
}
