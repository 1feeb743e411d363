package discovery

import (
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/state"
	"holdfast/lab/stall"
)

func TestMembersKnowWhatTheOthersSayOfThemselves(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	hosts := b.servers(3)
	hosts[2].SetClusterID("0b5cf6c0-1111-4222-8333-444444444444")
	hosts[2].SetConfigSum("feedface")
	want := state.Member{
		Name: "fbservice3", ID: hosts[2].config.NodeID, Address: b.address(3), Liveness: state.Alive,
		Server: true, RPC: netip.AddrPortFrom(b.address(3), 8300), ClusterID: "0b5cf6c0-1111-4222-8333-444444444444",
		Version: "1.2.3", Feature: 1, ConfigSum: "feedface",
	}
	var diff string
	t.Cleanup(func() {
		if diff != "" {
			t.Logf("member (-want +got):\n%s", diff)
		}
	})
	eventually(t, "the member as it says it is", func() bool {
		got, _ := hosts[0].store.Snapshot().Member("fbservice3")
		diff = cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.IgnoreFields(state.Member{}, "Tags"))
		return diff == ""
	})
	hosts[2].awaitMember("fbservice3", state.Alive)               // a node sees itself
	eventually(t, "the metric has 3 alive members", func() bool { // it is set after the state
		return testutil.ToFloat64(hosts[0].metrics.members.WithLabelValues("alive")) == 3
	})
}

func TestAFailureIsSeenByAllWithinTwoSeconds(t *testing.T) {
	b := newBed(t)
	hosts := b.servers(3)
	hosts[0].awaitCheck("fbservice3", state.SerfHealth, state.Passing)
	machine := stall.Test(t, "")
	died := time.Now()
	hosts[2].stop()
	for _, h := range hosts[:2] {
		h.awaitMember("fbservice3", state.Failed)
		saw := time.Now()
		t.Logf("%s saw it after %s", h.config.Node, saw.Sub(died))
		if !raceEnabled {
			machine.Judge(t, h.config.Node+" saw the failure", 2*time.Second, died, saw)
		}
	}
	hosts[1].awaitCheck("fbservice3", state.SerfHealth, state.Critical)
	t.Logf("in the store after %s", time.Since(died))
}

func TestTheLastOneAliveSeesTheOthersFail(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	hosts := b.servers(3)
	died := time.Now()
	hosts[1].stop()
	hosts[2].stop()
	hosts[0].awaitMember("fbservice2", state.Failed)
	hosts[0].awaitMember("fbservice3", state.Failed)
	t.Logf("took %s", time.Since(died))
	hosts[0].awaitCheck("fbservice2", state.SerfHealth, state.Critical)
	hosts[0].awaitCheck("fbservice3", state.SerfHealth, state.Critical)
}

func TestLeaveTakesANodeOutOfTheCatalog(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.lead("fbservice1")
	hosts := []*host{b.start(b.config(1)), b.start(withServices(b.config(2), tcpService("apt", "127.0.0.1:1")))}
	hosts[0].awaitCheck("fbservice2", "service:apt", state.Critical)
	hosts[0].awaitCheck("fbservice2", state.SerfHealth, state.Passing)
	hosts[1].awaitMember("fbservice1", state.Alive)
	if err := hosts[1].Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	hosts[0].awaitMember("fbservice2", state.Left)
	eventually(t, "the node is out of the catalog", func() bool {
		n, _ := hosts[0].store.Snapshot().Node(nil, "fbservice2")
		return n == nil
	})
	hosts[1].stop()
	hosts[0].awaitMember("fbservice2", state.Left)

	// And it may come back.
	hosts[1] = b.start(hosts[1].config)
	hosts[0].awaitMember("fbservice2", state.Alive)
	hosts[0].awaitCheck("fbservice2", state.SerfHealth, state.Passing)
	hosts[0].awaitCheck("fbservice2", "service:apt", state.Critical)
}

func TestAWipedNodeComesBackUnderItsName(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.lead("fbservice1")
	first := b.start(b.config(1))
	other := b.start(b.config(3))
	old := b.start(withServices(b.config(2), tcpService("old", "127.0.0.1:1")))
	first.awaitCheck("fbservice2", "service:old", state.Critical)
	for _, h := range []*host{first, other} {
		h.awaitMember("fbservice2", state.Alive)
		h.awaitMember("fbservice3", state.Alive)
	}
	old.stop()
	first.awaitMember("fbservice2", state.Failed)
	other.awaitMember("fbservice2", state.Failed)

	wiped := b.start(withServices(b.config(2), tcpService("new", "127.0.0.1:1"))) // new directory, new ID
	if wiped.config.NodeID == old.config.NodeID {
		t.Fatal("the wiped node has its old ID")
	}
	for _, h := range []*host{first, other} {
		eventually(t, "the member has the new ID", func() bool {
			m, _ := h.store.Snapshot().Member("fbservice2")
			return m.Liveness == state.Alive && m.ID == wiped.config.NodeID
		})
	}
	first.awaitCheck("fbservice2", "service:new", state.Critical)
	first.awaitCheck("fbservice2", state.SerfHealth, state.Passing)
	eventually(t, "the catalog has the new node only", func() bool {
		n, _ := first.store.Snapshot().Node(nil, "fbservice2")
		return n != nil && n.ID == wiped.config.NodeID && cmp.Equal(first.serviceIDs("fbservice2"), []string{"new"})
	})
}

func TestAWipedNodeMayComeBackBeforeItsFailureIsSeen(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	hosts := b.servers(3)
	hosts[2].stop()
	wiped := b.start(b.config(3))
	eventually(t, "the member has the new ID", func() bool {
		m, _ := hosts[0].store.Snapshot().Member("fbservice3")
		return m.Liveness == state.Alive && m.ID == wiped.config.NodeID
	})
	eventually(t, "the catalog has the new ID", func() bool {
		n, _ := hosts[0].store.Snapshot().Node(nil, "fbservice3")
		return n != nil && n.ID == wiped.config.NodeID
	})
}

func TestMembersOfAnotherClusterAreRefused(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ours := b.servers(2)
	config := b.config(4)
	config.Cluster = "elsewhere"
	stranger := b.start(config) // it knows the key, and looks for our nodes
	eventually(t, "refusals on both sides", func() bool {
		ourCount := testutil.ToFloat64(ours[0].metrics.refused.WithLabelValues("cluster"))
		theirCount := testutil.ToFloat64(stranger.metrics.refused.WithLabelValues("cluster"))
		return ourCount > 0 && theirCount > 0
	})
	if _, err := stranger.Join(t.Context(), []string{b.address(1).String()}); err == nil {
		t.Error("an explicit join was not refused")
	}
	if m := stranger.store.Snapshot().Members(); len(m) != 1 {
		t.Errorf("the stranger sees %d members", len(m))
	}
	for _, h := range ours {
		if _, ok := h.store.Snapshot().Member("fbservice4"); ok {
			t.Errorf("%s has taken in the stranger", h.config.Node)
		}
	}
}

func TestAWrongGossipKeyIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"another key": func(c *Config) { c.Key = []byte("another key another key another!") },
		"no key":      func(c *Config) { c.Key, c.Insecure = nil, true },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			ours := b.servers(1)
			config := b.config(4)
			change(&config)
			stranger := b.start(config)
			eventually(t, "a refusal", func() bool {
				return testutil.ToFloat64(ours[0].metrics.refused.WithLabelValues("key")) > 0
			})
			for _, h := range []*host{ours[0], stranger} {
				if m := h.store.Snapshot().Members(); len(m) != 1 {
					t.Errorf("%s sees %d members", h.config.Node, len(m))
				}
			}
		})
	}
}

func TestTwoNodesWithOneNameAreACondition(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	var hosts []*host
	for n := 1; n <= 3; n++ {
		config := b.config(n)
		config.Timing = 0.5 // the name is free 2.5 s after its node is taken for dead, as a machine that stands still may make it
		if n == 3 {
			config.Node = "fbservice2"
			hosts[0].awaitMember("fbservice2", state.Alive)
		}
		hosts = append(hosts, b.start(config))
	}
	for _, h := range hosts[1:] {
		eventually(t, "a condition on both", func() bool { return h.hasCondition(conditionConflict) })
	}
	if m, _ := hosts[0].store.Snapshot().Member("fbservice2"); m.Address != b.address(2) {
		t.Errorf("the name went to %s", m.Address)
	}
	if hosts[0].hasCondition(conditionConflict) {
		t.Error("a third node has the condition")
	}
}

func TestANodeMayComeBackWithAnotherAddress(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	var hosts []*host
	for n := 1; n <= 2; n++ { // the name is free after 5 s, and another's node's after 10
		hosts = append(hosts, b.start(b.config(n)))
	}
	b.lead("fbservice1")
	hosts[0].awaitMember("fbservice2", state.Alive)
	hosts[1].stop()
	hosts[0].awaitMember("fbservice2", state.Failed)
	config := hosts[1].config
	config.Address = b.address(7)
	moved := b.start(config)
	eventually(t, "the new address", func() bool {
		m, _ := hosts[0].store.Snapshot().Member("fbservice2")
		n, _ := hosts[0].store.Snapshot().Node(nil, "fbservice2")
		return m.Liveness == state.Alive && m.Address == b.address(7) && n != nil && n.Address == b.address(7)
	})
	if moved.hasCondition(conditionConflict) {
		t.Error("the old address counts as another node")
	}
}

func TestDifferentClusterFilesAreACondition(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	hosts := b.servers(2)
	hosts[0].SetConfigSum("aaaaaaaaaaaaaaaa")
	hosts[1].SetConfigSum("bbbbbbbbbbbbbbbb")
	eventually(t, "the condition", func() bool { return hosts[0].hasCondition(conditionSkew) })
	for _, c := range hosts[0].board.Conditions() {
		if c.Name == conditionSkew && !strings.Contains(c.Message, "fbservice1: aaaaaaaaaaaa; fbservice2: bbbbbbbbbbbb") {
			t.Errorf("message: %s", c.Message)
		}
	}
	hosts[1].SetConfigSum("aaaaaaaaaaaaaaaa")
	eventually(t, "its end", func() bool { return !hosts[0].hasCondition(conditionSkew) })
}

func TestForceLeave(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	hosts := b.servers(3)
	if err := hosts[0].ForceLeave(t.Context(), "fbservice3"); err == nil {
		t.Error("a member that is alive was forced to leave")
	}
	if err := hosts[0].ForceLeave(t.Context(), "nobody"); err == nil {
		t.Error("an unknown member was forced to leave")
	}
	hosts[0].awaitCheck("fbservice3", state.SerfHealth, state.Passing)
	hosts[2].stop()
	hosts[1].awaitMember("fbservice3", state.Failed)
	err := hosts[1].ForceLeave(t.Context(), "fbservice3")
	if err != nil && !strings.Contains(err.Error(), "timed out broadcasting") { // on a machine that stood still it goes out later
		t.Fatal(err)
	}
	hosts[0].awaitMember("fbservice3", state.Left)
	eventually(t, "the node is out of the catalog", func() bool {
		n, _ := hosts[0].store.Snapshot().Node(nil, "fbservice3")
		return n == nil
	})
}

func TestARestartIsNoFailureAndWithdrawsNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	service := startTCP(t)
	hosts := []*host{b.start(b.config(1)), b.start(withServices(b.config(2), tcpService("apt", service)))}
	b.lead("fbservice1")
	hosts[0].awaitCheck("fbservice2", "service:apt", state.Passing)
	before := hosts[0].check("fbservice2", "service:apt").ModifyIndex
	hosts[1].stop()
	hosts[1] = b.start(hosts[1].config)
	hosts[0].awaitMember("fbservice2", state.Alive)
	eventually(t, "the check is known again", func() bool {
		return hosts[1].LocalChecks()[0].Status == state.Passing
	})
	if after := hosts[0].check("fbservice2", "service:apt"); after.Status != state.Passing || after.ModifyIndex != before {
		t.Errorf("the check was written again: %+v", after)
	}
}

// Right after a start the replica lacks what the node wrote before. That must
// not be taken for the catalog: all services of the node would be written anew,
// as critical, though they never stopped.
func TestAReplicaThatIsBehindIsNotTheCatalog(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	service := startTCP(t)
	config := withServices(b.config(2), tcpService("apt", service))
	first, restarted := b.start(b.config(1)), b.start(config)
	b.lead("fbservice1")
	first.awaitCheck("fbservice2", "service:apt", state.Passing)
	restarted.stop()

	byItself := func(c state.Command) bool {
		r, ok := c.(state.Register)
		return ok && r.Node.Name == "fbservice2" && len(r.Services) > 0
	}
	before := b.proposed(byItself)
	restarted, catchUp := b.startBehind(config)
	eventually(t, "the check is known again", func() bool {
		return restarted.LocalChecks()[0].Status == state.Passing
	})
	if n := b.proposed(byItself); n != before {
		t.Errorf("the node was registered %d times from an empty replica", n-before)
	}
	catchUp()
	if err := restarted.RegisterService(state.Service{Name: "new"}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what is new is written", func() bool { return len(first.serviceIDs("fbservice2")) == 2 })
	if got := first.status("fbservice2", "service:apt"); got != state.Passing {
		t.Errorf("the restart made the service %s", got)
	}
	if n := b.proposed(func(c state.Command) bool {
		r, ok := c.(state.Register)
		return ok && len(r.Checks) > 0 && r.Checks[0].ID == "service:apt" && r.Checks[0].Status == state.Critical
	}); n > 1 {
		t.Errorf("the check was registered as critical %d times", n)
	}
}

func TestRunLeavesNothingBehind(t *testing.T) {
	b, machine := newBed(t), stall.Test(t, "")
	before := runtime.NumGoroutine() // with those of the watch, which lasts
	hosts := b.servers(2)
	for _, h := range hosts {
		h.stop()
	}
	stopped := time.Now()
	eventually(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	machine.Judge(t, "the end of the goroutines", 20*time.Second, stopped, time.Now())
	// Run may be called again: the port is free.
	again := b.start(hosts[0].config)
	again.stop()
	if err := again.ForceLeave(t.Context(), "fbservice2"); err == nil {
		t.Error("ForceLeave worked without a gossip")
	}
}

// TestAQuestionThatNobodyAnswersDoesNotHoldTheEnd: Serf goes on asking for seconds
// after its end, longer than a stop may take. It fails if who asked is not told at
// the end, and if the end waits for the question.
func TestAQuestionThatNobodyAnswersDoesNotHoldTheEnd(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h := b.start(b.config(1))
	within := time.After(time.Minute)
	asking, answer, told := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	defer close(answer)
	go func() {
		n, err := withGossip(t.Context(), h.Agent, func(*gossip) (int, error) {
			close(asking)
			<-answer
			return 1, nil
		})
		if n != 0 {
			t.Errorf("it made up the answer %d", n)
		}
		told <- err
	}()
	<-asking
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		h.stop()
	}()
	select {
	case err := <-told:
		if err == nil || !strings.Contains(err.Error(), "the gossip ended") {
			t.Errorf("who asked is told %v", err)
		}
	case <-within:
		t.Fatal("who asked is not told that the gossip ended")
	}
	select {
	case <-stopped:
	case <-within:
		t.Fatal("the end waits for an answer")
	}
}

func TestNobodyElseIsACondition(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	config := b.config(1)
	config.Timing = 0.1
	h := b.start(config)
	eventually(t, "the condition", func() bool { return h.hasCondition(conditionAlone) })
	other := b.config(2)
	other.Timing = 0.1
	b.start(other)
	eventually(t, "its end", func() bool { return !h.hasCondition(conditionAlone) })
}

func TestPortInUseIsSaid(t *testing.T) {
	b := newBed(t)
	h := b.start(b.config(1))
	agent, err := New(b.config(1), Deps{State: state.New(), Proposer: b, Leadership: h})
	if err != nil {
		t.Fatal(err)
	}
	err = agent.Run(t.Context(), func() {})
	if err == nil || !strings.Contains(err.Error(), "listen for gossip on "+b.address(1).String()+":8301") {
		t.Errorf("error: %v", err)
	}
}

func TestConditionsNameWhoIsDifferent(t *testing.T) {
	members := []state.Member{
		{Name: "c", Liveness: state.Alive, ConfigSum: "0123456789abcdef"},
		{Name: "a", Liveness: state.Alive, ConfigSum: "0123456789abcdef"},
		{Name: "dead", Liveness: state.Failed, ConfigSum: "ffff"},
		{Name: "agent", Liveness: state.Alive},
	}
	if got := skew(members); got != "" {
		t.Errorf("skew without a difference: %q", got)
	}
	members = append(members, state.Member{Name: "b", Liveness: state.Alive, ConfigSum: "ffff"})
	if got, want := skew(members), "a, c: 0123456789ab; b: ffff"; got != want {
		t.Errorf("skew %q, want %q", got, want)
	}
	slices.Reverse(members)
	if got := skew(members); !strings.HasPrefix(got, "a, c:") {
		t.Errorf("skew depends on the order: %q", got)
	}
}
