package logrelay

import (
	"net/netip"

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
}

func (s *shipped) add(r *recent, rec journal.Record) {
	if via := rec.Input &^ viaOther; via == viaRELP || via == viaRELPTLS {
		s.lines = append(s.lines, shippedLine{rec.Source.Unmap(), rec.Time, r.hash(rec.Data)})
	}
}

// over says that nothing is heard of a shipment any more.
func (s *shipped) over() {
	if s != nil {
		s.lines = nil // senders' doubts point to it for long
	}
}

// doubt says that lines are durable here, and may not be on the node from which
// they came. doubled is how many turn out to be here twice.
func (r *recent) doubt(s *shipped) (doubled int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range s.lines {
		doubled += r.of(line.source).doubts.ship(s, line.time, line.hash)
	}
	return doubled
}

// confirm says that they are. nil: there are none.
func (r *recent) confirm(s *shipped) (doubled int) {
	if s == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	counted := map[netip.Addr]bool{} // these came again meanwhile
	for _, line := range s.lines {
		l := r.of(line.source)
		if l.doubts.end(s) {
			counted[line.source] = true
		}
		if !counted[line.source] {
			doubled += l.elsewhere(line.time, line.hash)
		}
	}
	s.over()
	return doubled
}

// doubts are a sender's lines that may be on one disk. The zero value has none.
type doubts struct {
	open doubted // of the newest shipment
	left doubted // of one before the sender's next lines, or the next shipment: they may come again
}

// doubted is some lines of a shipment, in order: as many as a client sends again
// at most.
type doubted struct {
	of     *shipped
	hashes []uint64
	time   int64 // of the newest
	met    bool  // some came again
	passed int   // others that came since
}

// ship adds a line of a shipment.
func (d *doubts) ship(s *shipped, at int64, hash uint64) (doubled int) {
	if d.open.of != nil && d.open.of != s {
		d.left, d.open = d.open, doubted{}
	}
	doubled = d.left.again(at, hash)
	if d.open.of, d.open.time = s, at; len(d.open.hashes) < relp.Window {
		d.open.hashes = append(d.open.hashes, hash)
	}
	return doubled
}

// again is 1 for a line that came to this node and is here already.
func (d *doubts) again(at int64, hash uint64) int {
	if d.open.of != nil {
		d.left, d.open = d.open, doubted{}
	}
	return d.left.again(at, hash)
}

func (d *doubted) again(at int64, hash uint64) int {
	switch {
	case len(d.hashes) == 0:
		return 0
	case at-d.time > int64(recentFor):
	case d.hashes[0] == hash:
		d.hashes, d.met = d.hashes[1:], true
		return 1
	case !d.met && d.passed < relp.Window: // those before, which it was not told of either
		d.passed++
		return 0
	}
	d.hashes = nil // no more of them come
	return 0
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
