package discovery

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/state"
)

// SetServices declares the services of the cluster file. Checks that did not
// change go on undisturbed; services that are gone leave the catalog. A
// service that the API registered under an ID that the file now uses is the
// file's. On an error (of a definition that ServicesFrom did not make) nothing
// changes.
func (a *Agent) SetServices(definitions []ServiceDefinition) error {
	prepared := make([]ServiceDefinition, 0, len(definitions))
	for _, d := range definitions {
		p, err := prepare(a.config.node(), d)
		if err != nil {
			return fmt.Errorf("discovery: %w", err)
		}
		prepared = append(prepared, p)
	}
	if err := distinct(prepared); err != nil {
		return fmt.Errorf("discovery: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.file = prepared
	return a.declare()
}

// RegisterService adds a service of this node with its checks, or replaces the
// one that was registered under its ID before. It is kept on the disk, and
// there again after a restart. Errors wrap state.ErrInvalid when the service
// can't be had: script checks, and IDs of the cluster file's services and
// checks, are refused.
func (a *Agent) RegisterService(service state.Service, checks []check.Definition) error {
	for _, c := range checks {
		if err := refuseScript(c); err != nil {
			return fmt.Errorf("discovery: register service %q: %w", service.ID, err)
		}
	}
	prepared, err := prepare(a.config.node(), ServiceDefinition{Service: service, Checks: checks})
	if err != nil {
		return fmt.Errorf("discovery: register: %w", err)
	}
	return a.change(fmt.Sprintf("register service %q", prepared.Service.ID), func(r *registrations) error {
		id := prepared.Service.ID
		if a.inFile(func(d ServiceDefinition) bool { return d.Service.ID == id }) {
			return fmt.Errorf("%w: it belongs to the cluster file", state.ErrInvalid)
		}
		for _, c := range prepared.Checks {
			if owner, ok := a.checkOwner(*r, c.ID); ok && owner != id {
				return fmt.Errorf("%w: check %q belongs to %s", state.ErrInvalid, c.ID, ownerName(owner))
			}
			delete(r.checks, c.ID) // one that was added to the service later
		}
		r.services[id] = prepared
		return nil
	})
}

// DeregisterService removes a service that RegisterService added, with its
// checks. Errors wrap state.ErrNotFound, or state.ErrInvalid for a service of
// the cluster file.
func (a *Agent) DeregisterService(id string) error {
	return a.change(fmt.Sprintf("deregister service %q", id), func(r *registrations) error {
		if _, ok := r.services[id]; !ok {
			if a.inFile(func(d ServiceDefinition) bool { return d.Service.ID == id }) {
				return fmt.Errorf("%w: it belongs to the cluster file", state.ErrInvalid)
			}
			return state.ErrNotFound
		}
		delete(r.services, id)
		maps.DeleteFunc(r.checks, func(_ string, c check.Definition) bool { return c.ServiceID == id })
		return nil
	})
}

// RegisterCheck adds a check of this node, or of one of its services (also of
// the cluster file's), or replaces one. It is kept as a service is. Errors wrap
// state.ErrInvalid; state.ErrNotFound when its service is not there.
func (a *Agent) RegisterCheck(c check.Definition) error {
	if c.ID == "" {
		c.ID = c.Name
	}
	c = c.WithDefaults()
	if err := refuseScript(c); err != nil {
		return fmt.Errorf("discovery: register check %q: %w", c.ID, err)
	}
	return a.change(fmt.Sprintf("register check %q", c.ID), func(r *registrations) error {
		if err := c.Validate(); err != nil {
			return fmt.Errorf("%w: %s", state.ErrInvalid, flat(err))
		}
		owner, ok := a.checkOwner(*r, c.ID)
		switch {
		case ok && owner == fileOwner, ok && owner != "" && owner != c.ServiceID:
			return fmt.Errorf("%w: it belongs to %s", state.ErrInvalid, ownerName(owner))
		case c.ServiceID != "" && r.services[c.ServiceID].Service.ID == "" &&
			!a.inFile(func(d ServiceDefinition) bool { return d.Service.ID == c.ServiceID }):
			return fmt.Errorf("service %q: %w", c.ServiceID, state.ErrNotFound)
		}
		if ok && owner != "" { // it came with its service: replace it there
			s := r.services[owner]
			s.Checks = slices.Clone(s.Checks)
			s.Checks[slices.IndexFunc(s.Checks, func(old check.Definition) bool { return old.ID == c.ID })] = c
			r.services[owner] = s
			return rehearseCheck(a.config.node(), c)
		}
		r.checks[c.ID] = c
		return rehearseCheck(a.config.node(), c)
	})
}

// DeregisterCheck removes a check that the API added, by itself or with a
// service. Errors are those of DeregisterService.
func (a *Agent) DeregisterCheck(id string) error {
	return a.change(fmt.Sprintf("deregister check %q", id), func(r *registrations) error {
		owner, ok := a.checkOwner(*r, id)
		switch {
		case !ok:
			return state.ErrNotFound
		case owner == fileOwner:
			return fmt.Errorf("%w: it belongs to the cluster file", state.ErrInvalid)
		case owner == "":
			delete(r.checks, id)
			return nil
		}
		s := r.services[owner]
		s.Checks = slices.DeleteFunc(slices.Clone(s.Checks), func(c check.Definition) bool { return c.ID == id })
		r.services[owner] = s
		return nil
	})
}

// UpdateTTL gives a TTL check its state and starts its time again. Errors wrap
// state.ErrNotFound, or state.ErrInvalid for a check of another type.
func (a *Agent) UpdateTTL(id string, status state.Status, output string) error {
	err := a.checks.Update(id, status, output)
	switch {
	case err == nil:
		if d, ok := a.local.definition(id); ok {
			a.updates.note(d, time.Now())
		}
		return nil
	case errors.Is(err, check.ErrUnknown):
		return fmt.Errorf("discovery: %w: %w", state.ErrNotFound, err)
	}
	return fmt.Errorf("discovery: %w: %w", state.ErrInvalid, err)
}

// LocalServices lists the services that this node knows as its own, by ID,
// whether they are in the catalog yet or not.
func (a *Agent) LocalServices() []state.Service { return a.local.view().services }

// LocalChecks lists the checks of this node, by ID, in their present state.
func (a *Agent) LocalChecks() []state.Check {
	v := a.local.view()
	checks := make([]state.Check, 0, len(v.checks))
	for _, c := range v.checks {
		checks = append(checks, c.Check)
	}
	return checks
}

// CheckDefinition finds how a check of this node is made.
func (a *Agent) CheckDefinition(id string) (check.Definition, bool) { return a.local.definition(id) }

// change edits the registrations, puts them on the disk, and then makes them
// true. On an error nothing has changed.
func (a *Agent) change(what string, edit func(*registrations) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := a.registered.clone()
	if err := edit(&next); err != nil {
		return fmt.Errorf("discovery: %s: %w", what, err)
	}
	if err := a.save(next); err != nil {
		return fmt.Errorf("discovery: %s: %w", what, err)
	}
	a.registered = next
	return a.declare()
}

// declare makes the file's and the API's definitions the ones that count; mu
// is held.
func (a *Agent) declare() error {
	services, checks, dropped := combine(a.file, a.registered)
	for _, what := range dropped {
		a.log.Warn("registration of the API ignored: the cluster file has it", "registration", what)
	}
	definitions := make([]check.Definition, 0, len(checks))
	for _, c := range checks {
		definitions = append(definitions, c.definition)
	}
	a.local.set(services, checks)
	if err := a.checks.Set(definitions); err != nil {
		return fmt.Errorf("discovery: %w", err)
	}
	a.metrics.setChecks(a.local.count())
	return nil
}

// combine puts the two sources together. Where both have an ID it is the
// file's; what the API had there is dropped, and a check whose service is
// missing with it.
func combine(file []ServiceDefinition, registered registrations) (services []localService, checks []localCheck, dropped []string) {
	serviceIDs, checkIDs := map[string]bool{}, map[string]bool{}
	add := func(d ServiceDefinition, from source) {
		serviceIDs[d.Service.ID] = true
		services = append(services, localService{Service: d.Service, source: from})
		for _, c := range d.Checks {
			if checkIDs[c.ID] {
				dropped = append(dropped, "check "+c.ID)
				continue
			}
			checkIDs[c.ID] = true
			checks = append(checks, localCheck{definition: c, source: from})
		}
	}
	for _, d := range file {
		add(d, fromFile)
	}
	for _, id := range slices.Sorted(maps.Keys(registered.services)) {
		if serviceIDs[id] {
			dropped = append(dropped, "service "+id)
			continue
		}
		add(registered.services[id], fromAPI)
	}
	for _, id := range slices.Sorted(maps.Keys(registered.checks)) {
		c := registered.checks[id]
		if checkIDs[id] || c.ServiceID != "" && !serviceIDs[c.ServiceID] {
			dropped = append(dropped, "check "+id)
			continue
		}
		checks = append(checks, localCheck{definition: c, source: fromAPI})
	}
	return services, checks, dropped
}

// fileOwner stands for the cluster file as the owner of a check. No service
// has this ID, as it holds a control character.
const fileOwner = "\x00"

// checkOwner tells whose a check is: a registered service's (its ID), the
// cluster file's (fileOwner), or its own (""). ok is false when there is none.
func (a *Agent) checkOwner(r registrations, id string) (owner string, ok bool) {
	has := func(d ServiceDefinition) bool {
		return slices.ContainsFunc(d.Checks, func(c check.Definition) bool { return c.ID == id })
	}
	if a.inFile(has) {
		return fileOwner, true
	}
	for service, d := range r.services {
		if has(d) {
			return service, true
		}
	}
	_, ok = r.checks[id]
	return "", ok
}

func ownerName(owner string) string {
	switch owner {
	case fileOwner:
		return "the cluster file"
	case "":
		return "another registration"
	}
	return fmt.Sprintf("service %q", owner)
}

func (a *Agent) inFile(match func(ServiceDefinition) bool) bool {
	return slices.ContainsFunc(a.file, match)
}

// rehearseCheck has the store's rules look at a check.
func rehearseCheck(node state.Node, c check.Definition) error {
	c.ServiceID = "" // its rules don't depend on it
	l := newLocal(node)
	l.set(nil, localChecks([]check.Definition{c}, fromAPI))
	return rehearse(l.view())
}

func refuseScript(c check.Definition) error {
	if len(c.Script) > 0 {
		return fmt.Errorf("%w: script checks come from the cluster file only", state.ErrInvalid)
	}
	return nil
}

// distinct refuses services and checks with the same ID.
func distinct(definitions []ServiceDefinition) error {
	services, checks := map[string]bool{}, map[string]bool{}
	for _, d := range definitions {
		if services[d.Service.ID] {
			return fmt.Errorf("%w: service %q is defined twice", state.ErrInvalid, d.Service.ID)
		}
		services[d.Service.ID] = true
		for _, c := range d.Checks {
			if checks[c.ID] {
				return fmt.Errorf("%w: check %q is defined twice", state.ErrInvalid, c.ID)
			}
			checks[c.ID] = true
		}
	}
	return nil
}
