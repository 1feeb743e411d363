package logrelay

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// A RELP client sends again what it was not told is stored: at a new session,
// which may be with another node, its first frames are the ones that were not
// answered, in order. Of those, the server that died has stored the first few,
// and they are the last that it stored of this client. So: where the beginning
// of a session is the end of what is stored of the same sender, it is not stored
// again. What fits only in part is stored: rather a line twice than one lost.
const (
	maxSources   = 20_000
	recentFor    = 15 * time.Minute
	decideWithin = time.Second // frames held back while what follows is not there
)

// recent knows the last lines of each sender that are durable: on both disks, where
// they came from another node. Its methods may be called from any goroutine.
type recent struct {
	seed  maphash.Seed
	pairs bool // other nodes' lines come here as well

	mu      sync.Mutex
	senders map[netip.Addr]*lastLines
}

// lastLines are a window of hashes, the oldest at position at.
type lastLines struct {
	hashes []uint64
	at     int
	time   int64 // of the newest, when it was received
	twice  twice
	doubts doubts
	// Lines of another node that became known since a session of the sender began,
	// which was not compared with them.
	fresh  int
	missed *resent // what that session stores is compared with these; nil: there are none
	spare  *resent // missed, or what was: its memory is used again, while the journal writes
}

func newRecent() *recent {
	return &recent{seed: maphash.MakeSeed(), senders: map[netip.Addr]*lastLines{}}
}

func (r *recent) hash(line []byte) uint64 { return maphash.Bytes(r.seed, line) }

// add says that a line is durable, which may have come to another node. doubled
// is how many lines turn out by it to be here twice.
func (r *recent) add(rec journal.Record) (doubled int) {
	if via := rec.Input &^ viaOther; via != viaRELP && via != viaRELPTLS {
		return 0
	}
	hash := r.hash(rec.Data)
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.of(rec.Source.Unmap())
	if rec.Input&viaOther == 0 {
		return l.came(r.pairs, rec.Time, hash)
	}
	return l.elsewhere(rec.Time, hash)
}

// put says that lines are durable which came to this node. doubled is how many
// of them turn out to be here twice.
func (r *recent) put(source netip.Addr, at int64, hashes ...uint64) (doubled int) {
	if len(hashes) == 0 {
		return 0 // what is known of a sender is as old as its last line
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of(source).came(r.pairs, at, hashes...)
}

func (r *recent) of(source netip.Addr) *lastLines {
	l := r.senders[source]
	if l == nil {
		for source := range r.senders {
			if len(r.senders) < maxSources {
				break
			}
			delete(r.senders, source) // anyone: its lines may come twice
		}
		l = &lastLines{}
		r.senders[source] = l
	}
	return l
}

// came adds lines that came to this node.
func (l *lastLines) came(pairs bool, at int64, hashes ...uint64) (doubled int) {
	if pairs {
		doubled = l.twice.begins(at)
		if l.fresh > 0 && l.missed == nil {
			if l.spare == nil {
				l.spare = &resent{}
			}
			l.missed = l.spare
			l.judgeLast(l.missed, l.fresh)
		}
		l.fresh = 0 // those that come now are behind them
		for _, hash := range hashes {
			if l.doubts.again(hash) {
				doubled++
			} else {
				l.twice.here(hash)
			}
			if l.missed != nil {
				doubled += l.miss(hash)
			}
		}
	}
	l.keep(at, hashes...)
	return doubled
}

// elsewhere adds a line that came to another node, and from there, and is on both.
func (l *lastLines) elsewhere(at int64, hash uint64) (doubled int) {
	late := l.twice.late(at)
	if doubled = l.twice.elsewhere(at, hash, l); !late {
		l.freshen(at, hash)
	}
	return doubled
}

// freshen adds a line that came to another node and is on both.
func (l *lastLines) freshen(at int64, hash uint64) {
	l.keep(at, hash)
	l.fresh = min(l.fresh+1, relp.Window)
}

// miss counts lines that are here twice: they came to this node while the same
// ones became known, too late to be dropped.
func (l *lastLines) miss(hash uint64) (doubled int) {
	switch l.missed.take(hash) {
	case again:
		doubled, l.missed = l.missed.frames+1, nil
	case unseen, overdue:
		l.missed = nil
	case open:
	}
	return doubled
}

func (l *lastLines) keep(at int64, hashes ...uint64) {
	l.time = at
	for _, h := range hashes {
		if len(l.hashes) < relp.Window {
			l.hashes = append(l.hashes, h)
			continue
		}
		l.hashes[l.at] = h
		l.at = (l.at + 1) % relp.Window
	}
}

// anew says that another node sends lines once more.
func (r *recent) anew() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.senders {
		l.twice.anew = l.twice.away
	}
}

// judge compares what comes with the lines that are known.
func (l *lastLines) judge() *resent {
	r := &resent{}
	l.judgeLast(r, len(l.hashes))
	return r
}

// judgeLast begins r for so many of them, or all, in the memory that it has.
func (l *lastLines) judgeLast(r *resent, count int) {
	from := max(0, len(l.hashes)-count)
	known, starts := r.known[:0], r.starts[:0]
	for i := range len(l.hashes) - from {
		known = append(known, l.hashes[(l.at+from+i)%len(l.hashes)])
		starts = append(starts, i)
	}
	*r = resent{known: known, starts: starts}
}

// forget says that a client has heard all.
func (r *recent) forget(source netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.senders[source]; l != nil && r.pairs {
		l.hashes, l.at, l.fresh, l.missed, l.spare = nil, 0, 0, nil, nil // what may come of it from another node is counted still
		return
	}
	delete(r.senders, source)
}

// resent judges the first frames of a sender's session; nil: there is nothing
// to judge by.
func (r *recent) resent(source netip.Addr, now int64) *resent {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.senders[source]
	if l == nil {
		return nil
	}
	if l.fresh, l.missed = 0, nil; len(l.hashes) == 0 || now-l.time > int64(recentFor) {
		return nil
	}
	return l.judge()
}

// outdated is what resent no longer judges by; nil: there is nothing.
func (r *recent) outdated(source netip.Addr, now int64) *resent {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.senders[source]; l != nil && len(l.hashes) > 0 && now-l.time > int64(recentFor) {
		return l.judge()
	}
	return nil
}

// resent compares the frames of a session's beginning with what is known.
type resent struct {
	known  []uint64
	starts []int // where in known the session may begin
	frames int
	shared func() bool // what is known may be of another session; nil: it is not
}

// judgement is about all frames up to this one.
type judgement int

const (
	open    judgement = iota // not decided
	again                    // they are stored already
	unseen                   // they are not
	overdue                  // not decided, and not waited for any more: they are stored
)

// take judges the next frame. After anything but open it is done.
func (r *resent) take(hash uint64) judgement {
	left := r.starts[:0]
	for _, start := range r.starts {
		at := start + r.frames
		if r.known[at] != hash {
			continue
		}
		if at == len(r.known)-1 {
			if r.shared != nil && r.shared() {
				return unseen
			}
			return again
		}
		left = append(left, start)
	}
	r.starts = left
	r.frames++
	if len(left) == 0 {
		return unseen
	}
	return open
}
