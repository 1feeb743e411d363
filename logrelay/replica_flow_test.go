package logrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/logrelay/journal"
)

// holdDisk is a journal's file whose syncs wait while they are held.
type holdDisk struct {
	journal.File
	holds *holds
}

type holds struct {
	mu   sync.Mutex
	free chan struct{} // nil: nothing is held
}

func (h *holds) hold() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.free = make(chan struct{})
}

func (h *holds) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.free != nil {
		close(h.free)
		h.free = nil
	}
}

func (d holdDisk) Datasync() error {
	d.holds.mu.Lock()
	free := d.holds.free
	d.holds.mu.Unlock()
	if free != nil {
		<-free
	}
	return d.File.Datasync()
}

// heldPair are two nodes whose disks can be held, with a client of the first
// that was answered a line.
func heldPair(t *testing.T) (first, second *node, one, two *holds, c *sender) {
	t.Helper()
	all := nodes(t, "fb1", "fb2")
	first, second, one, two = all[0], all[1], &holds{}, &holds{}
	first.replicaPatience, second.replicaPatience = time.Minute, time.Minute
	first.wrap = func(f journal.File) journal.File { return holdDisk{f, one} }
	second.wrap = func(f journal.File) journal.File { return holdDisk{f, two} }
	second.start(t)
	first.start(t)
	t.Cleanup(func() { one.release(); two.release() }) // before the nodes end
	c, err := dial(netip.AddrPortFrom(first.addr, testRELP).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.conn.Close() })
	c.line(t, 0)
	if err := c.read(0); err != nil || c.acked != 1 {
		t.Fatalf("%d acknowledged, %v", c.acked, err)
	}
	return first, second, one, two, c
}

func (s *sender) line(t *testing.T, n int) {
	t.Helper()
	if _, err := s.conn.Write(s.session.AppendLine(nil, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn01 test: seq=%d.", n))); err != nil {
		t.Fatal(err)
	}
}

// silent tells whether no answer comes for a moment.
func (s *sender) silent(t *testing.T) {
	t.Helper()
	before := s.acked
	_ = s.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if err := s.read(0); !errors.Is(err, os.ErrDeadlineExceeded) || s.acked != before {
		t.Errorf("%d lines are acknowledged with one disk, %v", s.acked-before, err)
	}
	_ = s.conn.SetReadDeadline(time.Time{})
}

// grows waits until so many lines more than before are durable on a node.
func (n *node) grows(t *testing.T, before uint64, lines int) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("%d lines are on the disk of %s", lines, n.name), func() error {
		if end := n.journal.End(); end < before+uint64(lines) {
			return fmt.Errorf("%d", end-before)
		}
		return nil
	})
}

// TestALineGoesToBothDisksAtOnce, and is acknowledged when it is on both,
// whichever is the slower. It fails if the other node waits for the first's
// sync, or the answer does not wait for either.
func TestALineGoesToBothDisksAtOnce(t *testing.T) {
	first, second, one, two, c := heldPair(t)
	for n, disk := range []struct {
		held *holds
		well *node
	}{{one, second}, {two, first}, {one, second}} {
		disk.held.hold()
		before := disk.well.journal.End()
		c.line(t, n+1)
		disk.well.grows(t, before, 1)
		c.silent(t)
		disk.held.release()
		if err := c.read(0); err != nil || c.acked != n+2 {
			t.Fatalf("%d acknowledged, %v", c.acked, err)
		}
	}
}

// TestLinesFollowWhileThoseBeforeWaitForTheOtherNode: a client with room in its
// window is read, and its lines are stored, before it is answered. It fails if a
// connection waits for its answer before it reads on.
func TestLinesFollowWhileThoseBeforeWaitForTheOtherNode(t *testing.T) {
	first, second, _, two, c := heldPair(t)
	two.hold()
	before := first.journal.End()
	const lines = 5
	for n := range lines {
		c.line(t, n+1)
		first.grows(t, before, n+1)
	}
	c.silent(t)
	two.release()
	if err := c.read(0); err != nil || c.acked != lines+1 { // it refuses answers out of order
		t.Fatalf("%d acknowledged, %v", c.acked, err)
	}
	for n := range lines + 1 {
		if !second.stored(t, n) {
			t.Errorf("line %d is not with the other node", n)
		}
	}
}

// TestWhoNeverReadsAnswersIsNotReadForEver: some windows of lines wait for the
// other node, and no more are taken of one client. It fails if nothing bounds
// them.
func TestWhoNeverReadsAnswersIsNotReadForEver(t *testing.T) {
	first, _, _, two, c := heldPair(t)
	two.hold()
	before := first.journal.End()
	const lines = 20 * mostWaiting
	go func() { // it blocks when the sockets are full
		var b []byte
		for n := range lines {
			b = c.session.AppendLine(b, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn01 test: seq=%d.", n+1))
		}
		_, _ = c.conn.Write(b)
	}()
	first.grows(t, before, mostWaiting)
	first.still(t)
	// What was read at once goes into one append.
	if taken, most := first.journal.End()-before, uint64(mostWaiting+2*windowBuffer/40); taken > most {
		t.Errorf("%d lines of one client wait, want %d at most", taken, most)
	}
}

// still waits until nothing more has become durable for a while.
func (n *node) still(t *testing.T) {
	t.Helper()
	last, since := n.journal.End(), time.Now()
	eventually(t, time.Minute, n.name+" takes no more", func() error {
		if end := n.journal.End(); end != last {
			last, since = end, time.Now()
		}
		if time.Since(since) < 300*time.Millisecond {
			return errors.New("it does")
		}
		return nil
	})
}

// TestNumbersOfLinesThatPowerTookAreNotTakenForTheirs: lines were with the other
// node when a power cut took them from this one's disk. Those that come next have
// their numbers, and are not what the other one has. It fails if the node
// believes the other's word of what it has.
func TestNumbersOfLinesThatPowerTookAreNotTakenForTheirs(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	begins := func() {
		first.make(t, all, filepath.Join(filepath.Dir(first.dir), "pki-fb1"))
		first.replicaPatience = time.Minute
		first.start(t)
	}
	second.start(t)
	begins()
	first.send(t, 0, 10)
	first.end()
	logs, saved := filepath.Join(first.dir, "logs"), filepath.Join(t.TempDir(), "logs")
	if err := os.CopyFS(saved, os.DirFS(logs)); err != nil {
		t.Fatal(err)
	}
	begins()
	first.send(t, 10, 30)
	first.end()
	if err := os.RemoveAll(first.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(logs, os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}
	begins()
	for round := range 10 {
		first.send(t, 100+round*5, 5)
		for n := 100 + round*5; n < 105+round*5; n++ {
			if !second.stored(t, n) {
				t.Fatalf("line %d is acknowledged and not on the second disk", n)
			}
		}
	}
}

// TestWhatANodeIsToldItHas: once it has stored lines since we began, all of it;
// before that, no more than what we had on our disk then.
func TestWhatANodeIsToldItHas(t *testing.T) {
	j := newJournal(t)
	cursor, err := j.Cursor("replica", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := cursor.Commit(40); err != nil {
		t.Fatal(err)
	}
	s := &shipper{journal: j, cursor: cursor, renumbered: &renumbered{keptNumbers: keptNumbers{Base: 100, Nodes: map[string]uint64{"fb3": math.MaxUint64}}}}
	for _, test := range []struct {
		node string
		next uint64
		want uint64
	}{{"fb2", 0, 40}, {"fb2", 30, 40}, {"fb2", 90, 90}, {"fb2", 130, 100}, {"fb3", 130, 130}, {"fb3", 0, 40}} {
		if got := s.begins(test.node, test.next); got != test.want {
			t.Errorf("%s has all before %d: it is sent those from %d on, want %d", test.node, test.next, got, test.want)
		}
	}
}

// TestANodesLinesComeByOneConnection: the one before is over, and nothing of it
// under way, when the next begins.
func TestANodesLinesComeByOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &heldReplicas{takers: map[string]*taker{}}
		before, over := h.alone(t.Context(), "fb1")
		_, other := h.alone(t.Context(), "fb2")
		defer other()
		if before.Err() != nil {
			t.Error("another node's connection ends it")
		}
		begun := make(chan context.Context, 1)
		var end func()
		go func() {
			next, release := h.alone(t.Context(), "fb1")
			end = release
			begun <- next
		}()
		synctest.Wait()
		if before.Err() == nil {
			t.Error("the connection before goes on")
		}
		select {
		case <-begun:
			t.Error("the next begins while lines of the one before are under way")
		default:
		}
		over()
		if next := <-begun; next.Err() != nil {
			t.Error("the end of the connection before ends the next")
		}
		end()
		if len(h.takers) != 1 {
			t.Errorf("%d are left", len(h.takers))
		}
	})
}

// syncDisk is a journal's file whose syncs end as the test says.
type syncDisk struct {
	journal.File
	ends chan error
}

func (d syncDisk) Datasync() error {
	if err := <-d.ends; err != nil {
		return err
	}
	return d.File.Datasync()
}

// TestAMarkDoesNotPassLinesThatTheDiskRefused: two shipments are on their way to
// the disk when the sync of the first fails. It fails if the second is stored,
// since its mark says that the first is there.
func TestAMarkDoesNotPassLinesThatTheDiskRefused(t *testing.T) {
	dir := t.TempDir()
	from := greeting{[16]byte{1}, "fb1"}
	synctest.Test(t, func(t *testing.T) {
		ends := make(chan error)
		j, err := journal.Open(journal.Config{Dir: dir, Wrap: func(f journal.File) journal.File { return syncDisk{f, ends} }})
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{gate: newGate(), arrivals: newArrivals(), recent: newRecent(), journal: j, log: slog.New(slog.DiscardHandler)}
		s.arrivals.reset(time.Now())
		s.held, err = openReplicas(dir, j, s.recent)
		if err != nil {
			t.Fatal(err)
		}
		if s.metrics, err = newMetrics(prometheus.NewRegistry(), func() float64 { return 0 }); err != nil {
			t.Fatal(err)
		}
		end := begin(t.Context(), func(ctx context.Context) { _ = j.Run(ctx) })
		here, there := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- newIntake(s, from, here).run(t.Context()) }()
		var answer [8]byte
		if _, err := io.ReadFull(there, answer[:]); err != nil {
			t.Fatal(err)
		}
		for n := range uint64(2) {
			var batch journal.Batch
			batch.Add(journal.Record{Time: 1, Input: viaRELP, Data: []byte("<13>Nov 25 12:00:00 cn01 test: x")})
			if _, err := there.Write(shipment{n, n + 1, 1, batch.Bytes()}.append(nil)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if n == 0 {
				ends <- nil // of the segment's header
				synctest.Wait()
			}
		}
		ends <- syscall.EIO
		if err := <-ended; !errors.Is(err, syscall.EIO) {
			t.Errorf("%v", err)
		}
		close(ends)
		end()
		_ = there.Close()
	})
	j, err := journal.Open(journal.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	known := newRecent()
	held, err := openReplicas(dir, j, known)
	if err != nil {
		t.Fatal(err)
	}
	if len(known.senders) > 0 {
		t.Error("a line is stored")
	}
	if next := held.of(from); next != 0 {
		t.Errorf("after a start all before %d are said to be here, and none is", next)
	}
}
