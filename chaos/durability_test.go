package chaos_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/lab/site"
)

func TestFiftyKillsLoseNoAcknowledgedWrite(t *testing.T) {
	t.Parallel()
	s := startedSite(t)
	random := chaos.Seeded(t)
	writes := &chaos.Writes{
		Store:  anyNode{s.Nodes, func(n int) int { return int(time.Now().UnixNano()/1e6) % n }},
		Prefix: "kills/", Writers: 4, Timeout: 5 * time.Second,
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); writes.Run(ctx) }()

	// Where a machine is slow, fewer writes are acknowledged between two kills: it
	// takes more of them until the test shows something.
	leaders, rounds := 0, 0
	for ; rounds < 50 || rounds < 200 && writes.Summary().Acked < 500; rounds++ {
		round := rounds
		victim := s.Nodes[random.IntN(len(s.Nodes))]
		if round%3 == 0 { // every third time the one that hurts most
			victim = waitLeader(t, s.Nodes, "")
			leaders++
		}
		if err := victim.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := victim.StartAgent(); err != nil {
			t.Fatal(err)
		}
		pause(t, time.Duration(random.IntN(800))*time.Millisecond)
		for _, n := range s.Nodes {
			select {
			case <-n.Agent().Done():
				t.Fatalf("round %d: %s ended by itself", round, n.Name())
			default:
			}
		}
	}
	settle(t, s, s.Nodes)
	cancel()
	<-ended
	summary := writes.Summary()
	t.Logf("%d kills, %d of the leader: %d writes acknowledged, %d of unknown outcome, longest pause %v, refusals %v",
		rounds, leaders, summary.Acked, summary.Unknown, summary.LongestGap.Round(time.Millisecond), summary.Failures)
	if summary.Acked < 500 {
		t.Errorf("only %d writes were acknowledged: the test shows nothing", summary.Acked)
	}
	checkWrites(t, "after the kills", writes, s.Nodes)
}

// pause lets the cluster run for a while under load: what a chaos test waits
// for is time itself.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

func TestWipedServerReturnsUnderItsNameAndItsOldVoteIsGoneFirst(t *testing.T) {
	t.Parallel()
	s := startedSite(t)
	ctx := t.Context()
	write(t, s.Nodes[0], "kept", "by the others")
	leader := waitLeader(t, s.Nodes, "")
	var victim *site.Node
	within(t, patience, "three voters", func(ctx context.Context) error {
		voters, _, err := raftServers(ctx, leader)
		if err != nil {
			return err
		}
		for _, n := range without(s.Nodes, leader) {
			if id, err := nodeID(ctx, n); err == nil && slices.Contains(voters, id) {
				victim = n
			}
		}
		if len(voters) != 3 || victim == nil {
			return fmt.Errorf("voters %v", voters)
		}
		return nil
	})
	oldID, err := nodeID(ctx, victim)
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if err := victim.WipeStore(); err != nil {
		t.Fatal(err)
	}
	if err := victim.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	var newID string
	within(t, patience, "the wiped server is a member of Raft again", func(ctx context.Context) error {
		voters, others, err := raftServers(ctx, leader)
		if err != nil {
			return err
		}
		if newID == "" {
			if newID, err = nodeID(ctx, victim); err != nil {
				return err
			}
		}
		if newID == oldID {
			t.Fatal("the wiped server came back with its old identity")
		}
		all := append(voters, others...)
		if slices.Contains(all, oldID) && slices.Contains(all, newID) {
			t.Fatalf("the new server was added while the old one still had its place: %v %v", voters, others)
		}
		if !slices.Contains(all, newID) || len(voters) != 3 || slices.Contains(all, oldID) {
			return fmt.Errorf("voters %v, others %v; old %s, new %s", voters, others, oldID, newID)
		}
		return nil
	})
	settle(t, s, s.Nodes)
	within(t, patience, "it has the data", func(ctx context.Context) error {
		return hasKey(ctx, victim, "kept", "by the others")
	})
}

func nodeID(ctx context.Context, n *site.Node) (string, error) {
	var self struct {
		Config struct{ NodeID string }
	}
	err := n.Get(ctx, "/v1/agent/self", &self)
	if err == nil && self.Config.NodeID == "" {
		err = fmt.Errorf("%s does not tell its ID", n.Name())
	}
	return self.Config.NodeID, err
}

// All lose their power at once and start in any order, with their clocks in
// 1970 and no one to ask for the time.
func TestPowerCutOfAllAndStartIn1970FormTheSameCluster(t *testing.T) {
	t.Parallel()
	clockless, err := site.Build1970(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, clockless)
	ctx := t.Context()
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	settle(t, s, s.Nodes)
	before, err := clusterID(ctx, s.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	writes := &chaos.Writes{Store: anyNode{s.Nodes, func(n int) int { return 0 }}, Prefix: "cut/", Writers: 4, Timeout: 5 * time.Second}
	working, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	writes.Run(working)
	random := chaos.Seeded(t)
	for round := range 2 {
		if err := s.PowerOffAll(); err != nil {
			t.Fatal(err)
		}
		for _, i := range random.Perm(len(s.Nodes)) {
			s.Nodes[i].UseBinary(clockless)
			if err := s.Nodes[i].PowerOn(ctx); err != nil {
				t.Fatal(err)
			}
			pause(t, time.Duration(random.IntN(500))*time.Millisecond)
		}
		settle(t, s, s.Nodes)
		for _, n := range s.Nodes {
			after, err := clusterID(ctx, n)
			if err != nil || after != before {
				t.Errorf("round %d: %s is in cluster %q, want %q (%v)", round, n.Name(), after, before, err)
			}
		}
		checkWrites(t, fmt.Sprintf("round %d", round), writes, s.Nodes)
	}
	t.Logf("%d acknowledged writes are all there", writes.Summary().Acked)
}

func clusterID(ctx context.Context, n *site.Node) (string, error) {
	var status struct {
		ClusterID string `json:"cluster_id"`
	}
	err := n.Get(ctx, "/v1/holdfast/status?stale", &status)
	if err == nil && status.ClusterID == "" {
		err = fmt.Errorf("%s does not tell its cluster's UUID", n.Name())
	}
	return status.ClusterID, err
}
