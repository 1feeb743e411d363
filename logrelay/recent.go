package logrelay

import (
	"hash/maphash"
	"net/netip"
	"slices"
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

// recent knows the last lines that are durable of each sender. Its methods may
// be called from any goroutine.
type recent struct {
	seed maphash.Seed

	mu      sync.Mutex
	senders map[netip.Addr]*lastLines
}

// lastLines are a window of hashes, the oldest at position at.
type lastLines struct {
	hashes []uint64
	at     int
	time   int64 // of the newest, when it was received
}

func newRecent() *recent {
	return &recent{seed: maphash.MakeSeed(), senders: map[netip.Addr]*lastLines{}}
}

func (r *recent) hash(line []byte) uint64 { return maphash.Bytes(r.seed, line) }

// add says that a line is durable.
func (r *recent) add(rec journal.Record) {
	if via := rec.Input &^ viaOther; via != viaRELP && via != viaRELPTLS {
		return
	}
	r.put(rec.Source.Unmap(), rec.Time, r.hash(rec.Data))
}

func (r *recent) put(source netip.Addr, at int64, hashes ...uint64) {
	if len(hashes) == 0 {
		return // what is known of a sender is as old as its last line
	}
	r.mu.Lock()
	defer r.mu.Unlock()
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

// forget says that a client has heard all.
func (r *recent) forget(source netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.senders, source)
}

// resent judges the first frames of a sender's session; nil: there is nothing
// to judge by.
func (r *recent) resent(source netip.Addr, now int64) *resent {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.senders[source]
	if l == nil || now-l.time > int64(recentFor) {
		return nil
	}
	known := slices.Concat(l.hashes[l.at:], l.hashes[:l.at])
	starts := make([]int, len(known))
	for i := range starts {
		starts[i] = i
	}
	return &resent{known: known, starts: starts}
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
	open   judgement = iota // not decided
	again                   // they are stored already
	unseen                  // they are not
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
