package api

import (
	"net/http"
	"slices"

	"holdfast/internal/state"
)

func (s *Server) healthService(c *call) error {
	name, err := c.name("service name")
	if err != nil {
		return err
	}
	passing, err := c.flag("passing")
	if err != nil {
		return err
	}
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		all, index := snap.Instances(ws, name)
		over := newOverlay(snap)
		found := []instanceJSON{}
		for _, i := range over.instances(all) {
			if c.wants(i) && (!passing || i.Status() == state.Passing) {
				found = append(found, s.instanceOf(i))
			}
		}
		return answer{value: kept(c.filter, found), index: index, gossip: true, laid: over.laid}
	})
}

func (s *Server) healthNode(c *call) error {
	name, err := c.name("node name")
	if err != nil {
		return err
	}
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		checks, index := snap.NodeChecks(ws, name)
		over := newOverlay(snap)
		if len(checks) > 0 {
			checks = over.checks(checks[0].Node, checks)
		}
		checks = visible(checks, c.seesCheck)
		return answer{value: kept(c.filter, checksOf(checks)), index: index, gossip: true, laid: over.laid}
	})
}

// healthChecks answers with the checks of a service's instances, without
// those of their nodes, so the gossip has nothing to say here.
func (s *Server) healthChecks(c *call) error {
	name, err := c.name("service name")
	if err != nil {
		return err
	}
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		checks, index := snap.ServiceChecks(ws, name)
		checks, moved := c.onNodes(snap, ws, checks)
		checks = visible(checks, c.seesCheck)
		return answer{value: kept(c.filter, checksOf(checks)), index: max(index, moved)}
	})
}

func (s *Server) healthState(c *call) error {
	name, err := c.name("check state")
	if err != nil {
		return err
	}
	wanted := state.Status(name)
	switch wanted {
	case "any":
		wanted = ""
	case state.Passing, state.Warning, state.Critical:
	default:
		return fault(http.StatusBadRequest, "Unsupported state %q: any, passing, warning or critical", name)
	}
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		checks, index, laid := checksIn(snap, ws, wanted)
		checks, moved := c.onNodes(snap, ws, checks)
		checks = visible(checks, c.seesCheck)
		return answer{value: kept(c.filter, checksOf(checks)), index: max(index, moved), gossip: true, laid: laid}
	})
}

// checksIn lists the checks in a state ("" any), with the gossip laid over
// them.
func checksIn(snap *state.Snapshot, ws state.WatchSet, wanted state.Status) ([]*state.Check, uint64, effect) {
	over := newOverlay(snap)
	checks, index := snap.Checks(ws, wanted)
	all, _ := snap.Checks(nil, "")
	all = over.byNode(all)
	if len(over.laid) == 0 {
		return checks, index, nil
	}
	// What the gossip turned critical stands in another list of the catalog:
	// the answer is made of all of them, and moves with all of them.
	_, index = snap.Checks(ws, "")
	return slices.DeleteFunc(all, func(c *state.Check) bool { return wanted != "" && c.Status != wanted }), index, over.laid
}

// onNodes keeps the checks of nodes with the ?node-meta asked for.
func (c *call) onNodes(snap *state.Snapshot, ws state.WatchSet, checks []*state.Check) ([]*state.Check, uint64) {
	if len(c.read.nodeMeta) == 0 {
		return checks, 0
	}
	nodes, index := snap.Nodes(ws)
	wanted := map[string]bool{}
	for _, n := range nodes {
		wanted[state.Fold(n.Name)] = hasMeta(n, c.read.nodeMeta)
	}
	return slices.DeleteFunc(slices.Clone(checks), func(c *state.Check) bool { return !wanted[state.Fold(c.Node)] }), index
}
