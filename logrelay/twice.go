package logrelay

import "holdfast/logrelay/relp"

// A node that dies has lines that its clients were not told of, and that no
// other node has. The clients send them again, to another node. When the dead
// one is back, each node gets the other's, and has them twice. They are left so:
// files are not written anew, and a line twice is better than one lost. But they
// are counted, on both nodes, by the order in which they were sent:
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
	first  []uint64 // lines that came here since it was not; a window of them at most
	began  int64    // when the first of these was received
	met    int      // how many of these came from another node as well
	judged *resent  // what the first lines from there are; nil: that is decided
	anew   bool     // the next line from there is the first once more
}

// here says that lines came to this node.
func (t *twice) here(at int64, hashes []uint64) {
	if t.away {
		*t = twice{first: t.first[:0]}
	}
	if len(t.first) == 0 {
		t.began = at
	}
	t.first = append(t.first, hashes[:min(len(hashes), relp.Window-len(t.first))]...)
}

// elsewhere says that a line came to another node, at a time, and from there.
// doubled is how many lines are here twice, as is known now. late: it is older
// than what came here, so the sender is here still.
func (t *twice) elsewhere(at int64, hash uint64, known *lastLines) (doubled int, late bool) {
	if len(t.first) > 0 && !t.away && at < t.began {
		switch {
		case t.met < len(t.first) && t.first[t.met] == hash:
			t.met++
			doubled = 1
		case t.met > 0:
			t.met = len(t.first) // no more of them
		}
		return doubled, true
	}
	if !t.away || t.anew {
		t.away, t.anew, t.judged = true, false, known.judge()
	}
	if t.judged == nil {
		return 0, false
	}
	switch t.judged.take(hash) {
	case again:
		doubled, t.judged = t.judged.frames+1, nil
	case unseen:
		t.judged = nil
	}
	return doubled, false
}
