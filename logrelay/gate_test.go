package logrelay

import (
	"context"
	"testing"
)

// TestTwoFullNodesTakeEachOthersLines: else neither gets rid of what it keeps for
// the other, and under the wait policy both hold their senders back for ever. It
// fails if other nodes are held back where senders are, or never.
func TestTwoFullNodesTakeEachOthersLines(t *testing.T) {
	g := newGate()
	ended, end := context.WithCancel(t.Context())
	end()
	open := func(wait func(context.Context) error, ch func() chan struct{}) bool {
		select {
		case <-ch():
			return wait(t.Context()) == nil
		default:
			return wait(ended) == nil
		}
	}
	for _, test := range []struct {
		used           float64
		paused         bool
		senders, nodes bool
	}{
		{50, false, true, true},
		{stopReadingAt, false, false, true},
		{stopNodesAt - 0.1, false, false, true},
		{stopNodesAt, false, false, false},
		{reopenNodesAt, false, false, false},
		{reopenNodesAt - 0.1, false, false, true},
		{reopenAt - 0.1, false, true, true},
		{50, true, false, false},
		{50, false, true, true},
	} {
		g.disk(test.used)
		g.pause(test.paused)
		senders := open(g.wait, func() chan struct{} { return g.open })
		nodes := open(g.waitForNode, func() chan struct{} { return g.openNodes })
		if senders != test.senders || nodes != test.nodes {
			t.Errorf("%v %% used, paused %v: senders are read %v, other nodes %v; want %v and %v", test.used, test.paused, senders, nodes, test.senders, test.nodes)
		}
	}
}
