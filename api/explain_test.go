package api

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"holdfast/internal/state"
)

func explained(t *testing.T, c *cell, service string) Explanation {
	t.Helper()
	code, _, text := c.get(explainPath + service)
	var e Explanation
	if err := json.Unmarshal([]byte(text), &e); code != 200 || err != nil {
		t.Fatalf("%d %s: %v", code, text, err)
	}
	return e
}

func TestExplainNamesTheCheckThatTookAnInstanceOut(t *testing.T) {
	c := newCell(t)
	for _, node := range []string{"n1", "n2"} {
		c.apply(state.Register{
			Node:     state.Node{Name: node, ID: "id-" + node, Address: netip.MustParseAddr("10.0.0.1")},
			Services: []state.Service{{ID: "web", Name: "web", Port: 80}},
			Checks:   []state.Check{{ID: "web", Name: "web", ServiceID: "web", Status: state.Passing, Output: "200 OK", Type: "http"}},
		})
	}
	e := explained(t, c, "web")
	if len(e.Instances) != 2 || !e.Instances[0].Answers || !e.Instances[1].Answers || !strings.HasPrefix(e.Why, "2 of 2 instances are answered") {
		t.Fatalf("%+v", e)
	}
	eventually(t, "who remembers has seen that it passes", func() bool { return explained(t, c, "web").Instances[1].Checks[0].Since != nil })
	c.apply(state.UpdateCheck{Node: "n2", Updates: []state.CheckState{{ID: "web", Status: state.Critical, Output: "connection refused"}}})
	eventually(t, "who remembers has seen that it fails", func() bool { return len(explained(t, c, "web").History) > 0 })
	e = explained(t, c, "web") // since when comes from the same memory
	out := e.Instances[1]
	if out.Answers || out.Node != "n2" || out.Why != "check web is critical: connection refused" || !e.Instances[0].Answers {
		t.Errorf("%+v", e.Instances)
	}
	if len(out.Checks) != 1 || out.Checks[0].Since == nil || !out.Checks[0].Since.Exact || out.Checks[0].Output != "connection refused" {
		t.Errorf("the evidence: %+v", out.Checks)
	}
	if len(e.History) != 1 || e.History[0].From != state.Passing || e.History[0].To != state.Critical || e.History[0].Node != "n2" {
		t.Errorf("history %+v", e.History)
	}
}

// explain must say what is answered, not what would be by another rule.
func TestExplainAgreesWithWhatIsAnswered(t *testing.T) {
	c := newCell(t)
	for _, node := range []string{"n1", "n2"} {
		c.apply(state.Register{
			Node: state.Node{Name: node, ID: "id-" + node, Address: netip.MustParseAddr("10.0.0.1")}, Services: []state.Service{{ID: "web", Name: "web"}},
		})
	}
	members := func(n1, n2 state.Liveness) {
		c.store.SetMembers([]state.Member{
			{Name: "n1", ID: "id-n1", Address: netip.MustParseAddr("10.0.0.1"), Liveness: n1}, {Name: "n2", ID: "id-n2", Address: netip.MustParseAddr("10.0.0.1"), Liveness: n2},
		})
	}
	for _, test := range []struct {
		n1, n2 state.Liveness
		in     [2]bool
		part   string
	}{
		{state.Alive, state.Alive, [2]bool{true, true}, "2 of 2"},
		{state.Alive, state.Failed, [2]bool{true, false}, "1 of 2"},
		{state.Failed, state.Failed, [2]bool{true, true}, "the catalog's word stands"},
	} {
		members(test.n1, test.n2)
		e := explained(t, c, "web")
		if got := [2]bool{e.Instances[0].Answers, e.Instances[1].Answers}; got != test.in || !strings.Contains(e.Why, test.part) {
			t.Errorf("%s, %s: %v, %s; want %v", test.n1, test.n2, got, e.Why, test.in)
		}
	}
	if e := explained(t, c, "web"); !strings.Contains(e.Instances[0].Why, "failed") {
		t.Errorf("why: %+v", e.Instances[0])
	}
	if code, _, text := c.get(explainPath + "nothing"); code != 404 {
		t.Errorf("no service: %d %s", code, text)
	}
}

// DNS answers from the file meanwhile: "there is no such service" would be wrong.
func TestExplainSaysThatTheStoreIsNotFormed(t *testing.T) {
	c := bench(t)
	c.server.log = slog.New(slog.DiscardHandler)
	c.raft.set(func(r *fakeRaft) { r.leader = "" })
	if got := c.ask(explainPath + "apt"); got.Code != 500 || !strings.HasPrefix(got.Body.String(), noLeader+": the store is not formed yet") {
		t.Errorf("%d %s", got.Code, got.Body)
	}
	c.store.Touch(time.Now()) // a leader was heard of: the catalog's word counts
	if got := c.ask(explainPath + "apt"); got.Code != 404 {
		t.Errorf("confirmed before the leader was lost: %d %s", got.Code, got.Body)
	}
}
