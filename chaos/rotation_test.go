package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/lab"
	"holdfast/lab/site"
)

// The authority's directory on the admin's node, and what is issued there.
const (
	rotatedCA     = "/etc/holdfast/authority"
	rotatedIssued = "/etc/holdfast/issued"
)

// rotationRun is a cluster whose authority is changed by the commands that an
// admin types.
type rotationRun struct {
	t     *testing.T
	site  *site.Site
	admin *site.Node
}

func (r *rotationRun) cli(args ...string) string {
	r.t.Helper()
	out, err := r.admin.CLI(r.t.Context(), args...)
	if err != nil {
		r.t.Fatalf("holdfast %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (r *rotationRun) refused(words string, args ...string) {
	r.t.Helper()
	out, err := r.admin.CLI(r.t.Context(), append([]string{"pki", "rotate"}, args...)...)
	if err == nil || !strings.Contains(out+err.Error(), words) {
		r.t.Errorf("pki rotate %s: %v %s, want a refusal: %q", strings.Join(args, " "), err, out, words)
	}
}

// install issues for all and gives some nodes theirs, which are in force at once.
func (r *rotationRun) install(nodes ...*site.Node) {
	r.t.Helper()
	r.cli("pki", "issue", "--ca", rotatedCA, "--out", rotatedIssued)
	for _, n := range nodes {
		if err := n.InstallCertificates(filepath.Join(r.admin.Host.Disk(), rotatedIssued)); err != nil {
			r.t.Fatal(err)
		}
		if out, err := n.CLI(r.t.Context(), "config", "reload"); err != nil {
			r.t.Fatalf("%s: %v\n%s", n.Name(), err, out)
		}
	}
}

func (r *rotationRun) step(args ...string) {
	r.t.Helper()
	within(r.t, 90*time.Second, "pki rotate "+args[0], func(ctx context.Context) error {
		out, err := r.admin.CLI(ctx, append([]string{"pki", "rotate"}, args...)...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// The authority is changed in three steps while clients write: no write fails.
// Every step is refused while the one before is not done on every server. A
// server that slept through it shows a certificate of the dropped authority: it
// is refused, counted and told what to do, and comes back with new files.
func TestAuthorityIsRotatedWhileClientsWrite(t *testing.T) {
	if os.Getenv("UPGRADE") == "" {
		t.Skip("takes minutes: make upgrade-long")
	}
	lab.Require(t)
	s := electedSite(t, "testdata/four.yaml")
	r := &rotationRun{t: t, site: s, admin: s.Nodes[0]}
	awake, sleeper := s.Nodes[:3], s.Nodes[3]
	if err := s.CopyAuthority(r.admin.Host, rotatedCA); err != nil {
		t.Fatal(err)
	}
	writes := &chaos.Writes{Store: anyNode{awake, func(n int) int { return int(time.Now().UnixNano()/1e6) % n }}, Prefix: "rotated/", Writers: 4, Timeout: 15 * time.Second}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); writes.Run(ctx) }()

	ca := []string{"--ca", rotatedCA}
	with := func(step string, more ...string) []string { return append(append([]string{step}, ca...), more...) }
	r.refused("no change of the authority is under way", with("switch")...)
	r.step(with("begin")...)
	r.refused("does not trust the new authority", with("switch")...)
	r.install(awake[0], awake[1], sleeper)
	within(t, 20*time.Second, "the third is missing", func(ctx context.Context) error {
		out, err := r.admin.CLI(ctx, append([]string{"pki", "rotate"}, with("switch")...)...)
		if err == nil {
			t.Fatalf("switched: %s", out)
		}
		if text := out + err.Error(); !strings.Contains(text, awake[2].Name()+" does not trust") || strings.Contains(text, awake[1].Name()+" does not") {
			return errors.New(text)
		}
		return nil
	})
	r.install(awake[2])
	within(t, 20*time.Second, "all trust both", func(ctx context.Context) error { return r.all(ctx, 4, "trusts", 2) })
	if err := sleeper.Kill(); err != nil { // it sleeps from here
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the sleeper is missed", func(ctx context.Context) error {
		out, err := r.admin.CLI(ctx, append([]string{"pki", "rotate"}, with("switch")...)...)
		if err == nil {
			t.Fatalf("switched: %s", out)
		}
		if !strings.Contains(out+err.Error(), sleeper.Name()+" does not answer") {
			return fmt.Errorf("%s %w", out, err)
		}
		return nil
	})
	r.step(with("switch", "--without", sleeper.Name())...)
	r.refused("has no certificate by the new authority", with("finish", "--without", sleeper.Name())...)
	r.install(awake...)
	r.step(with("finish", "--without", sleeper.Name())...)
	r.install(awake...)
	within(t, 30*time.Second, "the old authority is dropped everywhere", func(context.Context) error {
		for _, n := range awake {
			if !strings.Contains(n.Log(), "an authority is not trusted any more") {
				return errors.New(n.Name() + " has not dropped it")
			}
		}
		return nil
	})
	// Everything goes on by the new one alone, over an election too.
	waitLeader(t, awake, "")
	out, err := r.admin.CLI(t.Context(), "raft", "transfer-leader")
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	waitLeader(t, awake, "")
	pause(t, time.Second)
	cancel()
	<-ended
	summary := writes.Summary()
	t.Logf("%d writes acknowledged, %d of unknown outcome, longest pause %v, refusals %v", summary.Acked, summary.Unknown, summary.LongestGap.Round(time.Millisecond), summary.Failures)
	if summary.Acked < 100 || summary.Unknown > 0 {
		t.Errorf("%d writes acknowledged, %d failed: %v", summary.Acked, summary.Unknown, summary.Failures)
	}
	checkWrites(t, "under the new authority", writes, awake)

	if err := sleeper.StartAgent(); err != nil {
		t.Fatal(err)
	}
	within(t, 60*time.Second, "the sleeper is refused, counted and told", func(ctx context.Context) error {
		if log := sleeper.Log(); !strings.Contains(log, "raftstore.authority") || !strings.Contains(log, "restart its agent") {
			return errors.New("it is not told")
		}
		var errs []error
		for _, n := range awake {
			err := refusedFor(ctx, n, "authority")
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if leader, err := sleeper.Leader(t.Context()); err == nil && leader != "" {
		t.Errorf("the sleeper has a leader: %s", leader)
	}
	if err := sleeper.InstallCertificates(filepath.Join(r.admin.Host.Disk(), rotatedIssued)); err != nil {
		t.Fatal(err)
	}
	change(t, sleeper, binary)
	waitLeader(t, s.Nodes, "")
	within(t, 30*time.Second, "the sleeper has what was written meanwhile", func(ctx context.Context) error {
		return writes.Check(ctx, sleeper)
	})
}

// all looks at what pki rotate status says of so many nodes.
func (r *rotationRun) all(ctx context.Context, nodes int, what string, authorities int) error {
	out, err := r.admin.CLI(ctx, "pki", "rotate", "status", "--ca", rotatedCA)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	count := 0
	for line := range strings.Lines(out) {
		// NODE, the authorities, who issued, and when it ends
		if len(strings.Fields(line)) == 1+authorities+2 && strings.HasPrefix(line, "fbservice") {
			count++
		}
	}
	if count != nodes {
		return fmt.Errorf("%d of %d nodes: %s %d: %s", count, nodes, what, authorities, out)
	}
	return nil
}

// refusedFor tells whether a node counted a refused connection for a reason.
func refusedFor(ctx context.Context, n *site.Node, reason string) error {
	text, err := n.Do(ctx, "GET", "/v1/agent/metrics?format=prometheus", nil)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, `holdfast_raftstore_refused_connections_total{reason="`+reason+`"}`) && !strings.HasSuffix(strings.TrimSpace(line), "} 0") {
			return nil
		}
	}
	return fmt.Errorf("%s refused nobody for %s", n.Name(), reason)
}
