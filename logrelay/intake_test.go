package logrelay

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// deafConn is a connection of which only so many answers can be written.
type deafConn struct {
	net.Conn
	left int
}

func (c *deafConn) Write(b []byte) (int, error) {
	if c.left--; c.left < 0 {
		return 0, errors.New("a test's connection that hears nothing")
	}
	return c.Conn.Write(b)
}

// TestWhatIsOnItsWayToTheDiskIsNotedThoughNobodyHearsOfIt: four shipments are read
// while the disk has the first, whose answer then fails. All four reach the disk with
// their marks. It fails if the process has less than a start would read of these: the
// others would come again, or, where their numbers are given to other lines meanwhile,
// those would never.
func TestWhatIsOnItsWayToTheDiskIsNotedThoughNobodyHearsOfIt(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, end := newArrivingBy(t, dir, func(conn net.Conn) replicaConn { return &deafConn{conn, 1} }) // how far it has come
		const shipments = 4
		for range shipments {
			a.ship()
			synctest.Wait() // the first is alone on its way to the disk
		}
		a.sync(t) // the segment's header
		a.sync(t) // the first
		if next := a.held.of(a.from); next != 1 {
			t.Errorf("%d shipments are stored, want 1", next)
		}
		a.sync(t) // the others
		end()
		later, err := openReplicas(dir, a.journal, newRecent())
		if err != nil {
			t.Fatal(err)
		}
		if known, marked := a.held.of(a.from), later.of(a.from); known != shipments || marked != shipments {
			t.Errorf("lines before %d are known to be here, and before %d by the marks; want %d", known, marked, shipments)
		}
		if n := testutil.ToFloat64(a.metrics.replicated); n != shipments {
			t.Errorf("%v lines are counted, want %d", n, shipments)
		}
	})
}
