package journal

import (
	"errors"
	"slices"
	"time"
)

// Bounds of what is remembered of damage.
const (
	unreadableFor = time.Minute // a disk that refuses to read may be well again
	// unlooked is how much of the time between two tries counts at most: nobody
	// knows of the rest how the disk was. A minute takes three tries, then.
	unlooked = 30 * time.Second
	// apart is for how long nobody tried when the next try is the first of its
	// own: outputs come every half minute, while their target is there.
	apart     = 2 * unlooked
	mostSpots = 10_000
)

// spot is where in a journal something is not as it was written.
type spot struct {
	path string
	at   int64
}

// damage is what the disk lost, as far as somebody looked. It is guarded by the
// journal's mu.
type damage struct {
	bytes    int64
	known    map[spot]bool // counted in bytes
	refused  map[spot]refusal
	patience time.Duration // unreadableFor, but in tests
}

// refusal is how long reading at a spot has failed.
type refusal struct {
	last time.Time     // it failed
	sum  time.Duration // for which it has, as far as somebody tried
}

// Damaged is how many bytes of durable blocks could not be read: what a disk
// lost, or somebody removed. It grows when a reader comes to more.
func (j *Journal) Damaged() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.damage.bytes
}

// lost counts what is missing at a spot, once for all who come there.
func (j *Journal) lost(path string, at, bytes int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lostLocked(path, at, bytes)
}

// lostLocked is lost with mu held.
func (j *Journal) lostLocked(path string, at, bytes int64) {
	where := spot{path, at}
	if j.damage.known[where] {
		return
	}
	if j.damage.known == nil || len(j.damage.known) >= mostSpots {
		j.damage.known = map[spot]bool{} // some may count twice from then on
	}
	j.damage.known[where] = true
	j.damage.bytes += bytes
}

// givenUp tells whether reading at a spot, which was tried at began and has failed
// now, has failed for so long that it is passed over. What counts is the time in
// which it was tried, by whomever: an output whose target was away for hours comes
// with its first try, and so does one that comes long after others gave up. How
// long the disk takes to refuse does not make two tries lie apart.
func (j *Journal) givenUp(path string, at int64, began, now time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	where := spot{path, at}
	r, ok := j.damage.refused[where]
	switch {
	case ok && began.Sub(r.last) > apart:
		r = refusal{}
	case ok:
		r.sum += min(max(0, now.Sub(r.last)), unlooked)
	case j.damage.refused == nil || len(j.damage.refused) >= mostSpots:
		j.damage.refused = map[spot]refusal{}
	}
	r.last = now
	j.damage.refused[where] = r
	patience := j.damage.patience
	if patience == 0 {
		patience = unreadableFor
	}
	return r.sum >= patience
}

// readable says that reading at a spot went well: if it fails once more, the
// disk is given all its time again.
func (j *Journal) readable(path string, at int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.damage.refused, spot{path, at})
}

// missing says that a segment's file is not there. If it was not trimmed,
// somebody removed it, and readers pass it over.
func (j *Journal) missing(path string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := slices.IndexFunc(j.segments, func(h held) bool { return h.path == path })
	if i < 0 || j.segments[i].gone {
		return
	}
	j.segments[i].gone = true
	j.lostLocked(path, 0, j.segments[i].end)
}

// Glance is a Reader for who only looks, and keeps no account of what it has:
// what the disk refuses to read is passed over at once.
func (j *Journal) Glance(from uint64) *Reader { return &Reader{j: j, next: from, hasty: true} }

// passable tells whether a reader goes on behind what the disk refuses at a spot,
// because it has for long enough. It was tried at began. A segment that can't be
// opened is refused at 0.
func (r *Reader) passable(path string, at int64, began time.Time, err error) bool {
	return unreadable(err) && (r.hasty || r.j.givenUp(path, at, began, time.Now()))
}

// removedError is what a write to a file says that has no name any more.
func removedError(links uint64) error {
	if links > 0 {
		return nil
	}
	return errors.New("the segment was removed while it was written")
}
