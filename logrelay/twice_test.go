package logrelay

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/logrelay/journal"
)

// TestLinesThatAreHereTwiceAreCounted: what a node is told of a client's lines,
// one word each, which is a line and "@" with when it was received; those with
// "<" in front came to another node and from there, which sends them "anew".
func TestLinesThatAreHereTwiceAreCounted(t *testing.T) {
	window := func(from, to int, mark string, at int) (text string) {
		for n := from; n < to; n++ {
			text += fmt.Sprintf(" %sl%d@%d", mark, n, at)
		}
		return text
	}
	for _, test := range []struct {
		name, lines string
		want        int
	}{
		{"a client of this node", "a@1 b@2 c@3", 0},
		{"of another", "<a@1 <b@2 <c@3", 0},
		// This node lives, and the dead one comes back with the beginning of
		// what was sent again.
		{"the dead one's last lines", "<a@1 <b@1 c@5 d@5 e@6 <c@2 <d@2", 2},
		{"the client goes on meanwhile", "<a@1 c@5 d@5 e@6 <c@2 f@7 <d@2 g@8 <e@2", 3},
		{"it had answered some alone", "<a@1 d@5 e@5 <b@2 <c@2 <d@3", 1},
		{"none were sent again", "<a@1 d@5 e@5 <b@2 <c@2", 0},
		{"other lines behind those", "<a@1 c@5 d@5 e@6 <c@2 <x@3 <d@3", 1},
		{"a second return", "<a@1 c@5 d@5 <c@2 <e@9 f@12 <f@10 g@13", 2},
		{"a window, and a long time", "<a@1" + window(0, 1000, "", 5) + window(0, 128, "<", 2), 128},
		// This node was dead: what it had at the end comes from the other.
		{"its own last lines", "a@1 b@1 c@2 <b@5 <c@5 <d@6", 2},
		{"all of them are with the other", "a@1 b@1 c@2 <d@5 <e@6", 0},
		{"a line that only looks so", "a@1 b@1 c@2 <b@5 <d@6", 0},
		{"a window of its own", window(0, 300, "", 1) + window(172, 300, "<", 5) + " <next@6", 128},
		// The other node was dead, and has its clients once more.
		{"its last lines anew", "<a@1 <b@1 <c@1 anew <b@5 <c@5 <d@6", 2},
		{"none of them", "<a@1 <b@1 anew <c@5 <d@5", 0},
		{"a client that is here", "a@1 b@1 anew <b@5 <c@5", 1},
		{"there and back, and then it comes", "a@1 b@1 c@1 d@9 <b@5 <c@5 e@10", 2},
		{"a client that moves, and again", "a@1 b@1 <c@2 <d@2 e@3 <f@4 g@5", 0},
	} {
		r := newRecent()
		r.pairs = true
		got := 0
		for _, word := range strings.Fields(test.lines) {
			if word == "anew" {
				r.anew()
				continue
			}
			rec := journal.Record{Source: netip.MustParseAddr("10.1.0.31"), Input: viaRELP}
			text, other := strings.CutPrefix(word, "<")
			if other {
				rec.Input |= viaOther
			}
			line, at, _ := strings.Cut(text, "@")
			if _, err := fmt.Sscan(at, &rec.Time); err != nil {
				t.Fatal(err)
			}
			rec.Data = []byte(line)
			got += r.add(rec)
		}
		if got != test.want {
			t.Errorf("%s: %d lines are twice, want %d", test.name, got, test.want)
		}
		for _, l := range r.senders {
			if n := len(l.twice.first); n > 128 {
				t.Errorf("%s: %d lines are remembered", test.name, n)
			}
		}
	}
}

// TestDuplicatesOfADeadNodesReturnAreCountedOnBoth: a node has lines that it was
// never to answer when it ends, and the other one gets them from the client. It
// fails if either node counts them not, or counts others.
func TestDuplicatesOfADeadNodesReturnAreCountedOnBoth(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	begins := func(n *node, patience time.Duration) {
		n.make(t, all, filepath.Join(filepath.Dir(n.dir), "pki-"+n.name))
		n.replicaPatience = patience
		n.start(t)
	}
	begins(second, time.Minute)
	begins(first, time.Minute)
	first.send(t, 0, 10) // both have these
	second.end()
	c, err := dial(netip.AddrPortFrom(first.addr, testRELP).String())
	if err != nil {
		t.Fatal(err)
	}
	before := first.journal.End()
	for n := 10; n < 15; n++ {
		c.line(t, n)
	}
	first.grows(t, before, 5) // and these are on one disk, and not answered
	first.end()
	_ = c.conn.Close()
	begins(second, 100*time.Millisecond)
	second.send(t, 10, 20) // the client has sent them again, and more
	begins(first, time.Minute)
	second.caught(t)
	for _, n := range all {
		n.hasTwice(t, 30, 5)
	}
}

// hasTwice waits until the node's files have all of so many lines, some of them twice,
// and the node counts these.
func (n *node) hasTwice(t *testing.T, lines, twice int) {
	t.Helper()
	eventually(t, time.Minute, "all lines are in the files of "+n.name, func() error {
		got := n.files(t)
		slices.Sort(got)
		if len(got) != lines+twice || len(slices.Compact(got)) != lines {
			return fmt.Errorf("%d lines", len(got))
		}
		return nil
	})
	eventually(t, time.Minute, n.name+" counts what is twice in its files", func() error {
		if got, counted := n.Status().Doubled, testutil.ToFloat64(n.metrics.doubled); got != uint64(twice) || counted != float64(twice) {
			return fmt.Errorf("there are %d lines, its status says %d, its metric %v", twice, got, counted)
		}
		return nil
	})
}
