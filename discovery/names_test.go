package discovery

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/check"
	"holdfast/internal/state"
)

func TestFormerNamesOfANodeAreNoMembers(t *testing.T) {
	member := func(name, id string, l state.Liveness) state.Member {
		return state.Member{Name: name, ID: id, Liveness: l}
	}
	got := []string{}
	for _, m := range withoutFormerNames([]state.Member{
		member("alive", "1", state.Alive),
		member("failed", "2", state.Failed),
		member("new-name", "3", state.Alive),
		member("old-name", "3", state.Failed),
		member("older-name", "3", state.Left),
		member("copy", "1", state.Alive), // a condition, and not for us to decide
		member("nothing-said", "", state.Alive),
		member("nothing-said-either", "", state.Failed),
	}) {
		got = append(got, m.Name)
	}
	want := []string{"alive", "failed", "new-name", "copy", "nothing-said", "nothing-said-either"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

func TestARenamedNodeIsKnownByItsNewNameOnly(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	hosts := b.servers(3)
	hosts[0].awaitCheck("fbservice3", state.SerfHealth, state.Passing)
	hosts[2].stop()
	config := hosts[2].config
	config.Node = "fbservice9"
	b.start(config)
	for _, h := range hosts[:2] {
		eventually(t, "the old name is gone", func() bool {
			_, old := h.store.Snapshot().Member("fbservice3")
			m, _ := h.store.Snapshot().Member("fbservice9")
			return !old && m.Liveness == state.Alive
		})
	}
	hosts[1].awaitCheck("fbservice9", state.SerfHealth, state.Passing)
	eventually(t, "the catalog forgets the old name", func() bool {
		n, _ := hosts[1].store.Snapshot().Node(nil, "fbservice3")
		return n == nil
	})
}

func TestACopiedDataDirectoryIsACondition(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	first := b.start(b.config(1))
	config := b.config(2)
	config.NodeID = first.config.NodeID
	second := b.start(config)
	for _, h := range []*host{first, second} {
		eventually(t, "the condition", func() bool { return h.hasCondition(conditionTwins) })
	}
	for _, c := range first.board.Conditions() {
		if c.Name == conditionTwins && !strings.Contains(c.Message, "fbservice1, fbservice2: "+config.NodeID) {
			t.Errorf("message: %s", c.Message)
		}
	}
	second.stop()
	eventually(t, "its end", func() bool { return !first.hasCondition(conditionTwins) })
}

// Of two nodes with one name, the one that the gossip does not have must not
// write over the other, which would write over it in turn.
func TestTheOtherNodeUnderOurNameKeepsTheCatalog(t *testing.T) {
	b := newBed(t)
	b.lead("fbservice1")
	store := b.replica("fbservice1")
	agent, err := New(b.config(1), Deps{State: store, Proposer: b, Leadership: &host{bed: b}})
	if err != nil {
		t.Fatal(err)
	}
	theirs := state.Node{ID: "0b5cf6c0-1111-4222-8333-444444444444", Name: "fbservice1", Address: b.address(9)}
	if _, err := b.Propose(t.Context(), state.Register{Node: theirs}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	agent.doorman.conflict = conflict{address: netip.AddrPortFrom(b.address(9), DefaultPort), first: now.Add(-conflictSpan), last: now}
	if _, err := agent.syncOnce(t.Context()); !errors.Is(err, errNameTaken) {
		t.Errorf("error %v, want errNameTaken", err)
	}
	if n, _ := store.Snapshot().Node(nil, "fbservice1"); n.ID != theirs.ID {
		t.Error("the node wrote over the other")
	}
	agent.doorman.conflict.last = now.Add(-conflictMemory)
	if _, err := agent.syncOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, _ := store.Snapshot().Node(nil, "fbservice1"); n.ID != agent.config.NodeID {
		t.Error("the name was not taken back after the conflict")
	}
}

func TestLeaveGoesOnThoughNothingCanBeWrittenAndNobodyWaits(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.lead("fbservice1")
	first := b.start(b.config(1))
	second := b.start(withServices(b.config(2), tcpService("apt", "127.0.0.1:1")))
	first.awaitCheck("fbservice2", "service:apt", state.Critical)
	first.awaitMember("fbservice2", state.Alive)
	second.awaitMember("fbservice1", state.Alive)
	b.failWith(state.ErrUnknownOutcome)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := second.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	first.awaitMember("fbservice2", state.Left)
	b.failWith(nil)
	eventually(t, "the leader removes the node", func() bool {
		n, _ := first.store.Snapshot().Node(nil, "fbservice2")
		return n == nil
	})
}

func TestRegistrationsThatCouldNotBeReadAgainAreRefused(t *testing.T) {
	b := newBed(t)
	agent, err := New(b.config(1), Deps{State: state.New(), Proposer: b, Leadership: &host{bed: b}})
	if err != nil {
		t.Fatal(err)
	}
	err = agent.change("register", func(r *registrations) error {
		r.checks["big"] = check.Definition{ID: "big", TTL: time.Hour, Notes: strings.Repeat("x", maxRegistrations)}
		return nil
	})
	if !errors.Is(err, state.ErrInvalid) {
		t.Errorf("error %v, want ErrInvalid", err)
	}
	if n := len(agent.LocalChecks()); n != 0 {
		t.Errorf("%d checks were registered all the same", n)
	}
}
