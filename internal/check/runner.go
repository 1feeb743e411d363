package check

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"holdfast/internal/state"
)

const (
	// firstDelay spreads the first probes of checks that start together.
	firstDelay = 100 * time.Millisecond
	// overdue is how long after its time limit a probe that does not return
	// is taken for hung.
	overdue = time.Second
)

// ErrUnknown is wrapped by the errors about a check that is not there.
var ErrUnknown = errors.New("unknown check")

// Deps is what a Runner needs.
type Deps struct {
	// Commands runs scripts; nil makes every script check critical.
	Commands Commander
	// Report is called with every transition, and with changes of the output
	// at most once per OutputInterval and check. Calls for one check come in
	// order, those for several at the same time. It must not block for long
	// and must not call the Runner.
	Report func(Report)
	Log    *slog.Logger
	// LastUpdate is when the owner of a TTL check last spoke before the
	// check was started here; zero or nil: not known. It must not call the
	// Runner.
	LastUpdate func(id string) time.Time
	// NewProbe makes a check's probe; nil means the function NewProbe.
	NewProbe func(Definition, Commander) (Probe, error)
}

// Runner runs a set of checks, each on its own: one that hangs holds up
// nobody. Its methods may be called from any goroutine.
type Runner struct {
	deps Deps

	mu     sync.Mutex
	checks map[string]*running
	ctx    context.Context // of Run; nil while it does not run
	wg     sync.WaitGroup
}

// NewRunner returns a Runner without checks.
func NewRunner(deps Deps) *Runner {
	if deps.NewProbe == nil {
		deps.NewProbe = NewProbe
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{deps: deps, checks: map[string]*running{}}
}

// Run probes until ctx ends, and then waits for the probes under way. It may
// be called again.
func (r *Runner) Run(ctx context.Context) {
	r.mu.Lock()
	r.ctx = ctx
	for _, c := range r.checks {
		r.start(c)
	}
	r.mu.Unlock()
	<-ctx.Done()
	r.mu.Lock()
	r.ctx = nil
	r.mu.Unlock()
	r.wg.Wait()
}

// Set declares which checks there are. A check whose definition is the same
// goes on undisturbed; a changed one starts anew; one that is missing ends.
// All definitions must be valid and have IDs of their own, or nothing changes.
func (r *Runner) Set(definitions []Definition) error {
	wanted := make(map[string]*running, len(definitions))
	for _, d := range definitions {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("check %q: %w", d.ID, err)
		}
		d = d.WithDefaults()
		if wanted[d.ID] != nil {
			return fmt.Errorf("check %q: is defined twice", d.ID)
		}
		c, err := r.newRunning(d)
		if err != nil {
			return fmt.Errorf("check %q: %w", d.ID, err)
		}
		wanted[d.ID] = c
	}
	for _, c := range r.replace(wanted) {
		c.end()
	}
	return nil
}

// replace makes wanted the checks and returns those that must end.
func (r *Runner) replace(wanted map[string]*running) (gone []*running) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, c := range wanted {
		switch old := r.checks[id]; {
		case old != nil && old.definition.Equal(c.definition):
			wanted[id] = old
		default:
			if r.ctx != nil {
				r.start(c)
			}
		}
	}
	for id, old := range r.checks {
		if wanted[id] != old {
			gone = append(gone, old)
		}
	}
	r.checks = wanted
	return gone
}

// Update gives a TTL check its state. Errors wrap ErrUnknown, or say that the
// check is of another type.
func (r *Runner) Update(id string, status state.Status, output string) error {
	r.mu.Lock()
	c := r.checks[id]
	r.mu.Unlock()
	switch {
	case c == nil:
		return fmt.Errorf("check %q: %w", id, ErrUnknown)
	case c.probe != nil:
		return fmt.Errorf("check %q: is probed (%s), only a TTL check takes updates", id, c.definition.Type())
	}
	switch status {
	case state.Passing, state.Warning, state.Critical:
	default:
		return fmt.Errorf("check %q: status %q: must be passing, warning or critical", id, status)
	}
	c.step(func(m *Machine) (Report, bool) { return m.Update(status, output, time.Now()) })
	select {
	case c.updated <- struct{}{}:
	default: // its goroutine has yet to look at the last one
	}
	return nil
}

func (r *Runner) newRunning(d Definition) (*running, error) {
	c := &running{
		definition: d,
		report:     r.deps.Report,
		log:        r.deps.Log.With("check", d.ID),
		updated:    make(chan struct{}, 1),
		machine:    r.newMachine(d),
		stop:       func() {},
	}
	if d.TTL > 0 {
		return c, nil
	}
	probe, err := r.deps.NewProbe(d, r.deps.Commands)
	c.probe = probe
	return c, err
}

func (r *Runner) newMachine(d Definition) *Machine {
	now := time.Now()
	m := NewMachine(d, now)
	if d.TTL > 0 && r.deps.LastUpdate != nil {
		m.Resume(r.deps.LastUpdate(d.ID), now)
	}
	return m
}

// start runs c in a goroutine of its own; r.mu is held.
func (r *Runner) start(c *running) {
	ctx, cancel := context.WithCancel(r.ctx)
	c.mu.Lock()
	c.stop = cancel
	if !c.machine.Determined() {
		c.machine = r.newMachine(c.definition) // a TTL counts from here
	}
	c.mu.Unlock()
	r.wg.Go(func() {
		defer cancel()
		if c.probe == nil {
			c.watch(ctx)
		} else {
			c.repeat(ctx)
		}
	})
}

// running is one check that runs.
type running struct {
	definition Definition
	probe      Probe // nil for TTL
	report     func(Report)
	log        *slog.Logger
	updated    chan struct{} // a TTL check's deadline has moved

	mu      sync.Mutex // held while reporting, to keep the order
	machine *Machine
	ended   bool
	stop    context.CancelFunc
}

// end stops the check; nothing is reported once it has returned. It does not
// wait for the probe under way.
func (c *running) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.stop()
}

// step moves the machine and reports what came of it.
func (c *running) step(move func(*Machine) (Report, bool)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if report, ok := move(c.machine); ok && !c.ended {
		c.report(report)
	}
}

// watch lets a TTL check expire.
func (c *running) watch(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.updated:
		case <-timer.C:
			c.step(func(m *Machine) (Report, bool) { return m.Expire(time.Now()) })
		}
		c.mu.Lock()
		at, ok := c.machine.Deadline()
		c.mu.Unlock()
		if ok {
			timer.Reset(time.Until(at))
		}
	}
}

// repeat probes at once and then every interval, counted from the start of
// the probe before.
func (c *running) repeat(ctx context.Context) {
	timer := time.NewTimer(rand.N(min(firstDelay, c.definition.Interval)))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		next := time.Now().Add(jittered(c.definition.Interval))
		if !c.probeOnce(ctx) {
			return
		}
		timer.Reset(max(time.Until(next), 0))
	}
}

// probeOnce makes one probe and takes its result. A probe that outlives its
// limit counts as failed when it is overdue, and again with every interval for
// which the next has to wait for its return. It is false when ctx ended.
func (c *running) probeOnce(ctx context.Context) bool {
	limited, cancel := context.WithTimeout(ctx, c.definition.Timeout)
	defer cancel()
	results := make(chan Result, 1)
	began := time.Now()
	go func() {
		r := c.probe.Probe(limited)
		r.At, r.Took = time.Now(), time.Since(began)
		results <- r
	}()
	hung := time.NewTimer(c.definition.Timeout + overdue)
	defer hung.Stop()
	for {
		select {
		case r := <-results:
			if ctx.Err() != nil {
				return false // it was we who broke it off
			}
			if r.Status == "" {
				return true // it saw nothing
			}
			c.step(func(m *Machine) (Report, bool) { return m.Step(r) })
			return true
		case <-hung.C:
			hung.Reset(c.definition.Interval)
			c.log.Debug("a probe does not return", "limit", c.definition.Timeout, "since", began)
			r := Result{
				Status: state.Critical,
				Output: fmt.Sprintf("the probe hangs: limit %s, not back %s later", c.definition.Timeout, overdue),
				At:     time.Now(),
			}
			c.step(func(m *Machine) (Report, bool) { return m.Step(r) })
		case <-ctx.Done():
			awaitEnd(results)
			return false
		}
	}
}

// awaitEnd gives a probe that was broken off a moment to clean up. One that
// hangs in the kernel can't be waited for.
func awaitEnd(results <-chan Result) {
	timer := time.NewTimer(overdue)
	defer timer.Stop()
	select {
	case <-results:
	case <-timer.C:
	}
}

// jittered spreads d by a twentieth up and down, so that checks that started
// together do not stay together.
func jittered(d time.Duration) time.Duration {
	return d - d/20 + rand.N(d/10)
}
