package discovery

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/state"
)

// source says who defined a service or a check.
type source int

const (
	fromFile source = iota // the cluster file
	fromAPI                // registered at run time
)

// local is what this node knows of its own services and checks. Its methods
// may be called from any goroutine.
type local struct {
	node state.Node

	mu       sync.Mutex
	services map[string]localService // by ID
	checks   map[string]*localCheck  // by ID
	// poke has an element when something changed since it was last taken.
	poke chan struct{}
}

type localService struct {
	state.Service
	source source
}

type localCheck struct {
	definition check.Definition
	source     source
	status     state.Status
	output     string
	determined bool
	// changed is when the state changed that is not yet in the store; zero
	// when it is.
	changed time.Time
	// criticalSince is when it became critical; zero while it is not.
	criticalSince time.Time
}

func newLocal(node state.Node) *local {
	return &local{
		node:     node,
		services: map[string]localService{},
		checks:   map[string]*localCheck{},
		poke:     make(chan struct{}, 1),
	}
}

// changed wakes who waits on poke.
func (l *local) changed() {
	select {
	case l.poke <- struct{}{}:
	default:
	}
}

// set declares the services and checks. Checks whose definition stays the same
// keep their state.
func (l *local) set(services []localService, checks []localCheck) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.services = make(map[string]localService, len(services))
	for _, s := range services {
		l.services[s.ID] = s
	}
	kept := l.checks
	l.checks = make(map[string]*localCheck, len(checks))
	for _, c := range checks {
		old := kept[c.definition.ID]
		if old != nil && old.definition.Equal(c.definition) {
			old.source = c.source
			l.checks[c.definition.ID] = old
			continue
		}
		c.status, c.output = c.definition.Initial, "not probed yet"
		if c.definition.TTL > 0 {
			c.output = "no update yet"
		}
		l.checks[c.definition.ID] = &c
	}
	l.changed()
}

// report takes a check's new state; it is false when the check is not there
// any more.
func (l *local) report(r check.Report) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.checks[r.ID]
	if c == nil {
		return false
	}
	if r.Transition && c.changed.IsZero() {
		c.changed = r.At
	}
	switch {
	case r.Status != state.Critical:
		c.criticalSince = time.Time{}
	case c.criticalSince.IsZero():
		c.criticalSince = r.At
	}
	c.status, c.output, c.determined = r.Status, r.Output, true
	l.changed()
	return true
}

// view copies everything, for diff.
func (l *local) view() view {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := view{node: l.node, services: make([]state.Service, 0, len(l.services)), checks: make([]localView, 0, len(l.checks))}
	for _, id := range slices.Sorted(maps.Keys(l.services)) {
		v.services = append(v.services, l.services[id].Service)
	}
	for _, id := range slices.Sorted(maps.Keys(l.checks)) {
		c := l.checks[id]
		v.checks = append(v.checks, localView{Check: l.row(c), Undetermined: !c.determined})
	}
	return v
}

// row is a check as the catalog has it; mu is held.
func (l *local) row(c *localCheck) state.Check {
	row := state.Check{
		Node: l.node.Name, ID: c.definition.ID, Name: c.definition.Name, Notes: c.definition.Notes,
		Status: c.status, Output: c.output, ServiceID: c.definition.ServiceID, Type: c.definition.Type(),
	}
	if s, ok := l.services[c.definition.ServiceID]; ok {
		row.ServiceName, row.ServiceTags = s.Name, slices.Clone(s.Tags)
	}
	return row
}

// stored tells local that the catalog was seen to hold what v says. It returns
// how long ago the transitions happened that were waiting for that.
func (l *local) stored(v view, now time.Time) []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var took []time.Duration
	for _, seen := range v.checks {
		c := l.checks[seen.ID]
		if c == nil || c.changed.IsZero() || seen.Undetermined || c.status != seen.Status {
			continue
		}
		took = append(took, now.Sub(c.changed))
		c.changed = time.Time{}
	}
	return took
}

// count gives the number of checks by state.
func (l *local) count() map[state.Status]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := map[state.Status]int{}
	for _, c := range l.checks {
		count[c.status]++
	}
	return count
}

func (l *local) definition(id string) (check.Definition, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.checks[id]; c != nil {
		return c.definition, true
	}
	return check.Definition{}, false
}

// expired lists the services of the API that are to be deregistered because a
// check of theirs has been critical for so long, and when to look again.
func (l *local) expired(now time.Time) (ids []string, next time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = forgetAfter
	for _, c := range l.checks {
		after := c.definition.DeregisterAfter
		if after == 0 || c.criticalSince.IsZero() || l.services[c.definition.ServiceID].source != fromAPI || c.definition.ServiceID == "" {
			continue
		}
		if left := after - now.Sub(c.criticalSince); left > 0 {
			next = min(next, left)
		} else if !slices.Contains(ids, c.definition.ServiceID) {
			ids = append(ids, c.definition.ServiceID)
		}
	}
	slices.Sort(ids)
	return ids, next
}

// prepare fills in and validates a service with its checks, by the very rules
// of the store: what is refused there must not get here.
func prepare(node state.Node, d ServiceDefinition) (ServiceDefinition, error) {
	s := d.Service
	s.Node = node.Name
	if s.ID == "" {
		s.ID = s.Name
	}
	if s.Name == "" {
		s.Name = s.ID
	}
	prepared := ServiceDefinition{Service: s}
	for i, c := range d.Checks {
		c.ServiceID = s.ID
		if c.ID == "" && len(d.Checks) > 1 {
			c.ID = fmt.Sprintf("service:%s:%d", s.ID, i+1)
		}
		c = c.WithDefaults()
		if err := c.Validate(); err != nil {
			return ServiceDefinition{}, fmt.Errorf("%w: service %q: check %q: %s", state.ErrInvalid, s.ID, c.ID, flat(err))
		}
		prepared.Checks = append(prepared.Checks, c)
	}
	l := newLocal(node)
	l.set([]localService{{Service: s}}, localChecks(prepared.Checks, fromAPI))
	if len(l.checks) != len(prepared.Checks) {
		return ServiceDefinition{}, fmt.Errorf("%w: service %q: two of its checks have the same ID", state.ErrInvalid, s.ID)
	}
	return prepared, rehearse(l.view())
}

// rehearse carries out the registration on a replica of its own.
func rehearse(v view) error {
	for i, command := range diff(v, rows{}) {
		if err := state.New().Apply(uint64(i)+1, command); err != nil {
			return err
		}
	}
	return nil
}

func localChecks(definitions []check.Definition, from source) []localCheck {
	checks := make([]localCheck, 0, len(definitions))
	for _, d := range definitions {
		checks = append(checks, localCheck{definition: d, source: from})
	}
	return checks
}

// flat puts a joined error on one line.
func flat(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
