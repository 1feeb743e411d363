package logrelay

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/logrelay/journal"
)

// arriving is a node's connection to a relay whose disk syncs when the test says
// so. It lives in a bubble of synctest.
type arriving struct {
	*Server
	there net.Conn
	from  greeting
	syncs chan error
	next  uint64 // number of the next shipment
}

func newArriving(t *testing.T, dir string) (a *arriving, end func()) {
	t.Helper()
	return newArrivingBy(t, dir, func(conn net.Conn) replicaConn { return conn })
}

// newArrivingBy is newArriving by a connection that the test stands in.
func newArrivingBy(t *testing.T, dir string, by func(net.Conn) replicaConn) (a *arriving, end func()) {
	t.Helper()
	a = &arriving{from: greeting{[16]byte{1}, "fb1"}, syncs: make(chan error)}
	j, err := journal.Open(journal.Config{Dir: dir, Wrap: func(f journal.File) journal.File { return syncDisk{f, a.syncs} }})
	if err != nil {
		t.Fatal(err)
	}
	a.Server = &Server{gate: newGate(), arrivals: newArrivals(), recent: newRecent(), journal: j, log: slog.New(slog.DiscardHandler)}
	a.arrivals.reset(time.Now())
	if a.held, err = openReplicas(dir, j, a.recent); err != nil {
		t.Fatal(err)
	}
	if a.metrics, err = newMetrics(prometheus.NewRegistry(), func() float64 { return 0 }); err != nil {
		t.Fatal(err)
	}
	stop := begin(t.Context(), func(ctx context.Context) { _ = j.Run(ctx) })
	here, there := net.Pipe()
	a.there = there
	var group sync.WaitGroup
	group.Go(func() { _ = newIntake(a.Server, a.from, by(here)).run(t.Context()); _ = here.Close() })
	group.Go(func() { _, _ = io.Copy(io.Discard, there) })
	synctest.Wait()
	return a, func() {
		_ = there.Close()
		close(a.syncs)
		group.Wait()
		stop()
	}
}

// ship sends a line, and says that there is no more. It blocks until that is read.
func (a *arriving) ship() {
	var batch journal.Batch
	batch.Add(journal.Record{Time: 1, Input: viaRELP, Data: []byte("<13>Nov 25 12:00:00 cn01 test: x")})
	_, _ = a.there.Write(shipment{a.next, a.next + 1, 1, batch.Bytes()}.append(nil))
	a.next++
}

func (a *arriving) noMore() { _, _ = a.there.Write(shipment{first: a.next, end: a.next}.append(nil)) }

func (a *arriving) sync(t *testing.T) {
	t.Helper()
	select {
	case a.syncs <- nil:
	case <-time.After(time.Second):
		t.Fatal("nothing is to be synced")
	}
	synctest.Wait()
}

// comes begins a client's session; begun tells whether it has begun.
func (a *arriving) comes(t *testing.T) (begun func() bool) {
	over := make(chan struct{})
	go func() { a.arrivals.wait(t.Context(), nil); close(over) }()
	synctest.Wait()
	return func() bool {
		synctest.Wait()
		select {
		case <-over:
			return true
		default:
			return false
		}
	}
}

// TestABusyNodeHoldsNoClientBack: its next shipment is there before the last one
// is stored, at every moment. Who comes waits for what was said until then. It
// fails if a session waits for a moment in which nothing is on its way, and if one
// begins by what was said before it came.
func TestABusyNodeHoldsNoClientBack(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, end := newArriving(t, dir)
		defer end()
		pause := func() { <-time.After(2 * arrivalsWaited) }
		pause()
		a.ship()
		a.sync(t) // the segment's header
		a.noMore()
		pause()
		begun := a.comes(t)
		pause()
		a.ship() // may have the client's older lines
		a.sync(t)
		if next := a.held.of(a.from); next != 1 || begun() {
			t.Fatalf("%d shipments are stored, want 1; the session begins by what was said before it: %v", next, begun())
		}
		pause()
		a.noMore()
		a.ship()
		a.sync(t)
		if next := a.held.of(a.from); next != 2 || !begun() {
			t.Errorf("%d shipments are stored, want 2; the session has begun: %v", next, begun())
		}
		later := a.comes(t)
		if later() {
			t.Error("who comes later does not wait")
		}
		a.sync(t)
	})
}

// TestWhatWaitsToBeReadIsOlderThanItsReading: the receiver's disk is so slow that
// shipments stand in the sockets when the client comes. Its older lines may be in
// the last of them. It fails if the time at which it is read that there is no more
// is taken for the time at which that was said.
func TestWhatWaitsToBeReadIsOlderThanItsReading(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, end := newArriving(t, dir)
		const shipments = 3 * intakeAhead
		var group sync.WaitGroup
		defer func() { end(); group.Wait() }()
		group.Go(func() {
			for range shipments {
				a.ship()
				a.noMore()
			}
		})
		synctest.Wait()
		<-time.After(100 * time.Millisecond)
		begun := a.comes(t)
		for stored := uint64(0); stored < shipments; stored = a.held.of(a.from) {
			if begun() {
				t.Errorf("the session begins when %d shipments of %d are stored", stored, shipments)
				_ = a.there.Close() // ends what is still to be sent
				return
			}
			a.sync(t)
		}
		<-time.After(arrivalsQuiet)
		if !begun() {
			t.Error("all is stored, and the session does not begin")
		}
	})
}

// TestASlowDiskIsNoSilenceOfTheOtherNode: a sync takes longer than a node may say
// nothing, and the client's older lines wait for it. It fails if the session begins
// since nothing was read meanwhile.
func TestASlowDiskIsNoSilenceOfTheOtherNode(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, end := newArriving(t, dir)
		defer end()
		a.ship()
		a.noMore()
		begun := a.comes(t)
		a.sync(t) // the segment's header
		<-time.After(2 * arrivalsStall)
		if begun() {
			t.Error("the session begins in front of lines that are on their way to the disk")
		}
		a.sync(t)
		<-time.After(arrivalsQuiet)
		if next := a.held.of(a.from); next != 1 || !begun() {
			t.Errorf("%d shipments are stored, want 1; the session has begun: %v", next, begun())
		}
	})
}
