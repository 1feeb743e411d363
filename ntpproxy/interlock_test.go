package ntpproxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/state"
)

func TestStepIsRefusedBesideAServiceThatLivesHereAndNamesIt(t *testing.T) {
	store := state.New()
	index := uint64(0)
	apply := func(c state.Command) {
		index++
		if err := store.Apply(index, c); err != nil {
			t.Fatal(err)
		}
	}
	service := func(node, name string, status state.Status) {
		apply(state.Register{
			Node:     state.Node{Name: node, ID: node, Address: netip.MustParseAddr("10.1.0.1")},
			Services: []state.Service{{ID: name, Name: name}},
			Checks:   []state.Check{{ID: name, Name: name, ServiceID: name, Status: status}},
		})
	}
	service("fbservice1", "slurmctld", state.Passing)
	service("fbservice1", "nfs", state.Warning)
	service("fbservice1", "galera", state.Critical) // dead
	service("fbservice1", "web", state.Passing)     // cares for no clock
	service("fbservice2", "mysql", state.Passing)   // elsewhere
	if diff := cmp.Diff([]string{"nfs", "slurmctld"}, forbidding(store.Snapshot(), "fbservice1", defaultHold())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c := newFakeClock(t, 0, 0)
	f := keeping(t, c, keepDiscipline, newFixture(t, testCluster(t), "127.0.0.1:0").serve(t).String())
	f.server.config.Node, f.server.state = "fbservice1", store
	f.serve(t)
	eventually(t, "we steer", func() bool { k := f.server.Kept(); return k != nil && k.Updates > 3 })
	if err := f.server.StepNow(false); err == nil || !strings.Contains(err.Error(), "nfs, slurmctld") {
		t.Errorf("got %v", err)
	}
	if err := f.server.StepNow(true); err != nil {
		t.Errorf("forced: %v", err)
	}
	if got := f.server.Tracking().HeldBy; len(got) != 2 {
		t.Errorf("an admin sees %v", got)
	}
}
