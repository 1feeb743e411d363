package logrelay

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/logrelay/journal"
)

// TestUpToWhereANodeIsBelieved: over starts at which the journal has less than a
// node was sent, and more again. It fails if a start forgets one before, or if a
// node that has stored lines since is believed no more than before.
func TestUpToWhereANodeIsBelieved(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	believed := func(what string, r *renumbered, fb2, fb3 uint64) {
		t.Helper()
		if got2, got3 := r.before("fb2"), r.before("fb3"); got2 != fb2 || got3 != fb3 {
			t.Errorf("%s: fb2 is believed up to %d and fb3 up to %d, want %d and %d", what, got2, got3, fb2, fb3)
		}
	}
	r := openRenumbered(dir, 100, log)
	believed("the first start", r, 100, 100)
	r.agrees("fb2")
	believed("fb2 has stored lines", r, math.MaxUint64, 100)
	believed("after a power cut", openRenumbered(dir, 150, log), 150, 100)
	r = openRenumbered(dir, 180, log)
	believed("with other lines of the same numbers", r, 150, 100)
	r.agrees("fb2")
	r.agrees("fb3")
	believed("both have stored lines", openRenumbered(dir, 200, log), 200, 200)
	if err := os.WriteFile(filepath.Join(dir, renumberedFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	believed("the file is damaged", openRenumbered(dir, 200, log), 0, 0)
}

// TestLinesWithTheNumbersOfLostOnesReachTheOtherNode: a node shipped lines, lost them
// with its power, and gave their numbers to others while the other node was away.
// Then it starts once more, and these are on its disk like any. It fails if the
// other is believed to have them, since it has the first ones of these numbers.
func TestLinesWithTheNumbersOfLostOnesReachTheOtherNode(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	disk := &power{}
	begins := func(n *node, patience time.Duration) {
		n.make(t, all, filepath.Join(filepath.Dir(n.dir), "pki-"+n.name))
		n.replicaPatience = patience
		n.start(t)
	}
	begins(second, time.Minute)
	first.replicaPatience = time.Minute
	first.wrap = func(f journal.File) journal.File { return cutDisk{f, disk} }
	first.start(t)
	first.send(t, 0, 10)
	logs, saved := filepath.Join(first.dir, "logs"), filepath.Join(t.TempDir(), "logs")
	copyRunning(t, saved, logs)
	c, err := dial(netip.AddrPortFrom(first.addr, testRELP).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	before, cut := second.journal.End(), disk.fails()
	t.Cleanup(cut) // before the node ends
	var lines []byte
	for n := 100; n < 130; n++ {
		lines = c.session.AppendLine(lines, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn01 test: seq=%d.", n))
	}
	if _, err := c.conn.Write(lines); err != nil {
		t.Fatal(err)
	}
	second.grows(t, before, 30)
	second.end()
	cut()
	first.end()
	if err := errors.Join(os.RemoveAll(first.dir), os.CopyFS(logs, os.DirFS(saved))); err != nil {
		t.Fatal(err)
	}
	begins(first, 100*time.Millisecond)
	first.send(t, 10, 50) // by another client, with the numbers of those
	first.end()
	begins(first, 100*time.Millisecond)
	begins(second, time.Minute)
	eventually(t, 10*time.Second, "the second has all lines", func() error {
		if lost := missing(second.files(t), 60); len(lost) > 0 {
			return fmt.Errorf("%v are missing", lost)
		}
		return nil
	})
}
