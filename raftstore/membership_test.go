package raftstore

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/state"
)

const ourStore = "11111111-1111-4111-8111-111111111111"

// parseView reads a situation, one server a word.
//
//	raft:   NAME/ID, then ! for the leader, + for a vote, ~ when it does not
//	        answer, < when it has not caught up
//	gossip: NAME/ID, then = and the liveness unless alive, @ and a port unless
//	        the one of its name, # and a store unless ours
func parseView(t *testing.T, voters int, raft, gossip string) view {
	t.Helper()
	v := view{Store: ourStore, Order: []string{"fb1", "fb2", "fb3", "fb4"}, Voters: voters, Reachable: map[string]bool{}, CaughtUp: map[string]bool{}}
	for _, word := range strings.Fields(raft) {
		id := strings.TrimRight(word[strings.Index(word, "/")+1:], "!+~<")
		name, _, _ := strings.Cut(word, "/")
		v.Servers = append(v.Servers, member{ID: id, Name: name, Address: addressAt(t, name, "").String(), Voter: strings.Contains(word, "+")})
		if strings.Contains(word, "!") {
			v.Self = id
		}
		v.Reachable[id] = !strings.Contains(word, "~")
		v.CaughtUp[id] = v.Reachable[id] && !strings.Contains(word, "<")
	}
	for _, word := range strings.Fields(gossip) {
		rest, store, _ := strings.Cut(word, "#")
		rest, port, _ := strings.Cut(rest, "@")
		rest, alive, _ := strings.Cut(rest, "=")
		name, id, _ := strings.Cut(rest, "/")
		m := state.Member{Name: name, ID: id, Server: true, Liveness: state.Alive, ClusterID: ourStore, RPC: addressAt(t, name, port)}
		if alive != "" {
			m.Liveness = state.Liveness(alive)
		}
		if store != "" {
			m.ClusterID = strings.TrimPrefix(store, "none")
		}
		v.Gossip = append(v.Gossip, m)
	}
	return v
}

func addressAt(t *testing.T, name, port string) netip.AddrPort {
	t.Helper()
	if port == "" {
		port = "830" + strings.TrimPrefix(name, "fb")
	}
	a, err := netip.ParseAddrPort("10.1.0.1:" + port)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestPlan(t *testing.T) {
	for name, c := range map[string]struct {
		voters       int
		raft, gossip string
		want         string // "" nothing
		problem      string
	}{
		"all as it should be": {3,
			"fb1/a!+ fb2/b+ fb3/c+ fb4/d", "fb1/a fb2/b fb3/c fb4/d", "", ""},
		"a new server comes in without a vote": {3,
			"fb1/a!+ fb2/b+ fb3/c+", "fb1/a fb2/b fb3/c fb4/d#none", "add fb4 d", ""},
		"a new server that has lagged so far gets no vote": {3,
			"fb1/a!+ fb2/b+ fb3/c<", "fb1/a fb2/b fb3/c", "", ""},
		"a server that has caught up gets the missing vote": {3,
			"fb1/a!+ fb2/b+ fb3/c", "fb1/a fb2/b fb3/c", "promote fb3 c", ""},
		"the first in the file gets it": {3,
			"fb4/d fb3/c fb1/a!+ fb2/b+", "fb1/a fb2/b fb3/c fb4/d", "promote fb3 c", ""},
		"who has caught up goes before who is first": {3,
			"fb3/c< fb4/d fb1/a!+ fb2/b+", "fb1/a fb2/b fb3/c fb4/d", "promote fb4 d", ""},
		"a failed voter keeps its vote": {3,
			"fb1/a!+ fb2/b+ fb3/c+~ fb4/d", "fb1/a fb2/b fb3/c=failed fb4/d", "", ""},
		"a voter that the gossip lost keeps its vote": {3,
			"fb1/a!+ fb2/b+ fb3/c+ fb4/d", "fb1/a fb2/b fb4/d", "", ""},
		"a voter that left gives its vote back": {3,
			"fb1/a!+ fb2/b+ fb3/c+~ fb4/d", "fb1/a fb2/b fb3/c=left fb4/d", "remove fb3 c", ""},
		"the leader does not remove itself": {3,
			"fb1/a!+ fb2/b+ fb3/c+", "fb1/a=left fb2/b fb3/c", "", ""},
		"a wiped server's old vote goes first": {3,
			"fb1/a!+ fb2/b+ fb3/c+~ fb4/d", "fb1/a fb2/b fb3/x#none fb4/d", "remove fb3 c", ""},
		"then the warm one gets the vote": {3,
			"fb1/a!+ fb2/b+ fb4/d", "fb1/a fb2/b fb3/x#none fb4/d", "add fb3 x", ""},
		"a wiped server that comes back at another address": {3,
			"fb1/a!+ fb2/b+ fb3/c+~", "fb1/a fb2/b fb3/x@9999#none", "remove fb3 c", ""},
		"another node at the address of a dead one": {3,
			"fb1/a!+ fb2/b+ fb3/c+~", "fb1/a fb2/b fb4/x@8303#none", "remove fb3 c", ""},
		"old gossip about a server that answers under its ID": {3,
			"fb1/a!+ fb2/b+ fb3/x+", "fb1/a fb2/b fb3/c", "", "fb3 (10.1.0.1:8303) is not taken in: server x, which it seems to replace"},
		"a wiped server without which the majority is gone": {3,
			"fb1/a!+ fb2/b+~ fb3/c+~", "fb1/a fb2/b=failed fb3/x#none", "", "fb3 (10.1.0.1:8303) is not taken in: server c, which it seems to replace"},
		"a server that left without which the majority is gone": {3,
			"fb1/a!+ fb2/b+~ fb3/c+~", "fb1/a fb2/b=failed fb3/c=left", "", ""},
		"a server that moved": {3,
			"fb1/a!+ fb2/b+ fb3/c+", "fb1/a fb2/b fb3/c@9999", "remove fb3 c", ""},
		"a server that moved and is missing at its old address": {3,
			"fb1/a!+ fb2/b+", "fb1/a fb2/b fb3/c@9999", "add fb3 c", ""},
		"a server that moved and cannot be spared": {3,
			"fb1/a!+ fb2/b+~ fb3/c+", "fb1/a fb2/b=failed fb3/c@9999", "", ""},
		"the leader that moved": {3,
			"fb1/a!+ fb2/b+ fb3/c+", "fb1/a@9999 fb2/b fb3/c", "move fb1 a", ""},
		"a server that moved to where another one is": {3,
			"fb1/a!+ fb2/b+ fb3/c+", "fb1/a fb2/b=failed fb3/c@8302", "", ""},
		"a server of another store": {3,
			"fb1/a!+ fb2/b+", "fb1/a fb2/b fb3/c#22222222-2222-4222-8222-222222222222", "", "fb3 (10.1.0.1:8303) is not taken in: it has another store"},
		"a server that the file does not list": {3,
			"fb1/a!+ fb2/b+", "fb1/a fb2/b fb9/z@8309#none", "", "fb9 (10.1.0.1:8309) is not taken in: the cluster file does not list it"},
		"a problem does not hold up the others": {3,
			"fb1/a!+ fb2/b+", "fb1/a fb2/b fb9/z@8309#none fb3/c#none", "add fb3 c", "fb9"},
		"one server grows to two": {3,
			"fb1/a!+ fb2/b", "fb1/a fb2/b", "promote fb2 b", ""},
		"a failed non-voter is not promoted": {3,
			"fb1/a!+ fb2/b+ fb3/c~", "fb1/a fb2/b fb3/c=failed", "", ""},
		"too many voters: the last in the file": {1,
			"fb1/a!+ fb2/b+ fb3/c+", "fb1/a fb2/b fb3/c", "demote fb3 c", ""},
		"too many voters: the one that is down": {3,
			"fb1/a!+ fb2/b+~ fb3/c+ fb4/d+", "fb1/a fb2/b=failed fb3/c fb4/d", "demote fb2 b", ""},
		"too many voters: never the leader": {1,
			"fb2/b+ fb4/d!+", "fb2/b fb4/d", "demote fb2 b", ""},
		"too many voters, but none can be spared": {2,
			"fb1/a!+ fb2/b+~ fb3/c+~", "fb1/a fb2/b=failed fb3/c=failed", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			next, problems := plan(parseView(t, c.voters, c.raft, c.gossip))
			got := ""
			if next != nil {
				got = fmt.Sprintf("%s %s %s", next.Kind, next.Server.Name, next.Server.ID)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			if c.problem == "" && len(problems) > 0 || c.problem != "" && !strings.Contains(strings.Join(problems, "; "), c.problem) {
				t.Errorf("problems %q, want %q", problems, c.problem)
			}
		})
	}
}

// Whatever the situation, following the plan never leaves a configuration
// whose majority is down where it was up, and comes to an end.
func TestPlanKeepsTheMajorityAndEnds(t *testing.T) {
	changed := 0
	for seed := range uint64(6000) {
		v := randomView(rand.New(rand.NewPCG(seed, 2)))
		for step := 0; ; step++ {
			if step == 20 {
				t.Fatalf("seed %d: no end of changes; now at %+v", seed, v.Servers)
			}
			next, _ := plan(v)
			if next == nil {
				break
			}
			changed++
			had := v.quorum(v.voters())
			v = v.after(*next)
			if had && !v.quorum(v.voters()) {
				t.Fatalf("seed %d: %s %v lost the majority: %+v", seed, next.Kind, next.Server, v.Servers)
			}
			if !v.has(v.Self) {
				t.Fatalf("seed %d: the leader removed itself", seed)
			}
		}
		if len(v.voters()) > len(v.Order) {
			t.Fatalf("seed %d: %d voters", seed, len(v.voters()))
		}
	}
	if changed < 3000 {
		t.Fatalf("only %d changes were planned: the test has lost its teeth", changed)
	}
}

func randomView(r *rand.Rand) view {
	v := view{Self: "id1", Store: ourStore, Order: []string{"fb1", "fb2", "fb3", "fb4"}, Voters: 1 + 2*r.IntN(2), Reachable: map[string]bool{}, CaughtUp: map[string]bool{}}
	address := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), 8300)
	}
	for i := 1; i <= 4; i++ {
		name, id := fmt.Sprint("fb", i), fmt.Sprint("id", i)
		up := i == 1 || r.IntN(4) > 0
		if i == 1 || r.IntN(4) > 0 {
			v.Servers = append(v.Servers, member{ID: id, Name: name, Address: address(i).String(), Voter: i == 1 || r.IntN(3) > 0})
			v.Reachable[id] = up
			v.CaughtUp[id] = up && r.IntN(3) > 0
		}
		m := state.Member{Name: name, ID: id, Server: true, Liveness: state.Alive, RPC: address(i), ClusterID: ourStore}
		switch n := r.IntN(10); {
		case i == 1:
		case n == 0:
			m.ID, m.ClusterID = id+"-wiped", ""
			v.Reachable[id], v.CaughtUp[id] = false, false
		case n == 1:
			m.Liveness = state.Left
		case n == 2:
			m.RPC = address(i + 10)
		case n == 3:
			continue
		case !up:
			m.Liveness = state.Failed
		}
		v.Gossip = append(v.Gossip, m)
	}
	return v
}

// after is the view once a change is made; who is added has caught up.
func (v view) after(c change) view {
	var list []member
	for _, s := range v.Servers {
		if s.ID != c.Server.ID {
			list = append(list, s)
		}
	}
	switch c.Kind {
	case changeAdd:
		v.Reachable[c.Server.ID], v.CaughtUp[c.Server.ID] = true, true
		list = append(list, c.Server)
	case changePromote, changeMove:
		list = append(list, c.Server)
	case changeDemote:
		c.Server.Voter = false
		list = append(list, c.Server)
	}
	v.Servers = list
	return v
}
