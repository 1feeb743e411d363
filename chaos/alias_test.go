package chaos_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"holdfast/lab/site"
)

// A frontend's service stands and falls with one of a server: with its check, with
// the server itself, and it is back with both. The frontend sees them in what it is
// streamed, and its word is seen on all servers.
func TestAnAliasFollowsAnotherNodesServiceThroughTheCluster(t *testing.T) {
	s := followerSite(t)
	server := s.Node("fbservice2")
	gate := func(healthy bool, when string) {
		t.Helper()
		for _, n := range without(s.Nodes, server) {
			took := within(t, patience, fmt.Sprintf("%s knows of the gate %s", n.Name(), when), func(ctx context.Context) error { return gateOn(ctx, n, healthy) })
			t.Logf("%s: %s knows after %v", when, n.Name(), took.Round(10*time.Millisecond))
		}
	}
	gate(true, "at first")
	if err := server.StopService("apt"); err != nil {
		t.Fatal(err)
	}
	gate(false, "when what it stands for has failed")
	if err := server.StartService(t.Context(), "apt"); err != nil {
		t.Fatal(err)
	}
	gate(true, "when that is back")
	if err := server.PowerOff(); err != nil {
		t.Fatal(err)
	}
	gate(false, "when the other's node is dead")
	if err := server.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	gate(true, "when the node is back")
}

// gateOn asks a node whether the gate is healthy, and why.
func gateOn(ctx context.Context, n *site.Node, want bool) error {
	var all []struct {
		Checks []struct{ CheckID, Status, Output string }
	}
	if err := n.Get(ctx, "/v1/health/service/gate", &all); err != nil {
		return err
	}
	if len(all) != 1 {
		return fmt.Errorf("%d instances", len(all))
	}
	healthy := true
	for _, c := range all[0].Checks {
		healthy = healthy && c.Status == "passing"
	}
	if healthy != want {
		return fmt.Errorf("healthy %v: %+v", healthy, all[0].Checks)
	}
	return nil
}
