package logrelay

import (
	"net/netip"
	"slices"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// Another node ships lines while its own disk still syncs them, and may lose its
// power before that ends. Its clients, which were not told, then send them here;
// and they must be stored once more, as this node's own: the other node lacks
// them, and targets get a line from the node that it came to. So what is shipped
// is not compared with what clients send before it is known to be on both disks:
// by whatever the other node says behind it. Until then, and for good if nothing
// follows, it is only remembered so that lines which come again are counted.

// shipped is the RELP lines of a shipment that is durable here. It is known by
// its pointer.
type shipped struct {
	end   uint64 // of the shipment
	lines []shippedLine
}

type shippedLine struct {
	source netip.Addr
	time   int64 // when it was received, in nanoseconds since 1970
	hash   uint64
	late   bool // see twice
}

func (s *shipped) add(r *recent, rec journal.Record) {
	if via := rec.Input &^ viaOther; via == viaRELP || via == viaRELPTLS {
		s.lines = append(s.lines, shippedLine{source: rec.Source.Unmap(), time: rec.Time, hash: r.hash(rec.Data)})
	}
}

// over says that nothing is heard of a shipment any more.
func (s *shipped) over() {
	if s != nil {
		s.lines = nil // senders' doubts point to it for long
	}
}

// doubt says that lines are durable here, and may not be on the node from which
// they came. doubled is how many turn out to be here twice: that need not wait for
// what the other node says behind them, which may never come.
func (r *recent) doubt(s *shipped) (doubled int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range s.lines {
		line := &s.lines[i]
		l := r.of(line.source)
		anew := l.doubts.ship(s, line.hash)
		line.late = l.twice.late(line.time)
		if n := l.twice.elsewhere(line.time, line.hash, l); anew {
			doubled++ // once
		} else {
			doubled += n
		}
	}
	return doubled
}

// confirm says that they are. nil: there are none.
func (r *recent) confirm(s *shipped) {
	if s == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	cameAgain := map[netip.Addr]bool{} // meanwhile
	for _, line := range s.lines {
		l := r.of(line.source)
		if l.doubts.end(s) {
			cameAgain[line.source] = true
		}
		if !cameAgain[line.source] && !line.late && !l.twice.late(line.time) {
			l.freshen(line.time, line.hash)
		}
	}
	s.over()
}

// doubts are a sender's lines that may be on one disk. The zero value has none.
type doubts struct {
	open doubted // of the newest shipment
	left doubted // of one before the sender's next lines, or the next shipment: they may come again
}

// doubted is some lines of a shipment, in order: as many as a client sends again
// at most. However long an outage was, they come again after it.
type doubted struct {
	of     *shipped
	hashes []uint64
	met    bool // some came again
	passed int  // others that came since
}

// ship adds a line of a shipment. It returns whether that came from there before:
// the node lost it, and has it from its client once more.
func (d *doubts) ship(s *shipped, hash uint64) (cameAgain bool) {
	if d.open.of != nil && d.open.of != s {
		d.left, d.open = d.open, doubted{}
	}
	cameAgain = d.left.again(hash)
	if d.open.of = s; len(d.open.hashes) < relp.Window {
		d.open.hashes = append(d.open.hashes, hash)
	}
	return cameAgain
}

// again tells whether a line that came to this node is here already.
func (d *doubts) again(hash uint64) bool {
	if d.open.of != nil {
		d.left, d.open = d.open, doubted{}
	}
	return d.left.again(hash)
}

func (d *doubted) again(hash uint64) bool {
	at := 0
	if !d.met { // the client was told of those in front, maybe: an answer may end anywhere
		at = slices.Index(d.hashes, hash)
	}
	switch {
	case len(d.hashes) == 0:
		return false
	case at >= 0 && d.hashes[at] == hash:
		d.hashes, d.met = d.hashes[at+1:], true
		return true
	case !d.met && d.passed < relp.Window: // those before, which it was not told of either
		d.passed++
		return false
	}
	d.hashes = nil // no more of them come
	return false
}

// end forgets a shipment, unless its lines came again: then it returns true.
func (d *doubts) end(s *shipped) (cameAgain bool) {
	switch {
	case d.open.of == s:
		d.open = doubted{hashes: d.open.hashes[:0]} // the next shipment follows at once
	case d.left.of == s && d.left.met:
		return true
	case d.left.of == s:
		d.left = doubted{}
	}
	return false
}
