package logrelay

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
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
// shipped, and was not told that they are on both. No answer comes to the client, it
// sends all of them to that one, and then the first is back. It fails if the second counts only what
// was shipped, and not what the first brings, which stands behind it, or if the first
// answers what it has alone.
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
	_ = c.conn.SetReadDeadline(time.Now().Add(time.Minute)) // it ends with the node
	_ = c.read(0)
	// Of the others it was told before the second ended, if at all.
	if c.acked > 5 {
		t.Fatalf("%d lines were answered, and 5 are on both disks", c.acked)
	}
	begins(second, 100*time.Millisecond)
	second.send(t, 10, 20)
	begins(first, time.Minute)
	second.caught(t)
	for _, n := range all {
		n.hasTwice(t, 30, 10)
	}
}

// TestLinesSentAgainThatCanNotBeDroppedAreCounted: a session begins with the last
// lines that are stored of its client, and all are stored once more. It fails if
// they are counted as nothing, or as something else.
func TestLinesSentAgainThatCanNotBeDroppedAreCounted(t *testing.T) {
	const count = 12
	long := strings.Repeat("x", 120_000) // nine go beyond batchBytes
	for _, test := range []struct {
		name, text string
		old        bool
		again      []int // lines of the second session
		doubled    uint64
		suspected  float64
	}{
		{"too much to be held until it is known", long, false, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, count, 0},
		{"too much, and in the end other lines", long, false, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20}, 0, 10},
		{"too much, and nothing follows", long, false, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 0, 10},
		{"what is stored is old", "x", true, []int{8, 9, 10, 11, 12}, 0, 4},
		{"what is stored is old, and these are others", "x", true, []int{12, 13}, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, dir, _ := serve(t, nil)
			send := func(list []int) {
				t.Helper()
				c, err := dial(s.Addrs("relp")[0].String())
				if err != nil {
					t.Fatal(err)
				}
				_ = c.conn.SetDeadline(time.Now().Add(time.Minute))
				var b []byte
				for _, n := range list {
					b = c.session.AppendLine(b, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn1 test: seq=%d. %s", n, test.text))
				}
				if _, err := c.conn.Write(b); err != nil {
					t.Fatal(err)
				}
				if err := c.read(0); err != nil || c.acked != len(list) {
					t.Fatalf("%d of %d lines are answered: %v", c.acked, len(list), err)
				}
				_ = c.conn.Close()
				eventually(t, time.Minute, "the session is over", func() error {
					s.visits.mu.Lock()
					defer s.visits.mu.Unlock()
					if len(s.visits.here) > 0 {
						return fmt.Errorf("%d addresses have one", len(s.visits.here))
					}
					return nil
				})
			}
			var list []int
			for n := range count {
				list = append(list, n)
			}
			send(list)
			if test.old {
				s.recent.mu.Lock()
				for _, l := range s.recent.senders {
					l.time -= int64(recentFor) + 1
				}
				s.recent.mu.Unlock()
			}
			send(test.again)
			eventually(t, time.Minute, "the lines are in the file", func() error {
				b, err := os.ReadFile(filepath.Join(dir, "hosts", "cn1.log"))
				if n, want := strings.Count(string(b), "seq="), count+len(test.again); err == nil && n != want {
					return fmt.Errorf("%d lines, want %d", n, want)
				}
				return err
			})
			// What a session left undecided is counted as it ends.
			eventually(t, time.Minute, "what is twice is counted", func() error {
				doubled, suspected := s.Status().Doubled, testutil.ToFloat64(s.metrics.doubted)
				if doubled != test.doubled || suspected != test.suspected {
					return fmt.Errorf("%d lines are counted as twice and %v as suspected, want %d and %v", doubled, suspected, test.doubled, test.suspected)
				}
				return nil
			})
		})
	}
}

// TestWhatIsOldIsAskedForAtTheFirstLine: clients that connect anew and are silent
// have no list of what is stored of them. It fails if it is made as the session
// begins, or not at its first line, or if what is not old is taken for that.
func TestWhatIsOldIsAskedForAtTheFirstLine(t *testing.T) {
	s, source := &Server{recent: newRecent()}, netip.MustParseAddr("10.1.0.31")
	line := journal.Record{Time: 1, Source: source, Input: viaRELP, Data: []byte("a")}
	s.recent.add(line)
	s.recent.add(journal.Record{Time: 1, Source: source, Input: viaRELP, Data: []byte("b")})
	line.Time = int64(recentFor) + 2
	c := &relpConn{s: s, source: source}
	if c.compare(line.Time); c.fits.known != nil {
		t.Error("a session without a line has a list")
	}
	if c.line(line, 1); c.fits.known == nil || c.fits.due {
		t.Error("its first line is compared with nothing")
	}
	s.recent.add(journal.Record{Time: line.Time, Source: source, Input: viaRELP, Data: []byte("c")}) // another session's
	c = &relpConn{s: s, source: source, fits: fits{due: true}}
	if c.line(line, 1); c.fits.known != nil {
		t.Error("a line is compared with what is new as if it were old")
	}
}
