package raftstore

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/state"
)

// The pure core of the membership: what the configuration should become next,
// given what the gossip shows and what the servers answered. One change at a
// time, and never one after which the servers that are up could not go on.

// member is a server of the Raft configuration.
type member struct {
	ID, Name, Address string
	Voter             bool
}

// view is what the leader knows.
type view struct {
	Self    string // ID of the leader
	Store   string // its cluster ID
	Order   []string
	Voters  int // how many should vote
	Servers []member
	Gossip  []state.Member
	// Reachable: answered under its own ID just now. CaughtUp: and holds
	// everything that is committed, but for the last moment.
	Reachable, CaughtUp map[string]bool
	// Unstable: has not answered for long enough yet. Demoted: an admin took
	// its vote. Gone: how long it has not answered.
	Unstable, Demoted map[string]bool
	Gone              map[string]time.Duration
	Disks             map[string]fitness // of those that answer
	Pilot             Autopilot
	Level             int            // feature level of the store
	Reads             map[string]int // highest level that each server that answers reads
}

// changeKind is a kind of configuration change; also the metric's label.
type changeKind string

const (
	changeRemove  changeKind = "remove"
	changeAdd     changeKind = "add"     // as a non-voter
	changePromote changeKind = "promote" // to a voter
	changeDemote  changeKind = "demote"  // to a non-voter
	changeMove    changeKind = "move"    // to another address; only the leader itself
)

// change is the next step.
type change struct {
	Kind   changeKind
	Server member
	Why    string
}

// plan gives the next change, if one is called for. problems are servers that
// are refused, in a sentence each.
func plan(v view) (next *change, problems []string) {
	for _, rule := range []func(view) *change{
		removeWiped, removeLeft, moveMoved,
	} {
		if c := rule(v); c != nil {
			return c, nil
		}
	}
	c, problems := addNew(v)
	problems = append(problems, v.outdated()...)
	if c != nil {
		return c, problems
	}
	for _, rule := range []func(view) *change{spareUnfit, balance, replaceLost, forgetLost} {
		if c := rule(v); c != nil {
			return c, problems
		}
	}
	return nil, problems
}

// removeWiped takes out a server whose node is there again without its data:
// its old vote must be gone before it gets a new one.
func removeWiped(v view) *change {
	for _, s := range v.Servers {
		if s.ID == v.Self || v.Reachable[s.ID] {
			continue
		}
		for _, m := range v.Gossip {
			sameNode := foldName(m.Name) == foldName(s.Name) || m.RPC.String() == s.Address
			if m.Server && m.Liveness == state.Alive && m.ID != "" && m.ID != s.ID && sameNode && v.safeWithout(s) {
				return &change{changeRemove, s, fmt.Sprintf("%s is back with an empty disk, as %s", m.Name, m.ID)}
			}
		}
	}
	return nil
}

// removeLeft takes out a server that said goodbye.
func removeLeft(v view) *change {
	for _, s := range v.Servers {
		m, ok := v.gossip(s.ID)
		if ok && m.Liveness == state.Left && s.ID != v.Self && v.safeWithout(s) {
			return &change{changeRemove, s, "it left the cluster"}
		}
	}
	return nil
}

// moveMoved follows a server to its new address: it is taken out and will be
// taken in again there. Changing the address in place makes hashicorp/raft
// (1.8.0) write it under the hands of those who replicate to the server. Until
// it is safe to do so nothing is lost: the gossip knows where the server is.
func moveMoved(v view) *change {
	for _, s := range v.Servers {
		m, ok := v.gossip(s.ID)
		if !ok || m.Liveness != state.Alive || !m.RPC.IsValid() || m.RPC.String() == s.Address {
			continue
		}
		if slices.ContainsFunc(v.Servers, func(o member) bool { return o.Address == m.RPC.String() }) {
			continue // taken: the one who has it must go first
		}
		if s.ID != v.Self && v.safeWithout(s) {
			return &change{changeRemove, s, "it has another address, " + m.RPC.String()}
		}
		if s.ID == v.Self { // nobody replicates to the leader
			s.Address = m.RPC.String()
			return &change{changeMove, s, "it has another address"}
		}
	}
	return nil
}

// addNew takes in a server that the gossip shows and the cluster file lists.
func addNew(v view) (next *change, problems []string) {
	for _, m := range v.Gossip {
		if !m.Server || m.Liveness != state.Alive || m.ID == "" || !m.RPC.IsValid() || v.has(m.ID) {
			continue
		}
		if why := v.refuses(m); why != "" {
			problems = append(problems, fmt.Sprintf("%s (%s) is not taken in: %s", m.Name, m.RPC, why))
			continue
		}
		if next == nil {
			next = &change{changeAdd, member{ID: m.ID, Name: m.Name, Address: m.RPC.String()}, "it is up and not in the store"}
		}
	}
	return next, problems
}

func (v view) refuses(m state.Member) string {
	if v.rank(m.Name) == len(v.Order) {
		return "the cluster file does not list it as a server"
	}
	if m.ClusterID != "" && m.ClusterID != v.Store {
		return fmt.Sprintf("it has another store, %s; wipe its data directory", m.ClusterID)
	}
	if reads := max(state.BaseLevel, m.Feature); reads < v.Level {
		return fmt.Sprintf("its program reads feature level %d and the store is at %d: install the version that the others run", reads, v.Level)
	}
	for _, s := range v.Servers {
		if s.Address == m.RPC.String() || foldName(s.Name) == foldName(m.Name) {
			return fmt.Sprintf("server %s, which it seems to replace, cannot be removed without losing the majority", s.ID)
		}
	}
	return ""
}

// balance brings the number of voters to what it should be.
func balance(v view) *change {
	voters := v.voters()
	if len(voters) < v.Voters {
		return promote(v)
	}
	if len(voters) > v.Voters {
		return demote(v, voters)
	}
	return nil
}

// promote gives a vote to the first in order of those who are ready for it.
func promote(v view) *change {
	ready := v.ready()
	if len(ready) == 0 {
		return nil
	}
	first := v.first(ready)
	after := v.voters()
	first.Voter = true
	if !v.quorum(append(after, first)) {
		return nil
	}
	return &change{changePromote, first, fmt.Sprintf("%d of %d voters are there, and it has caught up", len(after), v.Voters)}
}

// ready are the servers that could have a vote at once.
func (v view) ready() (list []member) {
	for _, s := range v.Servers {
		m, ok := v.gossip(s.ID)
		fit := ok && m.Liveness == state.Alive && v.CaughtUp[s.ID] && !v.Unstable[s.ID] && !v.Demoted[s.ID] && v.Disks[s.ID] == diskFit
		if !s.Voter && fit && v.rank(s.Name) < len(v.Order) {
			list = append(list, s)
		}
	}
	return list
}

// first is the first of some servers in the order of the cluster file.
func (v view) first(list []member) member {
	return slices.MinFunc(list, func(a, b member) int { return cmp.Compare(v.rank(a.Name), v.rank(b.Name)) })
}

// demote takes a vote that is one too many: of one who is down or no longer
// listed if there is such, else of the last in order, of the leader never.
func demote(v view, voters []member) *change {
	worst := func(s member) int {
		m, ok := v.gossip(s.ID)
		switch {
		case s.ID == v.Self:
			return -1
		case !ok || m.Liveness != state.Alive || !v.Reachable[s.ID]:
			return len(v.Order) + 1
		}
		return v.rank(s.Name)
	}
	last := slices.MaxFunc(voters, func(a, b member) int { return cmp.Compare(worst(a), worst(b)) })
	if last.ID == v.Self || !v.safeWithout(last) {
		return nil
	}
	return &change{changeDemote, last, fmt.Sprintf("%d voters are one too many", len(voters))}
}

// successor is the voter that can best take the leadership over: one that
// answers, with everything that is committed if there is such, the first in
// order. Raft itself would also choose one that is down, and wait for it.
func (v view) successor() (member, bool) {
	var best []member
	for _, s := range v.voters() {
		if s.ID != v.Self && v.Reachable[s.ID] && v.Disks[s.ID] != diskSick {
			best = append(best, s)
		}
	}
	if len(best) == 0 {
		return member{}, false
	}
	late := func(s member) int {
		if v.CaughtUp[s.ID] {
			return v.rank(s.Name)
		}
		return len(v.Order) + 1
	}
	return slices.MinFunc(best, func(a, b member) int { return cmp.Compare(late(a), late(b)) }), true
}

// safeWithout tells whether the voters that are up remain a majority when s
// is no voter any more.
func (v view) safeWithout(s member) bool {
	rest := slices.DeleteFunc(v.voters(), func(o member) bool { return o.ID == s.ID })
	return v.quorum(rest)
}

// quorum tells whether a majority of these voters is up.
func (v view) quorum(voters []member) bool {
	up := 0
	for _, s := range voters {
		if s.ID == v.Self || v.Reachable[s.ID] {
			up++
		}
	}
	return len(voters) > 0 && 2*up > len(voters)
}

func (v view) voters() []member {
	return slices.DeleteFunc(slices.Clone(v.Servers), func(s member) bool { return !s.Voter })
}

func (v view) has(id string) bool {
	return slices.ContainsFunc(v.Servers, func(s member) bool { return s.ID == id })
}

func (v view) gossip(id string) (state.Member, bool) {
	i := slices.IndexFunc(v.Gossip, func(m state.Member) bool { return m.ID == id })
	if i < 0 {
		return state.Member{}, false
	}
	return v.Gossip[i], true
}

// rank is a server's place in the cluster file; the file's length when it is
// not there.
func (v view) rank(name string) int {
	i := slices.IndexFunc(v.Order, func(o string) bool { return foldName(o) == foldName(name) })
	if i < 0 {
		return len(v.Order)
	}
	return i
}

func (m member) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s at %s", m.Name, m.ID, m.Address))
}
