package logrelay

import (
	"slices"

	"holdfast/logrelay/relp"
)

// A node that dies has lines that its clients were not told of, and that no
// other node has. The clients send them again, to another node. When the dead
// one is back, each node gets the other's, and has them twice. They are left so:
// files are not written anew, and a line twice is better than one lost. But they
// are counted, on both nodes, once both copies are on the node's disk, by the order
// in which they were sent:
//
//   - here are the lines of a client that came here since it was with another
//     node. What that one stored before, and brings now, is the beginning of
//     them; lines that it was answered may stand in front.
//   - a client that was here is with another node. The first lines that come of
//     it from there are the end of those that are here.
//   - a node sends lines anew, with numbers that were here already: it lost its
//     power while they were on their way to its disk, and came back before its
//     clients went elsewhere. What they sent again is the end of what is here.
//
// twice counts the lines of one sender. The zero value is one that was nowhere.
type twice struct {
	away   bool     // the newest line came to another node
	began  int64    // when the first line came here since it was not; 0: none has
	first  []uint64 // those lines, without what doubts counted; a window of them at most
	met    int      // up to where these came from another node as well; 0: none did
	judged *resent  // what the first lines from there are; nil: that is decided
	anew   bool     // the next line from there is the first once more
}

// begins says that lines came to this node, at a time. doubled is how many lines
// turn out to be here twice: the sender has come back before what came from
// another node ran to the end of what was here.
func (t *twice) begins(at int64) (doubled int) {
	if t.away {
		if t.judged != nil {
			doubled = t.judged.frames
		}
		*t = twice{first: t.first[:0]}
	}
	if t.began == 0 {
		t.began = at
	}
	return doubled
}

// here is one of these lines. Those that were shipped here and came again are none:
// the other node knows that they are here, and brings what stood behind them.
func (t *twice) here(hash uint64) {
	if len(t.first) < relp.Window {
		t.first = append(t.first, hash)
	}
}

// late tells whether a line that came to another node at a time is older than what
// came here since: the sender is here still.
func (t *twice) late(at int64) bool { return t.began != 0 && !t.away && at < t.began }

// elsewhere says that a line came to another node, at a time, and from there.
// doubled is how many lines are here twice, as is known now.
func (t *twice) elsewhere(at int64, hash uint64, known *lastLines) (doubled int) {
	if t.late(at) {
		next := min(t.met, len(t.first))
		if t.met == 0 { // those in front were on both already, maybe
			next = max(0, slices.Index(t.first, hash))
		}
		switch {
		case next < len(t.first) && t.first[next] == hash:
			t.met = next + 1
			return 1
		case t.met > 0:
			t.met = relp.Window // no more of them
		}
		return 0
	}
	if !t.away || t.anew {
		t.away, t.anew, t.judged = true, false, known.judge()
	}
	if t.judged == nil {
		return 0
	}
	switch t.judged.take(hash) {
	case again:
		doubled, t.judged = t.judged.frames+1, nil
	case unseen:
		t.judged = nil
	}
	return doubled
}
