package discovery

import (
	"maps"
	"slices"
	"strings"
	"time"

	"holdfast/internal/state"
)

// view is what an agent knows of itself.
type view struct {
	node     state.Node
	services []state.Service // by ID
	checks   []localView     // by ID
}

// localView is a check as the agent knows it.
type localView struct {
	state.Check
	// Undetermined: no probe has decided yet since the agent started. What
	// the catalog says then stands, so that a restart withdraws nothing.
	Undetermined bool
}

// rows is what the catalog says of one node.
type rows struct {
	node     *state.Node // nil: not in the catalog
	services map[string]*state.Service
	checks   map[string]*state.Check
}

func rowsOf(snapshot *state.Snapshot, node string) rows {
	r := rows{services: map[string]*state.Service{}, checks: map[string]*state.Check{}}
	r.node, _ = snapshot.Node(nil, node)
	if r.node == nil {
		return r
	}
	services, _ := snapshot.NodeServices(nil, node)
	for _, s := range services {
		r.services[s.ID] = s
	}
	checks, _ := snapshot.NodeChecks(nil, node)
	for _, c := range checks {
		r.checks[c.ID] = c
	}
	return r
}

// diff says what makes the catalog's rows of a node equal to what the node
// itself knows; nothing when they are. serfHealth is the leader's, and left
// alone.
func diff(local view, catalog rows) []state.Command {
	var plan []state.Command
	register := state.Register{Node: local.node}
	update := state.UpdateCheck{Node: local.node.Name}
	add := map[string]bool{} // services that the registration must carry
	for _, c := range local.checks {
		row := catalog.checks[c.ID]
		if c.Undetermined && row != nil {
			c.Status, c.Output = row.Status, row.Output
		}
		switch {
		case row == nil || !sameCheck(row, &c.Check):
			register.Checks = append(register.Checks, c.Check)
			add[c.ServiceID] = true
		case row.Status != c.Status || row.Output != c.Output:
			update.Updates = append(update.Updates, state.CheckState{ID: c.ID, Status: c.Status, Output: c.Output})
		}
	}
	known := map[string]bool{}
	for _, s := range local.services {
		known[s.ID] = true
		if row := catalog.services[s.ID]; row == nil || !sameService(row, &s) || add[s.ID] {
			register.Services = append(register.Services, s)
		}
	}
	// The short path first: it is what users wait for.
	if len(update.Updates) > 0 {
		plan = append(plan, update)
	}
	if len(register.Services) > 0 || len(register.Checks) > 0 || catalog.node == nil || !sameNode(catalog.node, &local.node) {
		plan = append(plan, register)
	}
	if stale := strangers(local, catalog, known); len(stale.Services) > 0 || len(stale.Checks) > 0 {
		plan = append(plan, stale)
	}
	return plan
}

// strangers deregisters rows of the node that it does not know.
func strangers(local view, catalog rows, known map[string]bool) state.Deregister {
	stale := state.Deregister{Node: local.node.Name, NodeID: local.node.ID}
	for _, id := range slices.Sorted(maps.Keys(catalog.services)) {
		if !known[id] {
			stale.Services = append(stale.Services, id)
		}
	}
	mine := map[string]bool{state.SerfHealth: true}
	for _, c := range local.checks {
		mine[c.ID] = true
	}
	for _, id := range slices.Sorted(maps.Keys(catalog.checks)) {
		service := catalog.checks[id].ServiceID
		if !mine[id] && (service == "" || known[service]) { // the others go with their service
			stale.Checks = append(stale.Checks, id)
		}
	}
	return stale
}

// sameNode compares what a node says of itself. Its name keeps the spelling
// that was first in the catalog.
func sameNode(a, b *state.Node) bool {
	return a.ID == b.ID && a.Address == b.Address.Unmap() && maps.Equal(a.Meta, b.Meta)
}

func sameService(a, b *state.Service) bool {
	return a.Name == b.Name && a.Address == b.Address.Unmap() && a.Port == b.Port && a.Weights == b.Weights &&
		slices.Equal(a.Tags, b.Tags) && maps.Equal(a.Meta, b.Meta)
}

// sameCheck compares all but the changing part.
func sameCheck(a, b *state.Check) bool {
	return a.Name == b.Name && a.Notes == b.Notes && a.ServiceID == b.ServiceID && a.Type == b.Type
}

// The texts of serfHealth, in Consul's words.
const (
	serfHealthName = "Serf Health Status"
	serfAlive      = "Agent alive and reachable"
	serfFailed     = "Agent not live or unreachable"
	serfAbsent     = "Agent not known to the gossip"
)

// absence is a node of the catalog that is no member of the gossip.
type absence struct {
	reaped bool          // it was a member that had failed or left, and was given up
	lasted time.Duration // since when this agent has missed it
}

const (
	// forgetAfter is when a failed node leaves the catalog: after a long
	// weekend, not before.
	forgetAfter = 72 * time.Hour
	// missingGrace is how long the members of an agent that has just started
	// may be incomplete.
	missingGrace = 10 * time.Second
)

// reconcile says what the leader must write so that the catalog agrees with
// the gossip: serfHealth of every member, members that are new, and nodes that
// left, were given up or have another name now. Nodes without an ID were registered from outside and
// are left alone. absent holds the nodes with an ID that are no members, by ID.
func reconcile(snapshot *state.Snapshot, absent map[string]absence, grace time.Duration) []state.Command {
	var worse, better, gone []state.Command
	nodes, _ := snapshot.Nodes(nil)
	alive := namesOf(snapshot.Members())
	present := map[string]bool{}
	for _, n := range nodes {
		present[state.Fold(n.Name)] = true
		m, isMember := snapshot.Member(n.Name)
		switch {
		case !isMember && n.ID == "":
		case !isMember && len(alive[n.ID]) > 0: // it was renamed
			gone = append(gone, state.Deregister{Node: n.Name, NodeID: n.ID})
		case !isMember:
			switch a := absent[n.ID]; {
			case a.reaped || a.lasted >= forgetAfter:
				gone = append(gone, state.Deregister{Node: n.Name, NodeID: n.ID})
			case a.lasted >= grace:
				worse = append(worse, serfHealth(snapshot, n, state.Critical, serfAbsent)...)
			}
		case m.Liveness == state.Alive && m.ID != "" && m.ID != n.ID:
			better = append(better, welcome(m, n.Meta)) // its disk was wiped, or it was registered from outside before
		case m.Liveness == state.Alive:
			better = append(better, serfHealth(snapshot, n, state.Passing, serfAlive)...)
		case m.Liveness == state.Failed:
			worse = append(worse, serfHealth(snapshot, n, state.Critical, serfFailed)...)
		case m.Liveness == state.Left && m.ID == n.ID && n.ID != "":
			gone = append(gone, state.Deregister{Node: n.Name, NodeID: n.ID})
		}
	}
	for _, m := range snapshot.Members() {
		if m.Liveness == state.Alive && m.Address.IsValid() && !present[state.Fold(m.Name)] {
			better = append(better, welcome(m, nil))
		}
	}
	return slices.Concat(worse, gone, better)
}

// welcome registers a member with what gossip knows of it.
func welcome(m state.Member, meta map[string]string) state.Command {
	return state.Register{
		Node:   state.Node{ID: m.ID, Name: m.Name, Address: m.Address, Meta: meta},
		Checks: []state.Check{serfCheck(state.Passing, serfAlive)},
	}
}

// serfHealth writes the check unless it has the status.
func serfHealth(snapshot *state.Snapshot, n *state.Node, status state.Status, output string) []state.Command {
	checks, _ := snapshot.NodeChecks(nil, n.Name)
	at := slices.IndexFunc(checks, func(c *state.Check) bool { return c.ID == state.SerfHealth })
	switch {
	case at < 0:
		row := state.Node{ID: n.ID, Name: n.Name, Address: n.Address, Meta: n.Meta}
		return []state.Command{state.Register{Node: row, Checks: []state.Check{serfCheck(status, output)}}}
	case checks[at].Status != status:
		return []state.Command{state.UpdateCheck{
			Node:    n.Name,
			Updates: []state.CheckState{{ID: state.SerfHealth, Status: status, Output: output}},
		}}
	}
	return nil
}

func serfCheck(status state.Status, output string) state.Check {
	return state.Check{ID: state.SerfHealth, Name: serfHealthName, Status: status, Output: output}
}

// absences remembers which nodes of the catalog are not in the gossip, and
// since when. Every agent keeps it, so that a new leader need not begin anew.
// It is not safe for concurrent use.
type absences struct {
	since map[string]time.Time // by node ID
	gone  map[string]bool      // IDs of members that had failed or left when last seen
	given map[string]bool      // IDs of those that were reaped since
}

func newAbsences() *absences {
	return &absences{since: map[string]time.Time{}, gone: map[string]bool{}, given: map[string]bool{}}
}

// observe takes the members and the catalog of this moment and returns who is
// absent, by node ID.
func (a *absences) observe(now time.Time, snapshot *state.Snapshot) map[string]absence {
	members := map[string]bool{}
	for _, m := range snapshot.Members() {
		members[m.ID] = true
		delete(a.given, m.ID)
		if m.Liveness == state.Failed || m.Liveness == state.Left {
			a.gone[m.ID] = true
		} else {
			delete(a.gone, m.ID)
		}
	}
	for id := range a.gone {
		if !members[id] {
			delete(a.gone, id)
			a.given[id] = true
		}
	}
	absent := map[string]absence{}
	nodes, _ := snapshot.Nodes(nil)
	inCatalog := map[string]bool{}
	for _, n := range nodes {
		inCatalog[n.ID] = true
		if _, isMember := snapshot.Member(n.Name); isMember || n.ID == "" {
			continue
		}
		if _, ok := a.since[n.ID]; !ok {
			a.since[n.ID] = now
		}
		absent[n.ID] = absence{reaped: a.given[n.ID], lasted: now.Sub(a.since[n.ID])}
	}
	maps.DeleteFunc(a.since, func(id string, _ time.Time) bool { _, still := absent[id]; return !still })
	maps.DeleteFunc(a.given, func(id string, _ bool) bool { return !inCatalog[id] })
	return absent
}

// skew says which alive members run which cluster file, when it is not the
// same everywhere; "" when it is.
func skew(members []state.Member) string {
	return divided(members, func(m state.Member) string {
		if len(m.ConfigSum) > 12 {
			return m.ConfigSum[:12]
		}
		return m.ConfigSum
	})
}

// split says which alive servers belong to which store, when it is more than
// one.
func split(members []state.Member) string {
	return divided(members, func(m state.Member) string { return m.ClusterID })
}

// twins says which alive members have the same node ID; "" when none have.
func twins(members []state.Member) string {
	var parts []string
	for id, names := range namesOf(members) {
		if len(names) > 1 {
			slices.Sort(names)
			parts = append(parts, strings.Join(names, ", ")+": "+id)
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, "; ")
}

// divided groups the alive members by a property; members without it don't
// count. "" when there are fewer than two groups.
func divided(members []state.Member, property func(state.Member) string) string {
	groups := map[string][]string{}
	for _, m := range members {
		if value := property(m); m.Liveness == state.Alive && value != "" {
			groups[value] = append(groups[value], m.Name)
		}
	}
	if len(groups) < 2 {
		return ""
	}
	var parts []string
	for value, names := range groups {
		slices.Sort(names)
		parts = append(parts, strings.Join(names, ", ")+": "+value)
	}
	slices.Sort(parts)
	return strings.Join(parts, "; ")
}
