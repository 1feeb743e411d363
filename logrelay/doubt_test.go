package logrelay

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"holdfast/logrelay/journal"
)

// TestWhatIsShippedIsComparedOnceItIsOnBothDisks: what a node hears of one sender,
// in order. "ship" is of another node's shipment that is durable here, "brings" of
// one whose lines that node received before all else, "confirm"
// says that it is there as well, "lost" that its connection ended before; "own" are
// lines that came to this node, and "session" are the first frames of a client,
// of which so many are dropped; "close" is its clean end. It fails if lines that may be on one disk are
// dropped, if those on both are not, and if lines that are here twice are counted
// wrongly: after a power cut, a write that the other node's disk refused, or a
// confirmation that comes late or never.
func TestWhatIsShippedIsComparedOnceItIsOnBothDisks(t *testing.T) {
	for _, test := range []struct {
		name, script string
		dropped      int
		doubled      int
	}{
		{"on both", "ship a b c; confirm; session b c d", 2, 0},
		{"perhaps on one", "ship a; confirm; ship b c; session b c d", 0, 0},
		{"and the one before is on both", "ship a; confirm; ship b c; session a b c", 1, 0},
		{"the power went", "ship a; confirm; ship b c; lost; session b c d; own b c d", 0, 2},
		{"the power went, and lines in front come again", "ship a; confirm; ship b c; lost; own a b c d", 0, 3},
		{"they become known while they come here", "ship a; confirm; session b; ship b c; confirm; own b c d e; brings d", 0, 3},
		{"more becomes known before it is decided", "ship a; confirm; session b; ship b c d; confirm; own b; ship x; confirm; own c d", 0, 3},
		{"the client ends before it is decided", "session a; ship b c; confirm; own b; close; own c", 0, 0},
		{"a session does", "session a; ship b c; confirm; own b; session c; own c", 0, 0},
		{"other lines in front", "ship b c; lost; own d e b", 0, 1},
		{"only the beginning does", "ship b c; lost; own b d c", 0, 1},
		{"the disk refused, and they come there again", "ship b c; lost; ship b c d; confirm; session c d", 2, 2},
		{"the connection broke alone", "ship b c; lost; ship d e; confirm; session d e", 2, 0},
		{"it is confirmed late", "ship b c; own b; late; own c", 0, 2},
		{"another session's lines meanwhile", "ship b c; own x; late; own y", 0, 0},
		{"two cuts", "ship b; lost; own b; ship c d; lost; own c d", 0, 3},
		{"the rest comes there once more", "ship b c; lost; own b; ship c; confirm; own d", 0, 2},
		{"both were off for long", "ship b c; lost; hour; own b c", 0, 2},
		// The other node has more on its disk than it could ship, and brings that.
		{"what stood behind what was shipped", "ship b c; lost; own b c d e f; brings d e; confirm", 0, 4},
		{"and the client was told of the first", "ship b c; lost; own c d; brings d", 0, 2},
		{"and others in front were on both", "ship a b; confirm; session a; own a b c d; brings c d", 0, 2},
		{"but not these", "ship a b; confirm; session a; own a b c d e; brings c e d", 0, 1},
		{"it dies again before it says more", "own a b; brings a b; lost", 0, 2},
		{"this one had died, and that one does", "own a b c; ship b c; lost", 0, 2},
	} {
		r := newRecent()
		r.pairs = true
		source := netip.MustParseAddr("10.1.0.31")
		var newest *shipped
		dropped, doubled := 0, 0
		at := int64(0)
		for step := range strings.SplitSeq(test.script, "; ") {
			words := strings.Fields(step)
			at++
			switch what, lines := words[0], words[1:]; what {
			case "ship", "brings":
				newest = &shipped{end: uint64(at)}
				received := at
				if what == "brings" {
					received = 0
				}
				for _, text := range lines {
					newest.add(r, journal.Record{Time: received, Source: source, Input: viaRELP | viaOther, Data: []byte(text)})
				}
				doubled += r.doubt(newest)
			case "confirm", "late":
				r.confirm(newest)
			case "hour":
				at += int64(time.Hour)
			case "close":
				r.forget(source)
			case "lost":
				newest.over()
			case "own":
				for _, text := range lines {
					doubled += r.put(source, at, r.hash([]byte(text)))
				}
			case "session":
				first := r.resent(source, at)
				for i := 0; first != nil && i < len(lines); i++ {
					switch first.take(r.hash([]byte(lines[i]))) {
					case again:
						dropped, first = i+1, nil
					case unseen:
						first = nil
					case open:
					}
				}
			default:
				t.Fatal(fmt.Sprint("no step: ", what))
			}
		}
		if dropped != test.dropped || doubled != test.doubled {
			t.Errorf("%s: %d lines are dropped and %d counted as twice, want %d and %d", test.name, dropped, doubled, test.dropped, test.doubled)
		}
		for _, l := range r.senders {
			if n := len(l.doubts.open.hashes) + len(l.doubts.left.hashes); n > 128 {
				t.Errorf("%s: %d are remembered", test.name, n)
			}
		}
	}
}
