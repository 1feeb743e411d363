package api

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	consul "github.com/hashicorp/consul/api"

	"holdfast/internal/state"
)

func passing(t *testing.T, c *cell, q *consul.QueryOptions) ([]string, uint64) {
	t.Helper()
	entries, meta, err := c.consul().Health().Service("web", "", true, q)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Node.Node)
	}
	return names, meta.LastIndex
}

func TestDeadNodeLeavesTheAnswersWithoutALeader(t *testing.T) {
	c := newCell(t)
	index := c.apply(web("n1", "10.1.0.1", state.Passing), web("n2", "10.1.0.2", state.Passing), web("n3", "10.1.0.3", state.Passing))
	alive := []state.Member{member("n1", "10.1.0.1", state.Alive), member("n2", "10.1.0.2", state.Alive), member("n3", "10.1.0.3", state.Alive)}
	c.store.SetMembers(alive)
	// Before somebody waits: its first sight of them would wake him.
	eventually(t, "the members are seen", func() bool { at, _ := c.server.watch.memberSince("n3"); return !at.IsZero() })
	if names, at := passing(t, c, nil); len(names) != 3 || at != index {
		t.Fatalf("at first: %v at %d", names, at)
	}
	c.raft.set(func(r *fakeRaft) { r.leader = "" })
	stale := &consul.QueryOptions{AllowStale: true}

	// The gossip sees n2 dead: who waits is woken, who asks is told.
	type result struct {
		names []string
		index uint64
	}
	answered := make(chan result, 1)
	go func() {
		names, at := passing(t, c, &consul.QueryOptions{AllowStale: true, WaitIndex: index, WaitTime: time.Minute})
		answered <- result{names, at}
	}()
	c.blocked(1)
	dead := []state.Member{alive[0], member("n2", "10.1.0.2", state.Failed), alive[2]}
	c.store.SetMembers(dead)
	woken := <-answered
	if diff := cmp.Diff([]string{"n1", "n3"}, woken.names); diff != "" || woken.index == index {
		t.Errorf("woken at %d: %s", woken.index, diff)
	}
	if names, at := passing(t, c, stale); len(names) != 2 || at != woken.index {
		t.Errorf("asked: %v at %d, woken at %d", names, at, woken.index)
	}
	checks, _, err := c.consul().Health().Node("n2", stale)
	if err != nil || checks[0].CheckID != "serfHealth" || checks[0].Status != "critical" || checks[0].Output != "Agent not live or unreachable" {
		t.Errorf("checks of the dead node: %+v, %v", checks, err)
	}
	critical, _, err := c.consul().Health().State("critical", stale)
	if err != nil || len(critical) != 1 || critical[0].Node != "n2" {
		t.Errorf("critical checks: %+v, %v", critical, err)
	}
	if live, _, err := c.consul().Health().State("passing", stale); err != nil || len(live) != 5 {
		t.Errorf("passing checks: %d, %v", len(live), err)
	}

	// With that index a client waits, though the state's own is smaller, and
	// a change elsewhere does not wake it.
	go func() {
		names, at := passing(t, c, &consul.QueryOptions{AllowStale: true, WaitIndex: woken.index, WaitTime: time.Minute})
		answered <- result{names, at}
	}()
	c.blocked(1)
	c.apply(state.KV{Verb: state.Set, Entry: state.Entry{Key: "other"}})
	if got := c.counted(c.server.metrics.blocked, "changed"); got != 1 {
		t.Errorf("woke for another's change")
	}
	// The leader is back and writes down what the gossip knew.
	down := c.apply(state.UpdateCheck{Node: "n2", Updates: []state.CheckState{{ID: state.SerfHealth, Status: state.Critical}}})
	if got := <-answered; len(got.names) != 2 || got.index != down {
		t.Errorf("after the leader's word: %v at %d, want index %d", got.names, got.index, down)
	}
	if got := c.wakes("unchanged"); got > 0 {
		t.Errorf("%d wakes for nothing", got)
	}
}

func TestGossipNeverTakesTheLastInstance(t *testing.T) {
	c := newCell(t)
	index := c.apply(web("n1", "10.1.0.1", state.Passing), web("n2", "10.1.0.2", state.Passing), web("n3", "10.1.0.3", state.Critical))
	c.store.SetMembers([]state.Member{
		member("n1", "10.1.0.1", state.Failed), member("n2", "10.1.0.2", state.Left), member("n3", "10.1.0.3", state.Alive),
	})
	names, at := passing(t, c, nil)
	if diff := cmp.Diff([]string{"n1", "n2"}, names); diff != "" || at != index {
		t.Errorf("at %d: %s", at, diff)
	}
	entries, _, err := c.consul().Health().Service("web", "", false, nil)
	if err != nil || entries[0].Checks.AggregatedStatus() != "passing" {
		t.Errorf("a client that filters itself is left with nothing: %+v, %v", entries[0].Checks, err)
	}
}

func TestNodeThatTheGossipDoesNotKnowLives(t *testing.T) {
	c := newCell(t)
	c.apply(web("outside", "10.1.0.200", state.Passing), web("n1", "10.1.0.1", state.Passing))
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Failed)})
	if names, _ := passing(t, c, nil); len(names) != 1 || names[0] != "outside" {
		t.Errorf("passing: %v", names)
	}
}

// The API and the DNS must agree on who answers: the rule is state's.
func TestPassingIsWhatHealthySays(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	statuses := []state.Status{state.Passing, state.Passing, state.Warning, state.Critical}
	lives := []state.Liveness{state.Alive, state.Failed, state.Left, state.Leaving, ""}
	for round := range 100 {
		store := state.New()
		members := []state.Member{}
		for n := range 1 + random.IntN(5) {
			name, address := "n"+strconv.Itoa(n), "10.1.0."+strconv.Itoa(n+1)
			reg := web(name, address, statuses[random.IntN(len(statuses))])
			reg.Checks[0].Status = statuses[random.IntN(len(statuses))]
			if err := store.Apply(uint64(n+1), reg); err != nil {
				t.Fatal(err)
			}
			if life := lives[random.IntN(len(lives))]; life != "" {
				members = append(members, member(name, address, life))
			}
		}
		store.SetMembers(members)
		snap := store.Snapshot()
		all, _ := snap.Instances(nil, "web")
		var got, want []string
		for _, i := range newOverlay(snap).instances(all) {
			if i.Status() == state.Passing {
				got = append(got, i.Node.Name)
			}
		}
		for _, i := range snap.Healthy(all, true) {
			want = append(want, i.Node.Name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("round %d: %s", round, diff)
		}
	}
}

func TestReportedIndexMovesExactlyWhenTheAnswerDoes(t *testing.T) {
	plain := func(index uint64) answer { return answer{index: index} }
	laid := func(index uint64, nodes ...string) answer {
		a := answer{index: index, laid: effect{}}
		for _, n := range nodes {
			a.laid[n] = state.Failed
		}
		return a
	}
	answers := []answer{plain(1), plain(2), laid(1, "a"), laid(2, "a"), laid(2, "b"), laid(2, "a", "b"), laid(2, "ab")}
	seen := map[uint64]string{}
	for _, a := range answers {
		index := a.reported()
		if other, twice := seen[index]; twice {
			t.Errorf("%+v and %s have the index %d in common", a, other, index)
		}
		seen[index] = fmt.Sprint(a)
		if index >= 1<<53 {
			t.Errorf("%+v: a double does not hold %d", a, index)
		}
		if a.moved(index) {
			t.Errorf("%+v moves from itself", a)
		}
		if index != a.reported() {
			t.Errorf("%+v: two indexes for one answer", a)
		}
	}
	for _, step := range []struct{ had, now answer }{
		{plain(1), plain(2)}, {plain(2), laid(2, "a")}, {laid(2, "a"), plain(2)}, {laid(2, "a"), laid(2, "b")}, {laid(2, "a"), laid(3, "a")}, {laid(2, "a"), plain(3)},
	} {
		if !step.now.moved(step.had.reported()) {
			t.Errorf("from %+v to %+v: not seen", step.had, step.now)
		}
	}
	if plain(1).moved(plain(2).reported()) || !plain(1).ahead(plain(2).reported()) {
		t.Error("a replica that lags answers at once")
	}
}
