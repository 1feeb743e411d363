package check

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"holdfast/internal/state"
)

// Alias names whose state a check takes for its own.
type Alias struct {
	Node    string // "" means this node
	Service string // the ID of a service on it; "" means the node itself
}

// String is "service web on fbservice2", "node fbservice2" ...
func (a Alias) String() string {
	node := cmp.Or(a.Node, "this node")
	if a.Service == "" {
		return "node " + node
	}
	return "service " + a.Service + " on " + node
}

// aliasProbe looks into this node's replica of the catalog.
type aliasProbe struct {
	alias    Alias
	snapshot func() (*state.Snapshot, bool)
}

// NewAliasProbe makes the probe of an alias check on a node. The snapshot is
// of the catalog; ok is false while it is not known to be whole: nothing is
// then said.
func NewAliasProbe(d Definition, node string, snapshot func() (s *state.Snapshot, ok bool)) Probe {
	alias := *d.Alias
	alias.Node = cmp.Or(alias.Node, node)
	return aliasProbe{alias: alias, snapshot: snapshot}
}

func (p aliasProbe) Probe(context.Context) Result {
	snapshot, ok := p.snapshot()
	if !ok {
		return Result{} // as it was
	}
	return p.look(snapshot)
}

// look is as bad as the worst check of what it stands for. Other aliases don't
// count, so that two that name each other can't keep each other critical.
func (p aliasProbe) look(s *state.Snapshot) Result {
	if !p.known(s) {
		return critical("%s: is not in the catalog", p.alias)
	}
	worst, at := state.Passing, ""
	checks, _ := s.NodeChecks(nil, p.alias.Node)
	for _, c := range checks {
		if c.Type == "alias" || c.ServiceID != "" && c.ServiceID != p.alias.Service {
			continue
		}
		if severity(c.Status) > severity(worst) {
			worst, at = c.Status, c.ID
		}
	}
	if worst == state.Passing {
		return passing("%s: passing", p.alias)
	}
	return result(worst, "%s: %s is %s", p.alias, at, worst)
}

func (p aliasProbe) known(s *state.Snapshot) bool {
	if p.alias.Service == "" {
		node, _ := s.Node(nil, p.alias.Node)
		return node != nil
	}
	services, _ := s.NodeServices(nil, p.alias.Node)
	return slices.ContainsFunc(services, func(s *state.Service) bool { return s.ID == p.alias.Service })
}

func severity(status state.Status) int {
	switch status {
	case state.Passing:
		return 0
	case state.Warning:
		return 1
	}
	return 2
}

// parseAlias reads "SERVICE", "SERVICE@NODE" or "@NODE".
func parseAlias(text string) (*Alias, error) {
	service, node, _ := strings.Cut(text, "@")
	if service == "" && node == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == '@' && strings.Count(text, "@") > 1 }) {
		return nil, fmt.Errorf("%q is no alias; write SERVICE, SERVICE@NODE or @NODE", text)
	}
	return &Alias{Node: node, Service: service}, nil
}
