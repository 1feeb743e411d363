package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/lab/site"
)

func TestColdStartElectsALeaderWithinThreeSeconds(t *testing.T) {
	s := newSite(t)
	// The small servers behind the checks are the test's: 36 processes with the
	// race detector, which take longer than the agents.
	for _, n := range s.Nodes {
		if err := n.StartServices(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	for _, n := range s.Nodes {
		if err := n.StartAgent(); err != nil {
			t.Fatal(err)
		}
	}
	waitLeader(t, s.Nodes, "")
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("the first leader took %v, want under 3s", took)
	} else {
		t.Logf("cold start to the first leader: %v", took)
	}
	settle(t, s, s.Nodes)
	t.Run("three vote and the fourth is warm", func(t *testing.T) {
		within(t, 10*time.Second, "three voters", func(ctx context.Context) error {
			voters, others, err := raftServers(ctx, s.Nodes[0])
			if err == nil && (len(voters) != 3 || len(others) != 1) {
				err = fmt.Errorf("voters %v, non-voters %v", voters, others)
			}
			return err
		})
	})
}

// raftServers lists the IDs of voters and non-voters by Consul's own path.
func raftServers(ctx context.Context, n *site.Node) (voters, others []string, err error) {
	var configuration struct {
		Servers []struct {
			ID, Node string
			Voter    bool
		}
	}
	if err := n.Get(ctx, "/v1/operator/raft/configuration?stale", &configuration); err != nil {
		return nil, nil, err
	}
	for _, server := range configuration.Servers {
		if server.Voter {
			voters = append(voters, server.ID)
		} else {
			others = append(others, server.ID)
		}
	}
	return voters, others, nil
}

// A client lists two nodes; the leader, one of the two, is killed again and
// again under look-ups.
func TestKilledLeaderIsReplacedAndNoLookupFails(t *testing.T) {
	s := startedSite(t)
	const kills = 5
	for round := range kills {
		leader := waitLeader(t, s.Nodes, "")
		rest := without(s.Nodes, leader)
		if err := s.Resolve(s.Client, leader, rest[0]); err != nil {
			t.Fatal(err)
		}
		lookups := &chaos.Lookups{Workers: 8, Pause: 20 * time.Millisecond, Resolve: func(ctx context.Context) ([]string, error) {
			out, err := s.Client.Run(ctx, "getent", "ahostsv4", "apt.service.virtual")
			return chaos.Getent(out), err
		}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); lookups.Run(ctx) }()

		looked := func(count int) {
			within(t, 30*time.Second, fmt.Sprintf("make %d look-ups", count), func(context.Context) error {
				if n := len(lookups.Results()); n < count {
					return fmt.Errorf("%d were made", n)
				}
				return nil
			})
		}
		looked(50)
		killed := time.Now()
		if err := leader.Kill(); err != nil {
			t.Fatal(err)
		}
		next := waitLeader(t, rest, leader.Name())
		elected := time.Since(killed)
		if elected > 1500*time.Millisecond {
			t.Errorf("round %d: the next leader took %v, want under 1.5s", round, elected)
		}
		for _, n := range rest {
			within(t, 5*time.Second, "drop the dead node", func(ctx context.Context) error { return answersExactly(ctx, s, n, rest) })
		}
		gone := time.Since(killed)
		if err := leader.StartAgent(); err != nil {
			t.Fatal(err)
		}
		settle(t, s, s.Nodes)
		looked(len(lookups.Results()) + 50)
		cancel()
		<-ended
		failed, slowest := chaos.Failed(lookups.Results())
		for _, f := range failed {
			t.Errorf("round %d: a look-up failed after %v: %v %v", round, f.Took, f.Answers, f.Err)
		}
		t.Logf("round %d: %s → %s in %v; out of all answers after %v; %d look-ups, %d failed, slowest %v",
			round, leader.Name(), next.Name(), elected, gone, len(lookups.Results()), len(failed), slowest)
	}
}

// What a check saw must be in every node's answers within 300 ms. A TTL check
// that is failed by hand has an exact moment at which it was seen.
func TestFailedCheckLeavesEveryAnswerWithin300ms(t *testing.T) {
	s := startedSite(t)
	ctx := t.Context()
	for _, n := range s.Nodes[:2] {
		body := `{"Name":"web","ID":"web","Port":80,"Check":{"TTL":"10m","Status":"passing"}}`
		if _, err := n.Do(ctx, http.MethodPut, "/v1/agent/service/register", []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	both := []string{s.Nodes[0].Addr().String(), s.Nodes[1].Addr().String()}
	one := both[1:]
	everywhere := func(want []string) time.Duration {
		start := time.Now()
		for _, n := range s.Nodes {
			within(t, 5*time.Second, fmt.Sprintf("%s answers %v", n.Name(), want), func(ctx context.Context) error {
				got, err := s.Lookup(ctx, n, "web.service.virtual")
				if err == nil && !slices.Equal(got, want) {
					err = fmt.Errorf("it answers %v", got)
				}
				return err
			})
		}
		return time.Since(start)
	}
	everywhere(both)
	var worst time.Duration
	for range 10 {
		start := time.Now()
		if _, err := s.Nodes[0].Do(ctx, http.MethodPut, "/v1/agent/check/fail/service:web", nil); err != nil {
			t.Fatal(err)
		}
		everywhere(one)
		worst = max(worst, time.Since(start))
		if _, err := s.Nodes[0].Do(ctx, http.MethodPut, "/v1/agent/check/pass/service:web", nil); err != nil {
			t.Fatal(err)
		}
		everywhere(both)
	}
	if worst > 300*time.Millisecond {
		t.Errorf("a failed check was out of every answer only after %v, want under 300ms", worst)
	} else {
		t.Logf("failed check to out of every node's answers, worst of 10: %v", worst)
	}
}

func TestWithoutQuorumReadsGoOnAndWritesAreRefused(t *testing.T) {
	s := startedSite(t)
	ctx := t.Context()
	if err := s.Nodes[0].Put(ctx, "before", "kept"); err != nil {
		t.Fatal(err)
	}
	survivor := s.Nodes[3]
	within(t, 5*time.Second, "replicate", func(ctx context.Context) error { return hasKey(ctx, survivor, "before", "kept") })
	for _, n := range s.Nodes[:3] {
		if err := n.PowerOff(); err != nil {
			t.Fatal(err)
		}
	}
	within(t, 10*time.Second, "answer with the survivor alone", func(ctx context.Context) error {
		return answersExactly(ctx, s, survivor, []*site.Node{survivor})
	})
	if err := hasKey(ctx, survivor, "before", "kept"); err != nil {
		t.Errorf("a stale read without quorum: %v", err)
	}
	start := time.Now()
	err := survivor.Put(ctx, "after", "must not be")
	if status := new(site.StatusError); !errors.As(err, &status) || status.Status != http.StatusInternalServerError {
		t.Errorf("a write without quorum gave %v, want a 500 with a sentence", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the refusal took %v", took)
	}
	t.Logf("refused after %v: %v", time.Since(start).Round(time.Millisecond), err)
	if _, err := survivor.List(ctx, ""); err == nil {
		t.Error("a linearizable read was answered without a quorum")
	}
	for _, n := range s.Nodes[:3] {
		if err := n.PowerOn(ctx); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, s, s.Nodes)
	if err := survivor.Put(ctx, "later", "works again"); err != nil {
		t.Error(err)
	}
}

func hasKey(ctx context.Context, n *site.Node, key, want string) error {
	found, err := n.ListStale(ctx, key)
	if err == nil && found[key] != want {
		err = fmt.Errorf("%s has %q for %s, want %q", n.Name(), found[key], key, want)
	}
	return err
}
