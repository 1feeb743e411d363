package logrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/peer"
	"holdfast/logrelay/journal"
)

// node is one of a few relays that hold each other's lines.
type node struct {
	*Server
	name  string
	addr  netip.Addr
	dir   string
	board *health.Board
	up    atomic.Bool // as gossip would say
	stop  func()
}

// nodes makes relays on loopback addresses of their own. All name all others;
// none runs.
func nodes(t *testing.T, names ...string) (list []*node) {
	t.Helper()
	dir := t.TempDir()
	if err := peer.Init(filepath.Join(dir, "ca"), "foobar"); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		n := &node{name: name, addr: netip.AddrFrom4([4]byte{127, 0, 7, byte(i + 1)}), dir: filepath.Join(dir, name)}
		if err := peer.Issue(filepath.Join(dir, "ca"), filepath.Join(dir, "pki-"+name), peer.Request{Identity: peer.Identity{Name: name, Role: peer.RoleServer}}); err != nil {
			t.Fatal(err)
		}
		list = append(list, n)
	}
	for _, n := range list {
		n.make(t, list, filepath.Join(dir, "pki-"+n.name))
	}
	return list
}

// make makes the server, once more after a stop.
func (n *node) make(t *testing.T, all []*node, pki string) {
	t.Helper()
	trust, err := peer.Load(pki)
	if err != nil {
		t.Fatal(err)
	}
	n.board = health.NewBoard(time.Now, nil, nil)
	s, err := New(Config{
		Node: n.name, DataDir: n.dir, Dir: filepath.Join(n.dir, "hosts"),
		Listen: map[string][]netip.AddrPort{"relp": {netip.AddrPortFrom(n.addr, testRELP)}, "replica": {netip.AddrPortFrom(n.addr, testReplica)}},
	}, Deps{
		File: cluster.Single(n.name, n.addr), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Board: n.board,
		ReplicaTLS: trust.Server(peer.RoleServer), PeerTLS: trust.Client,
		Others: func() (list []Other) {
			for _, o := range all {
				if o != n && o.up.Load() {
					list = append(list, Other{o.name, o.addr})
				}
			}
			return list
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	settled(s)
	s.settings.replicas, s.replicaPatience, s.replicaPort = 2, 300*time.Millisecond, testReplica
	n.Server = s
}

// Ports of the nodes; their addresses are nobody else's.
const (
	testRELP    = 20714
	testReplica = 20715
)

func (n *node) start(t *testing.T) {
	t.Helper()
	n.stop = run(t, n.Server)
	n.up.Store(true)
}

func (n *node) end() {
	n.up.Store(false)
	n.stop()
}

// send sends lines with numbers by RELP; each is acknowledged when it returns.
func (n *node) send(t *testing.T, from, count int) {
	t.Helper()
	c, err := dial(netip.AddrPortFrom(n.addr, testRELP).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	_ = c.conn.SetDeadline(time.Now().Add(time.Minute))
	for i := range count {
		if _, err := c.conn.Write(c.session.AppendLine(nil, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn01 test: seq=%d.", from+i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.read(0); err != nil || c.acked != count {
		t.Fatalf("%d of %d acknowledged: %v", c.acked, count, err)
	}
}

// stored tells whether a line is on the node's disk, in its journal.
func (n *node) stored(t *testing.T, number int) bool {
	t.Helper()
	p := process{t: t, dir: n.dir}
	return p.stored(number)
}

func (n *node) files(t *testing.T) []int {
	t.Helper()
	p := process{t: t, dir: n.dir}
	return p.numbers("cn01")
}

func (n *node) condition() bool {
	return slices.ContainsFunc(n.board.Conditions(), func(c health.Condition) bool { return c.Name == conditionAlone })
}

// greeted waits until another node has connected: it tries once a second, and who
// comes within three seconds of a start waits for that.
func (n *node) greeted(t *testing.T, by *node) {
	t.Helper()
	eventually(t, time.Minute, by.name+" has connected to "+n.name, func() error {
		n.arrivals.mu.Lock()
		defer n.arrivals.mu.Unlock()
		if !n.arrivals.greeted[by.name] {
			return errors.New("it has not")
		}
		return nil
	})
}

// caught waits until the node has no condition about replicas.
func (n *node) caught(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, n.name+" has a node that takes its lines", func() error {
		if n.condition() {
			return fmt.Errorf("%v", n.board.Conditions())
		}
		return nil
	})
}

func TestAcknowledgedMeansOnTwoDisks(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	first.replicaPatience, second.replicaPatience = time.Minute, time.Minute
	second.start(t)
	first.start(t)
	for round := range 20 {
		first.send(t, round*10, 10)
		for i := range 10 {
			// At this moment, not soon: the answer has been read.
			if n := round*10 + i; !second.stored(t, n) {
				t.Fatalf("line %d is acknowledged and not on the second disk", n)
			}
		}
	}
	second.send(t, 200, 10)
	if !first.stored(t, 209) {
		t.Error("a line that the second took is not with the first")
	}
	for _, n := range all {
		eventually(t, time.Minute, n.name+" has all lines in its files, once", func() error {
			got := n.files(t)
			slices.Sort(got)
			if len(got) != 210 || len(slices.Compact(got)) != 210 {
				return fmt.Errorf("%d lines", len(got))
			}
			return nil
		})
	}
	if first.condition() || second.condition() {
		t.Errorf("conditions: %v, %v", first.board.Conditions(), second.board.Conditions())
	}
}

func TestALoneNodeDegradesAndSaysSoUntilAnotherHasCaughtUp(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	first.start(t)
	first.send(t, 0, 50) // acknowledged, after the patience
	if !first.condition() {
		t.Error("no condition though no other node has the lines")
	}
	second.start(t)
	first.caught(t)
	first.replicas.mu.Lock()
	if first.replicas.alone {
		t.Error("lines are still acknowledged on one disk")
	}
	first.replicas.mu.Unlock()
	for n := range 50 {
		if !second.stored(t, n) {
			t.Fatalf("the condition is gone and line %d is not with the other node", n)
		}
	}
}

func TestUnderTheWaitPolicyNothingIsAcknowledgedAlone(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	first.settings.wait = true
	first.start(t)
	c, err := dial(netip.AddrPortFrom(first.addr, testRELP).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	if _, err := c.conn.Write(c.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 cn01 test: seq=1."))); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "a condition", func() error {
		if !first.condition() {
			return fmt.Errorf("none")
		}
		return nil
	})
	if _, err := c.conn.Write(nil); err != nil || c.acked != 0 {
		t.Fatalf("%d acknowledged, %v", c.acked, err)
	}
	second.start(t)
	if err := c.read(0); err != nil || c.acked != 1 || !second.stored(t, 1) {
		t.Errorf("%d acknowledged, %v, with the other node: %v", c.acked, err, second.stored(t, 1))
	}
	first.caught(t)
}

func TestAfterAnOutageTheOtherNodeGetsWhatItLacksOnce(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	second.start(t)
	first.start(t)
	for round := range 3 {
		first.send(t, round*100, 50)
		second.end()
		first.send(t, round*100+50, 50) // alone
		second.make(t, all, filepath.Join(filepath.Dir(second.dir), "pki-fb2"))
		second.start(t)
		first.caught(t)
	}
	eventually(t, time.Minute, "all lines are in the other's files, once and in order", func() error {
		got := second.files(t)
		if len(got) != 300 || !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != 300 {
			return fmt.Errorf("%d lines, in order: %v", len(got), slices.IsSorted(got))
		}
		return nil
	})
}

// TestTheReceiverKnowsWhatItHasThoughTheSenderForgot: a sender that died before
// it wrote down what the other has asks, and sends none of it twice.
func TestTheReceiverKnowsWhatItHasThoughTheSenderForgot(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	second.start(t)
	first.start(t)
	first.caught(t)
	cursor := filepath.Join(first.dir, "logs", "cursor-replica")
	before, err := os.ReadFile(cursor)
	if err != nil {
		t.Fatal(err)
	}
	first.send(t, 0, 50)
	first.end()
	second.end()
	if err := os.WriteFile(cursor, before, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{second, first} {
		n.make(t, all, filepath.Join(filepath.Dir(n.dir), "pki-"+n.name))
		n.start(t)
	}
	first.caught(t)
	first.send(t, 50, 10)
	eventually(t, time.Minute, "the other has all lines in its files, once", func() error {
		got := second.files(t)
		if len(got) != 60 || len(missing(got, 60)) > 0 {
			return fmt.Errorf("%d lines of 60", len(got))
		}
		return nil
	})
}

// TestAWipedDiskIsAnotherJournal: its lines have the numbers of the one before,
// and are not taken for those.
func TestAWipedDiskIsAnotherJournal(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	second.start(t)
	first.start(t)
	first.caught(t)
	first.send(t, 0, 50)
	second.end()
	first.end()
	if err := os.RemoveAll(first.dir); err != nil {
		t.Fatal(err)
	}
	first.make(t, all, filepath.Join(filepath.Dir(first.dir), "pki-fb1"))
	first.start(t)
	first.send(t, 1000, 60) // alone
	second.make(t, all, filepath.Join(filepath.Dir(second.dir), "pki-fb2"))
	second.start(t)
	first.caught(t)
	for n := 1000; n < 1060; n++ {
		if !second.stored(t, n) {
			t.Fatalf("line %d is not with the other node, which says that it has all", n)
		}
	}
}

func TestTheNextNodeTakesLinesWhenTheFirstIsGone(t *testing.T) {
	all := nodes(t, "fb1", "fb2", "fb3")
	for _, n := range slices.Backward(all) {
		n.replicaPatience = time.Minute
		n.start(t)
	}
	all[0].send(t, 0, 10)
	all[1].end()
	all[0].send(t, 10, 20)
	for n := 10; n < 30; n++ {
		if !all[2].stored(t, n) {
			t.Errorf("line %d is on one disk alone", n)
		}
	}
}

// TestAnEndDoesNotWaitForANodeThatDoesNotCome: under the wait policy, with a
// line that is not answered.
func TestAnEndDoesNotWaitForANodeThatDoesNotCome(t *testing.T) {
	first := nodes(t, "fb1", "fb2")[0]
	first.settings.wait = true
	first.start(t)
	c, err := dial(netip.AddrPortFrom(first.addr, testRELP).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	if _, err := c.conn.Write(c.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 cn01 test: seq=1."))); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the line waits", func() error {
		if !first.condition() {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	began := time.Now()
	first.end()
	if took := time.Since(began); took > answerWithin/2 {
		t.Errorf("the end took %v", took)
	}
	if err := c.read(0); err == nil || c.acked != 0 {
		t.Errorf("%d acknowledged, %v", c.acked, err)
	}
}

func TestAStrangerCanNotShipLines(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	all[1].start(t)
	stranger := nodes(t, "fb1")[0] // of another authority
	s := &shipper{node: "fb1", port: testReplica, tls: stranger.deps.PeerTLS}
	if err := s.ship(context.Background(), Other{"fb2", all[1].addr}, func() {}); err == nil {
		t.Error("it was taken")
	}
	s.tls = all[1].deps.PeerTLS // fb2 says that it is fb1
	j := newJournal(t)
	s.journal, s.log = j, slog.New(slog.DiscardHandler)
	cursor, err := j.Cursor("replica", false)
	if err != nil {
		t.Fatal(err)
	}
	s.cursor = cursor
	if err := s.ship(context.Background(), Other{"fb2", all[1].addr}, func() {}); err == nil {
		t.Error("a node was taken for another")
	}
}

// TestAClientThatMovedHasItsOlderLinesFirst: the address comes to a node that
// lacks most of what the other one stored, and gets it from a disk that is slow.
// The client was not told of its last lines, and sends them again.
func TestAClientThatMovedHasItsOlderLinesFirst(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	first.start(t)
	const rounds, each = 40, 25
	for round := range rounds {
		first.send(t, round*each, each) // alone, after the first
	}
	second.wrap = func(f journal.File) journal.File {
		return badDisk{f, 30 * time.Millisecond, new(atomic.Bool), new(atomic.Int64)}
	}
	second.start(t)
	second.greeted(t, first)
	const stored = rounds * each
	second.send(t, stored-10, 60)
	eventually(t, time.Minute, "all lines are in the second's files, once and in order", func() error {
		got := second.files(t)
		if len(got) != stored+50 || !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
			return fmt.Errorf("%d lines of %d, in order: %v", len(got), stored+50, slices.IsSorted(got))
		}
		return nil
	})
}

// TestANodeThatNeverCatchesUpHoldsClientsBackForATimeOnly, nor one that lost its
// power in the midst of it, nor one that is alive and sends its lines to a third.
func TestANodeThatNeverCatchesUpHoldsClientsBackForATimeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		others := func() []Other { return []Other{{Name: "fb2"}, {Name: "fb3"}} }
		a := newArrivals()
		a.reset(time.Now())
		took := func(what string, want time.Duration, names ...string) {
			t.Helper()
			began := time.Now()
			if late := a.wait(t.Context(), others); !slices.Equal(late, names) {
				t.Errorf("%s: waited for %q in vain, want %q", what, late, names)
			}
			if took := time.Since(began); took != want {
				t.Errorf("%s: waited for %v, want %v", what, took, want)
			}
		}
		two := a.stream("fb2")
		two.hears(false)
		took("a start, and fb3 never comes", arrivalsStart)
		took("nothing is on its way", 0)
		two.hears(true)
		took("fb2 lost its power", arrivalsStall)
		two.hears(true)
		ended := make(chan struct{})
		time.AfterFunc(time.Second, func() { two.hears(false); close(ended) })
		took("fb2 has sent all", time.Second)
		<-ended
		stop := begin(t.Context(), func(ctx context.Context) {
			busy := time.NewTicker(time.Second)
			defer busy.Stop()
			for {
				select {
				case <-busy.C:
					two.hears(true)
				case <-ctx.Done():
					return
				}
			}
		})
		two.hears(true)
		again := a.stream("fb2") // another connection of it, which has sent all
		again.hears(false)
		took("fb2 never catches up", arrivalsMost, "fb2")
		stop()
		two.hears(false)
		took("its connection is over", 0)
		a.reset(time.Now())
		gone, end := context.WithCancel(t.Context())
		end()
		if late := a.wait(gone, others); late != nil {
			t.Errorf("an end waits for %q", late)
		}
	})
}
