package api

import (
	"net/netip"
	"strings"
	"testing"

	"holdfast/internal/state"
)

// TestExplanationsInLinesSayWhatTheAnswerSays: what DNS tells is what HTTP and
// the command line do.
func TestExplanationsInLinesSayWhatTheAnswerSays(t *testing.T) {
	c := newCell(t)
	c.apply(state.Register{
		Node:     state.Node{Name: "n1", ID: "id-n1", Address: netip.MustParseAddr("10.0.0.1")},
		Services: []state.Service{{ID: "web", Name: "web", Port: 80}},
		Checks:   []state.Check{{ID: "web", Name: "web", ServiceID: "web", Status: state.Passing, Output: "200 OK"}},
	})
	eventually(t, "the watch has seen that it passes", func() bool { at, _ := c.server.watch.checkSince("n1", "web"); return !at.IsZero() })
	c.apply(state.UpdateCheck{Node: "n1", Updates: []state.CheckState{{ID: "web", Status: state.Critical, Output: "connection refused"}}})
	eventually(t, "the watch has seen the change", func() bool { return len(explained(t, c, "web").History) > 0 })
	e := explained(t, c, "web")
	direct, ok := c.server.ExplainService("web")
	if !ok {
		t.Fatal("there is no such service")
	}
	text := strings.Join(direct.Lines(), "\n")
	for _, words := range []string{
		"web, as n1 answers it: " + e.Why, "10.0.0.1:80: not answered: " + e.Instances[0].Why,
		"check web is critical", "connection refused", "passing → critical",
	} {
		if !strings.Contains(text, words) {
			t.Errorf("%q is not in\n%s", words, text)
		}
	}
	if _, ok := c.server.ExplainService("nosuch"); ok {
		t.Error("a service that is not there is explained")
	}
}
