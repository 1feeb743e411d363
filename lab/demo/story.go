package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/chaos"
	"holdfast/lab/site"
)

const name = "apt.service.virtual"

// coldStart starts every agent and waits until the client gets the answer.
func (s *story) coldStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var names []string
	for _, n := range s.site.Nodes {
		names = append(names, fmt.Sprintf("%s (%s)", n.Name(), n.Addr()))
	}
	s.say("hosts are up: %s, and a client", strings.Join(names, ", "))
	start := time.Now()
	if err := s.site.Start(ctx); err != nil {
		return err
	}
	s.say("agents started; no one has ever been leader here")
	leader, err := s.waitLeader(ctx, s.site.Nodes, "")
	if err != nil {
		return fmt.Errorf("no leader: %w", err)
	}
	s.within("cold start to the first leader", time.Since(start), 3*time.Second)
	s.say("elected: %s", leader)

	want := len(s.site.Nodes)
	if err := s.waitAnswers(ctx, s.site.Nodes, func(addrs []string) bool { return len(addrs) == want }); err != nil {
		return fmt.Errorf("services are not registered: %w", err)
	}
	s.within("cold start to all instances answered by every node", time.Since(start), 10*time.Second)
	s.say("registered: every node answers all %d instances", want)
	return s.dig(ctx, 2)
}

// dig shows what a person sees at the client.
func (s *story) dig(ctx context.Context, times int) error {
	for range times {
		out, err := s.site.Client.Run(ctx, "dig", "+short", name)
		if err != nil {
			return err
		}
		s.say("client$ dig +short %s    → %s", name, strings.Join(answers(out), " "))
	}
	return nil
}

// answers leaves out what dig says of servers that don't answer.
func answers(out string) []string {
	return slices.DeleteFunc(strings.Split(strings.TrimSpace(out), "\n"), func(line string) bool { return strings.HasPrefix(line, ";") })
}

// loseLeader kills the leader under look-ups and takes it back.
func (s *story) loseLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	old, err := s.waitLeader(ctx, s.site.Nodes, "")
	if err != nil {
		return err
	}
	victim := s.site.Node(old)
	// The worst case for the client: the dead node is one of its two resolvers.
	other := s.site.Nodes[0]
	if other == victim {
		other = s.site.Nodes[1]
	}
	if err := s.site.Resolve(s.site.Client, victim, other); err != nil {
		return err
	}
	lookups, stopLookups := s.startLookups(ctx)
	defer stopLookups()
	if err := waitCount(ctx, lookups, 50); err != nil {
		return err
	}
	s.say("client looks %s up all the time, through %s and %s (options timeout:1 rotate)", name, victim.Name(), other.Name())
	if err := s.kill(ctx, victim); err != nil {
		return err
	}
	before := len(lookups.Results())
	if err := waitCount(ctx, lookups, before+50); err != nil {
		return err
	}
	if err := s.takeBack(ctx, victim); err != nil {
		return err
	}
	stopLookups()
	results := lookups.Results()
	failed, slowest := chaos.Failed(results)
	s.exactly("look-ups that failed at the client", len(failed), 0, fmt.Sprintf("of %d, slowest %v", len(results), slowest.Round(time.Millisecond)))
	for _, f := range failed[:min(3, len(failed))] {
		s.say("a look-up failed after %v: %v", f.Took.Round(time.Millisecond), f.Err)
	}
	return nil
}

func (s *story) kill(ctx context.Context, victim *site.Node) error {
	rest := slices.DeleteFunc(slices.Clone(s.site.Nodes), func(n *site.Node) bool { return n == victim })
	if err := victim.Kill(); err != nil {
		return err
	}
	killed := time.Now()
	s.say("kill -9 of the leader's agent, %s", victim.Name())
	var wg sync.WaitGroup
	defer wg.Wait()
	gone := make(chan error, 1)
	var goneAfter time.Duration
	wg.Go(func() {
		dead := victim.Addr().String()
		gone <- s.waitAnswers(ctx, rest, func(addrs []string) bool { return len(addrs) > 0 && !slices.Contains(addrs, dead) })
		goneAfter = time.Since(killed)
	})
	leader, err := s.waitLeader(ctx, rest, victim.Name())
	if err != nil {
		return fmt.Errorf("no next leader: %w", err)
	}
	s.within("kill -9 of the leader to the next one", time.Since(killed), 1500*time.Millisecond)
	s.say("elected: %s", leader)
	if err := s.site.Node(leader).Put(ctx, "demo/after", "still here"); err != nil {
		return err
	}
	s.within("kill -9 of the leader to the next committed write", time.Since(killed), 2*time.Second)
	if err := <-gone; err != nil {
		return fmt.Errorf("the dead node stays in answers: %w", err)
	}
	wg.Wait()
	s.within("kill -9 to its address gone from every node's answers", goneAfter, 3*time.Second)
	s.say("%s answers without %s on every node", name, victim.Addr())
	return s.dig(ctx, 1)
}

func (s *story) takeBack(ctx context.Context, victim *site.Node) error {
	start := time.Now()
	if err := victim.StartAgent(); err != nil {
		return err
	}
	s.say("%s is started again", victim.Name())
	err := site.Poll(ctx, func(ctx context.Context) error {
		found, err := victim.ListStale(ctx, "demo/")
		if err == nil && found["demo/after"] != "still here" {
			err = errors.New("it has not caught up")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s does not resynchronise: %w", victim.Name(), err)
	}
	s.within("its restart to resynchronised", time.Since(start), 3*time.Second)
	s.say("%s has what was written while it was dead", victim.Name())
	want := len(s.site.Nodes)
	if err := s.waitAnswers(ctx, s.site.Nodes, func(addrs []string) bool { return len(addrs) == want }); err != nil {
		return err
	}
	s.within("its restart to answered by every node again", time.Since(start), 10*time.Second)
	return s.dig(ctx, 1)
}

// waitLeader waits until all nodes agree on a leader other than not.
func (s *story) waitLeader(ctx context.Context, nodes []*site.Node, not string) (string, error) {
	var leader string
	err := site.Poll(ctx, func(ctx context.Context) error {
		leader = ""
		for _, n := range nodes {
			l, err := n.Leader(ctx)
			switch {
			case err != nil:
				return err
			case l == "" || l == not || leader != "" && l != leader:
				return fmt.Errorf("%s says the leader is %q", n.Name(), l)
			}
			leader = l
		}
		return nil
	})
	return leader, err
}

// waitAnswers waits until every node's own DNS answer satisfies good.
func (s *story) waitAnswers(ctx context.Context, nodes []*site.Node, good func([]string) bool) error {
	for _, n := range nodes {
		err := site.Poll(ctx, func(ctx context.Context) error {
			addrs, err := s.site.Lookup(ctx, n, name)
			if err == nil && !good(addrs) {
				err = fmt.Errorf("%s answers %v", n.Name(), addrs)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *story) startLookups(ctx context.Context) (*chaos.Lookups, func()) {
	lookups := &chaos.Lookups{Workers: 8, Pause: 20 * time.Millisecond, Resolve: func(ctx context.Context) ([]string, error) {
		out, err := s.site.Client.Run(ctx, "getent", "ahostsv4", name)
		return chaos.Getent(out), err
	}}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		lookups.Run(ctx)
	}()
	return lookups, func() { cancel(); <-done }
}

// waitCount waits for so many finished look-ups.
func waitCount(ctx context.Context, l *chaos.Lookups, count int) error {
	return site.Poll(ctx, func(context.Context) error {
		if n := len(l.Results()); n < count {
			return fmt.Errorf("%d look-ups", n)
		}
		return nil
	})
}
