package logrelay

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/logrelay/journal"
)

// stoppedDisk is a journal's file whose syncs wait while they are held.
type stoppedDisk struct {
	journal.File
	held *sync.Mutex
}

func (d stoppedDisk) Datasync() error {
	d.held.Lock()
	defer d.held.Unlock()
	return d.File.Datasync()
}

// TestWhatADeadNodeShippedAndWhatItCouldNotAreBothCounted: both nodes die. One has
// lines of a client on its disk of which the other has the first, as they were
// shipped, and was not told that they are on both. The client sends all of them to
// that one, and then the first is back. It fails if the second counts only what
// was shipped, and not what the first brings, which stands behind it.
func TestWhatADeadNodeShippedAndWhatItCouldNotAreBothCounted(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	var held sync.Mutex
	begins := func(n *node, patience time.Duration) {
		n.make(t, all, filepath.Join(filepath.Dir(n.dir), "pki-"+n.name))
		n.replicaPatience = patience
		if n == first {
			n.wrap = func(f journal.File) journal.File { return stoppedDisk{f, &held} }
		}
		n.start(t)
	}
	begins(second, time.Minute)
	begins(first, time.Minute)
	first.send(t, 0, 10) // both have these
	c, err := dial(netip.AddrPortFrom(first.addr, testRELP).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	held.Lock()
	release := sync.OnceFunc(held.Unlock)
	defer release()
	before := second.journal.End()
	var lines []byte
	for n := 10; n < 15; n++ {
		lines = c.session.AppendLine(lines, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn01 test: seq=%d.", n))
	}
	if _, err := c.conn.Write(lines); err != nil {
		t.Fatal(err)
	}
	second.grows(t, before, 5) // shipped, and not known to be on both
	second.end()
	before = first.journal.End()
	release()
	for n := 15; n < 20; n++ {
		c.line(t, n)
	}
	first.grows(t, before, 10)
	first.end()
	if c.acked != 0 {
		t.Fatalf("%d lines were answered", c.acked)
	}
	begins(second, 100*time.Millisecond)
	second.send(t, 10, 20)
	begins(first, time.Minute)
	second.caught(t)
	for _, n := range all {
		eventually(t, 20*time.Second, "all lines are in the files of "+n.name, func() error {
			got := n.files(t)
			slices.Sort(got)
			if len(got) != 40 || len(slices.Compact(got)) != 30 {
				return fmt.Errorf("%d lines", len(got))
			}
			return nil
		})
		eventually(t, 20*time.Second, n.name+" counts what is twice in its files", func() error {
			if got, counted := n.Status().Doubled, testutil.ToFloat64(n.metrics.doubled); got != 10 || counted != 10 {
				return fmt.Errorf("there are 10 lines, its status says %d, its metric %v", got, counted)
			}
			return nil
		})
	}
}
