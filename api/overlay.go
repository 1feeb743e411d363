package api

import (
	"slices"

	"holdfast/internal/state"
)

// effect is what the gossip changed in an answer: the nodes whose check of
// themselves it made critical, and why.
type effect map[string]state.Liveness

// overlay lays what this node's gossip knows at this moment over the catalog.
// The leader writes the same down a little later; without a leader, nobody
// does. It takes away and never adds: a node that the catalog calls dead stays
// dead until the leader has said otherwise.
type overlay struct {
	snap *state.Snapshot
	laid effect
}

func newOverlay(snap *state.Snapshot) *overlay {
	return &overlay{snap: snap, laid: effect{}}
}

// down tells whether the gossip knows that a node is dead or left. A node
// that the gossip does not know was registered from outside, and lives.
func (o *overlay) down(node string) (state.Liveness, bool) {
	member, ok := o.snap.Member(node)
	if !ok || (member.Liveness != state.Failed && member.Liveness != state.Left) {
		return "", false
	}
	return member.Liveness, true
}

// checks returns the checks that speak of a node, with the node's own made
// critical where the gossip knows better.
func (o *overlay) checks(node string, all []*state.Check) []*state.Check {
	why, down := o.down(node)
	if !down {
		return all
	}
	at := slices.IndexFunc(all, func(c *state.Check) bool { return c.ID == state.SerfHealth })
	if at >= 0 && all[at].Status == state.Critical {
		return all
	}
	o.laid[node] = why
	changed := slices.Clone(all) // what a snapshot returns is shared
	if at < 0 {
		return append(changed, &state.Check{
			Node: node, ID: state.SerfHealth, Name: "Serf Health Status",
			Status: state.Critical, Output: outputOf(why),
		})
	}
	own := *all[at]
	own.Status, own.Output = state.Critical, outputOf(why)
	changed[at] = &own
	return changed
}

func outputOf(why state.Liveness) string {
	if why == state.Left {
		return "Agent left the cluster"
	}
	return "Agent not live or unreachable"
}

// instances lays the gossip over the instances of one service, by the rule of
// state.Snapshot.Healthy: when no instance would be left, the catalog's answer
// stands, since a partition that hides everyone is likelier than everyone's
// death.
func (o *overlay) instances(all []state.Instance) []state.Instance {
	passing, left := 0, 0
	for _, i := range all {
		if i.Status() != state.Passing {
			continue
		}
		passing++
		if _, down := o.down(i.Node.Name); !down {
			left++
		}
	}
	if passing > 0 && left == 0 {
		return all
	}
	changed := make([]state.Instance, len(all))
	for at, i := range all {
		changed[at] = state.Instance{Node: i.Node, Service: i.Service, Checks: o.checks(i.Node.Name, i.Checks)}
	}
	return changed
}

// byNode lays the gossip over all checks of the catalog.
func (o *overlay) byNode(all []*state.Check) []*state.Check {
	if !o.anyDown() {
		return all
	}
	groups := map[string][]*state.Check{}
	for _, c := range all {
		groups[c.Node] = append(groups[c.Node], c)
	}
	changed := make([]*state.Check, 0, len(all))
	for _, node := range sortedKeys(groups) {
		changed = append(changed, o.checks(node, groups[node])...)
	}
	return changed
}

func (o *overlay) anyDown() bool {
	return slices.ContainsFunc(o.snap.Members(), func(m state.Member) bool {
		_, down := o.down(m.Name)
		return down
	})
}
