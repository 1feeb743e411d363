package state

import (
	"cmp"
	"maps"
	"slices"
)

// gossip is this node's own view of the members, by folded name.
type gossip struct {
	members []Member
}

func (g *gossip) find(name string) (Member, bool) {
	i, ok := slices.BinarySearchFunc(g.members, Fold(name), func(m Member, name string) int {
		return cmp.Compare(Fold(m.Name), name)
	})
	if !ok {
		return Member{}, false
	}
	return g.members[i], true
}

// SetMembers replaces this node's view of the gossip. Members that are equal
// to what was known wake nobody; the others appear in Since under TableMember.
// Of several members with one name the first counts.
func (s *Store) SetMembers(members []Member) {
	next := &gossip{members: slices.Clone(members)}
	byName := func(a, b Member) int { return cmp.Compare(Fold(a.Name), Fold(b.Name)) }
	slices.SortStableFunc(next.members, byName)
	next.members = slices.CompactFunc(next.members, func(a, b Member) bool { return byName(a, b) == 0 })
	for i := range next.members {
		next.members[i].Tags = maps.Clone(next.members[i].Tags)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	snap := *s.Snapshot()
	keys := differences(snap.gossip, next)
	if len(keys) == 0 {
		return
	}
	snap.gossip = next
	s.publish(snap, keys)
}

// differences names the members that are not the same in both views.
func differences(old, next *gossip) map[Key]struct{} {
	keys := map[Key]struct{}{}
	for _, m := range next.members {
		if was, ok := old.find(m.Name); !ok || !equalMember(was, m) {
			keys[Key{TableMember, Fold(m.Name)}] = struct{}{}
		}
	}
	for _, m := range old.members {
		if _, ok := next.find(m.Name); !ok {
			keys[Key{TableMember, Fold(m.Name)}] = struct{}{}
		}
	}
	return keys
}

func equalMember(a, b Member) bool {
	return a.Name == b.Name && a.ID == b.ID && a.Address == b.Address && a.Liveness == b.Liveness &&
		a.Server == b.Server && a.RPC == b.RPC && a.ClusterID == b.ClusterID && a.Version == b.Version &&
		a.Feature == b.Feature && a.ConfigSum == b.ConfigSum && maps.Equal(a.Tags, b.Tags)
}

// Members lists what this node's gossip sees, by name. The slice is the
// caller's; the members' tags are shared.
func (s *Snapshot) Members() []Member { return slices.Clone(s.gossip.members) }

// Member finds a member by name, without regard to case.
func (s *Snapshot) Member(name string) (Member, bool) { return s.gossip.find(name) }

// Healthy filters instances as an answer should have them: passing (and
// warning, unless onlyPassing) in the catalog, and not on a node that this
// node's gossip knows has failed or left. A node that the gossip does not know
// counts as alive: it was registered from outside.
//
// The gossip never takes the last ones: when it would leave nothing of what the
// catalog chose, the catalog's choice stands. A node that is cut off from
// everybody else sees them all failed, and an old answer is better than none.
//
// The order is kept; all is not changed.
func (s *Snapshot) Healthy(all []Instance, onlyPassing bool) []Instance {
	var chosen, alive []Instance
	for _, i := range all {
		switch i.Status() {
		case Passing:
		case Warning:
			if onlyPassing {
				continue
			}
		default:
			continue
		}
		chosen = append(chosen, i)
		if !s.gone(i.Node.Name) {
			alive = append(alive, i)
		}
	}
	if len(alive) == 0 {
		return chosen
	}
	return alive
}

// gone tells whether the gossip knows that a node has failed or left.
func (s *Snapshot) gone(node string) bool {
	m, ok := s.gossip.find(node)
	return ok && (m.Liveness == Failed || m.Liveness == Left)
}
