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
	"holdfast/lab/stall"
)

// An election that a stall of the machine upset begins anew, which takes longer
// than the stall: such a start is done again, on empty disks.
func TestColdStartElectsALeaderWithinThreeSeconds(t *testing.T) {
	machine := watchMachine(t)
	var s *site.Site
	machine.Repeat(t, "the cold start", 3, disturbing, func() (from, to time.Time, missed error) {
		if s != nil {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		s = newSite(t)
		// The small servers behind the checks are the test's: 36 processes with the
		// race detector, which take longer than the agents.
		for _, n := range s.Nodes {
			if err := n.StartServices(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		from = time.Now()
		for _, n := range s.Nodes {
			if err := n.StartAgent(); err != nil {
				t.Fatal(err)
			}
		}
		waitLeader(t, s.Nodes, "")
		to = time.Now()
		t.Logf("cold start to the first leader: %v, of which the machine stood still for %v", to.Sub(from), machine.Within(from, to))
		if took := machine.Took(from, to); took > 3*time.Second {
			missed = fmt.Errorf("the first leader took %v, want under 3s", took)
		}
		return from, to, missed
	})
	settle(t, s, s.Nodes)
	t.Run("three vote and the fourth is warm", func(t *testing.T) {
		within(t, patience, "three voters", func(ctx context.Context) error {
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
	machine := watchMachine(t)
	s := startedSite(t)
	const kills = 5
	for round := range kills {
		machine.Repeat(t, fmt.Sprintf("round %d", round), 3, disturbing, func() (from, to time.Time, missed error) {
			return killLeader(t, machine, s, round)
		})
	}
}

// killLeader is a round: the time from just before the kill until the dead node is
// out of all answers, and which bound that missed. A stall less than a heartbeat's
// time-out before the kill may have an election begin after it.
func killLeader(t *testing.T, machine *stall.Watch, s *site.Site, round int) (began, gone time.Time, missed error) {
	t.Helper()
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
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); lookups.Run(ctx) }()

	looked := func(count int) {
		within(t, patience, fmt.Sprintf("make %d look-ups", count), func(context.Context) error {
			if n := len(lookups.Results()); n < count {
				return fmt.Errorf("%d were made", n)
			}
			return nil
		})
	}
	looked(50)
	settle(t, s, s.Nodes) // what a stall before the kill put out of the answers is back
	killed := time.Now()
	began = killed.Add(-heartbeatTimeout)
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	next := waitLeader(t, rest, leader.Name())
	replaced := time.Now()
	if took := machine.Took(killed, replaced); took > 1500*time.Millisecond {
		missed = fmt.Errorf("the next leader took %v, want under 1.5s", took)
	}
	for _, n := range rest {
		within(t, patience, "drop the dead node", func(ctx context.Context) error { return answersExactly(ctx, s, n, rest) })
	}
	gone = time.Now()
	if took := machine.Took(killed, gone); took > 5*time.Second {
		missed = errors.Join(missed, fmt.Errorf("the dead node was out of all answers after %v, want under 5s", took))
	}
	if err := leader.StartAgent(); err != nil {
		t.Fatal(err)
	}
	settle(t, s, s.Nodes)
	looked(len(lookups.Results()) + 50)
	cancel()
	<-ended
	failed, slowest := lookedUp(t, machine, fmt.Sprintf("round %d", round), lookups.Results())
	t.Logf("round %d: %s → %s in %v; out of all answers after %v; the machine stood still for %v; %d look-ups, %d failed, slowest %v",
		round, leader.Name(), next.Name(), replaced.Sub(killed), gone.Sub(killed), machine.Within(killed, gone), len(lookups.Results()), failed, slowest)
	return began, gone, missed
}

// What a check saw must be in every node's answers within 300 ms. A TTL check
// that is failed by hand has an exact moment at which it was seen.
func TestFailedCheckLeavesEveryAnswerWithin300ms(t *testing.T) {
	machine := watchMachine(t)
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
	everywhere := func(want []string) {
		t.Helper()
		for _, n := range s.Nodes {
			within(t, patience, fmt.Sprintf("%s answers %v", n.Name(), want), func(ctx context.Context) error {
				got, err := s.Lookup(ctx, n, "web.service.virtual")
				if err == nil && !slices.Equal(got, want) {
					err = fmt.Errorf("it answers %v", got)
				}
				return err
			})
		}
	}
	var worst time.Duration
	for range 10 {
		// A stall may keep a write from its disk, or a question on its way; one just
		// before may have an election begin.
		machine.Repeat(t, "a failed check", 5, 20*time.Millisecond, func() (from, to time.Time, missed error) {
			waitLeader(t, s.Nodes, "")
			everywhere(both)
			failed := time.Now()
			if _, err := s.Nodes[0].Do(ctx, http.MethodPut, "/v1/agent/check/fail/service:web", nil); err != nil {
				t.Fatal(err)
			}
			everywhere(one)
			to = time.Now()
			if _, err := s.Nodes[0].Do(ctx, http.MethodPut, "/v1/agent/check/pass/service:web", nil); err != nil {
				t.Fatal(err)
			}
			took := machine.Took(failed, to)
			if took > 300*time.Millisecond {
				missed = fmt.Errorf("it was out of every answer only after %v, want under 300ms", took)
			} else {
				worst = max(worst, took)
			}
			return failed.Add(-heartbeatTimeout), to, missed
		})
	}
	t.Logf("failed check to out of every node's answers, worst of 10: %v", worst)
}

func TestWithoutQuorumReadsGoOnAndWritesAreRefused(t *testing.T) {
	machine := watchMachine(t)
	s := startedSite(t)
	ctx := t.Context()
	write(t, s.Nodes[0], "before", "kept")
	survivor := s.Nodes[3]
	within(t, patience, "replicate", func(ctx context.Context) error { return hasKey(ctx, survivor, "before", "kept") })
	for _, n := range s.Nodes[:3] {
		if err := n.PowerOff(); err != nil {
			t.Fatal(err)
		}
	}
	within(t, patience, "answer with the survivor alone", func(ctx context.Context) error {
		return answersExactly(ctx, s, survivor, []*site.Node{survivor})
	})
	if err := hasKey(ctx, survivor, "before", "kept"); err != nil {
		t.Errorf("a stale read without quorum: %v", err)
	}
	start := time.Now()
	err := survivor.Put(ctx, "after", "must not be")
	refused := time.Now()
	if status := new(site.StatusError); !errors.As(err, &status) || status.Status != http.StatusInternalServerError {
		t.Errorf("a write without quorum gave %v, want a 500 with a sentence", err)
	}
	machine.Judge(t, "the refusal", 5*time.Second, start, refused)
	t.Logf("refused after %v: %v", refused.Sub(start).Round(time.Millisecond), err)
	if _, err := survivor.List(ctx, ""); err == nil {
		t.Error("a linearizable read was answered without a quorum")
	}
	for _, n := range s.Nodes[:3] {
		if err := n.PowerOn(ctx); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, s, s.Nodes)
	write(t, survivor, "later", "works again")
}

func hasKey(ctx context.Context, n *site.Node, key, want string) error {
	found, err := n.ListStale(ctx, key)
	if err == nil && found[key] != want {
		err = fmt.Errorf("%s has %q for %s, want %q", n.Name(), found[key], key, want)
	}
	return err
}
