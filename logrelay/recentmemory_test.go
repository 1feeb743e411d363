package logrelay

import (
	"net/netip"
	"testing"

	"holdfast/logrelay/relp"
)

// TestASenderOfBothNodesCostsNoMemoryAnew: its lines come here and to another node in
// turns, as of a relay that has both for targets. It fails where each turn takes memory
// anew to compare the ones with the others, in the way of the journal's writer.
func TestASenderOfBothNodesCostsNoMemoryAnew(t *testing.T) {
	r := newRecent()
	r.pairs = true
	l := r.of(netip.MustParseAddr("10.1.0.31"))
	n := uint64(0)
	turn := func() {
		n += 2
		l.freshen(int64(n), n)
		l.came(true, int64(n), n+1)
	}
	for range 4 * relp.Window {
		turn()
	}
	if allocs := testing.AllocsPerRun(100, turn); allocs != 0 {
		t.Errorf("%v allocations a turn", allocs)
	}
}
