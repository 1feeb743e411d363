package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/lab"
	"holdfast/lab/site"
)

// Three servers are upgraded one after the other under load, from the program as
// it is to one that reads a level more, which is the same program built with a
// tag (site.BuildFuture). Nobody writes what the old one can't read until the
// level is raised, and that is refused until the last has the new one. An old
// program that comes back then is refused, says why, and changes nothing.
func TestRollingUpgradeWithMixedVersionsUnderLoad(t *testing.T) {
	if os.Getenv("UPGRADE") == "" {
		t.Skip("builds a second program: make upgrade-long")
	}
	lab.Require(t)
	dir := t.TempDir()
	future, err := site.BuildFuture(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	s := electedSite(t, "testdata/three.yaml", future)
	writes := &chaos.Writes{Store: anyNode{s.Nodes, func(n int) int { return int(time.Now().UnixNano()/1e6) % n }}, Prefix: "upgrade/", Writers: 3, Timeout: 10 * time.Second}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); writes.Run(ctx) }()

	for i, n := range s.Nodes {
		refusedToRaise(t, n, n.Name()+" reads 1")
		change(t, n, future)
		within(t, 60*time.Second, n.Name()+" is upgraded", func(ctx context.Context) error { return readsLevel(ctx, s.Nodes[0], n.Name(), 2) })
		waitLeader(t, s.Nodes, "")
		if i == 0 { // the upgraded one holds back what the others can't read
			if err := writeFuture(t.Context(), n, "too early"); err == nil || !strings.Contains(err.Error(), "needs feature level 2, the store is at 1") &&
				!strings.Contains(err.Error(), "of a newer program than the leader's") {
				t.Errorf("a command above the level: %v", err)
			}
		}
	}
	within(t, 20*time.Second, "the level is raised", func(ctx context.Context) error {
		_, err := s.Nodes[1].CLI(ctx, "operator", "feature-level", "raise")
		return err
	})
	within(t, 20*time.Second, "a command of the new level is on all nodes", func(ctx context.Context) error {
		if err := writeFuture(ctx, s.Nodes[2], "new"); err != nil {
			return err
		}
		for _, n := range s.Nodes {
			if err := hasKey(ctx, n, "future/new", "new"); err != nil {
				return fmt.Errorf("%s: %w", n.Name(), err)
			}
		}
		return nil
	})
	cancel()
	<-ended
	summary := writes.Summary()
	t.Logf("%d writes acknowledged, %d of unknown outcome, longest pause %v, refusals %v", summary.Acked, summary.Unknown, summary.LongestGap.Round(time.Millisecond), summary.Failures)
	if summary.Acked < 100 {
		t.Error("too few writes: the test shows nothing")
	}
	checkWrites(t, "after the upgrade", writes, s.Nodes)

	late := s.Nodes[2]
	change(t, late, binary)
	rest := s.Nodes[:2]
	leader := waitLeader(t, rest, late.Name())
	within(t, 30*time.Second, "the old program says that it is too old, and so does the leader", func(context.Context) error {
		if log := late.Log(); !strings.Contains(log, "command of unknown kind 250: a newer program wrote it") && !strings.Contains(log, "reads feature level 1") {
			return errors.New("not in the log of " + late.Name())
		}
		if !strings.Contains(leader.Log(), "its program reads feature level 1 and the store is at 2") && !strings.Contains(late.Log(), "raftstore.halted") {
			return errors.New("not in the log of " + leader.Name())
		}
		return nil
	})
	write(t, leader, "after", "it") // the two others
	if err := hasKeyStale(t.Context(), late, "after"); err == nil {
		t.Error("the old program applied what came after a command that it can't read")
	}
	change(t, late, future)
	within(t, 30*time.Second, "the new program takes it up again", func(ctx context.Context) error { return hasKeyStale(ctx, late, "after") })
}

func hasKeyStale(ctx context.Context, n *site.Node, key string) error {
	found, err := n.ListStale(ctx, key)
	if err == nil && found[key] == "" {
		err = fmt.Errorf("%s has not got %s", n.Name(), key)
	}
	return err
}

// change stops a node's agent in an orderly way and starts another program.
func change(t *testing.T, n *site.Node, program string) {
	t.Helper()
	if err := n.Agent().Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.Agent().Done():
	case <-time.After(60 * time.Second):
		t.Fatalf("%s does not end", n.Name())
	}
	n.UseBinary(program)
	if err := n.StartAgent(); err != nil {
		t.Fatal(err)
	}
}

func refusedToRaise(t *testing.T, n *site.Node, words string) {
	t.Helper()
	within(t, 20*time.Second, "the level is not raised: "+words, func(ctx context.Context) error {
		out, err := n.CLI(ctx, "operator", "feature-level", "raise", "--to", "2")
		if err == nil {
			t.Fatalf("raised: %s", out)
		}
		if !strings.Contains(out+err.Error(), words) {
			return fmt.Errorf("%s %w", out, err)
		}
		return nil
	})
}

func readsLevel(ctx context.Context, n *site.Node, name string, level int) error {
	out, err := n.CLI(ctx, "raft", "list-peers", "--json")
	if err != nil {
		return err
	}
	var peers []struct {
		Name  string `json:"name"`
		Level int    `json:"feature_level"`
		Lag   uint64 `json:"lag"`
	}
	if err := json.Unmarshal([]byte(out), &peers); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, p := range peers {
		if p.Name == name && p.Level == level && p.Lag < 1000 {
			return nil
		}
	}
	return fmt.Errorf("%s", out)
}

// writeFuture asks for the command that only the future program has, over the
// admin socket.
func writeFuture(ctx context.Context, n *site.Node, what string) error {
	what = strings.ReplaceAll(what, " ", "-")
	out, err := n.Host.Run(ctx, "curl", "-sS", "-X", "POST", "-w", "\n%{http_code}", "--unix-socket", "/run/holdfast/core.sock",
		"http://holdfast/v1/holdfast/store/future?key=future/"+what+"&value="+what)
	if err == nil && !strings.HasSuffix(out, "\n200") {
		err = errors.New(out)
	}
	return err
}
