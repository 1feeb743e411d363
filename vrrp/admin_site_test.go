package vrrp_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/site"
)

// TestMoveReachesAnotherNodeOverMutualTLS: the whole cluster of the example,
// with its certificates; `vip move --to` on one node makes another hold.
func TestMoveReachesAnotherNodeOverMutualTLS(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s, err := site.New(ctx, site.Options{
		Binary: binary, File: "../examples/scibian.yaml",
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	one, two := s.Node("fbservice1"), s.Node("fbservice2")
	until := func(n *site.Node, words string, args ...string) {
		t.Helper()
		if err := site.Poll(ctx, func(ctx context.Context) error {
			out, err := n.CLI(ctx, append([]string{"vip"}, args...)...)
			if err != nil || !strings.Contains(out, words) {
				return fmt.Errorf("%s: vip %s: %q, %w", n.Name(), strings.Join(args, " "), out, err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	until(one, "fbservice1 holds it", "explain", "dns1")
	out, err := one.CLI(ctx, "explain", "dns1") // through the agent's API
	if err != nil || !strings.Contains(out, "fbservice1 holds it") {
		t.Errorf("explain dns1: %q: %v", out, err)
	}
	out, err = one.CLI(ctx, "vip", "move", "dns1", "--to", "fbservice2")
	if err != nil || !strings.Contains(out, "fbservice2 holds dns1") {
		t.Fatalf("%q: %v", out, err)
	}
	until(two, "fbservice2 holds it", "explain", "dns1")
	if err := s.InstallAdmin(s.Client); err != nil {
		t.Fatal(err)
	}
	shown, err := s.Client.Run(ctx, binary, "vip", "list", "--server", "https://"+two.Addr().String()+":8501")
	if err != nil || !strings.Contains(shown, "held") {
		t.Errorf("over HTTPS: %q, %v", shown, err)
	}
	until(two, "priorities decide", "release", "dns1")
}
