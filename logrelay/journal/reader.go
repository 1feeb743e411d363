package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Block is records that became durable together.
type Block struct {
	First   uint64 // number of the first
	Count   int
	payload []byte
}

// End is the number behind the last.
func (b Block) End() uint64 { return b.First + uint64(b.Count) }

// Payload is the records as they are on the disk, valid until the reader's next
// call. BlockOf reads it on another node.
func (b Block) Payload() []byte { return b.payload }

// BlockOf makes a block of what Payload gave. Each reports what is no record.
func BlockOf(first uint64, count int, payload []byte) Block {
	return Block{First: first, Count: count, payload: payload}
}

// Each calls f for every record with its number, until f is false. The
// record's data is valid until the reader's next call.
func (b Block) Each(f func(number uint64, r Record) bool) error {
	rest, number := b.payload, b.First
	for len(rest) > 0 {
		r, next, err := nextRecord(rest)
		if err != nil {
			return fmt.Errorf("journal: record %d: %w", number, err)
		}
		if !f(number, r) {
			return nil
		}
		rest = next
		number++
	}
	return nil
}

// Reader reads durable records in order. It belongs to one goroutine.
type Reader struct {
	j     *Journal
	next  uint64 // number wanted
	file  *os.File
	held  held
	at    int64
	seen  uint64 // number behind the last record that it came to in the segment
	buf   []byte
	hasty bool   // see Glance
	least uint64 // first record of the oldest segment that may have more for it
}

// Reader reads from a record on, or from the oldest that is left.
func (j *Journal) Reader(from uint64) *Reader { return &Reader{j: j, next: from} }

// Close releases the open segment.
func (r *Reader) Close() {
	if r.file != nil {
		_ = r.file.Close() // it was only read
		r.file = nil
	}
}

// Next returns the next block, which may begin before the number that the
// reader was made with. It blocks until there is one, or ctx ends.
func (r *Reader) Next(ctx context.Context) (Block, error) {
	for {
		grown, err := r.position()
		if err != nil {
			return Block{}, err
		}
		if grown != nil {
			select {
			case <-grown:
				continue
			case <-ctx.Done():
				return Block{}, ctx.Err()
			}
		}
		b, ok, err := r.read()
		if err != nil || ok {
			return b, err
		}
	}
}

// TryNext is Next that returns false instead of blocking.
func (r *Reader) TryNext() (Block, bool, error) {
	for {
		grown, err := r.position()
		if err != nil || grown != nil {
			return Block{}, false, err
		}
		if b, ok, err := r.read(); err != nil || ok {
			return b, ok, err
		}
	}
}

// read reads one block where the reader stands; false: it is passed over.
func (r *Reader) read() (Block, bool, error) {
	began := time.Now()
	b, whole, err := r.held.readBlock(r.file, r.at, r.buf)
	r.buf = whole
	if errors.Is(err, errBlock) || r.passable(r.held.path, r.at, began, err) {
		return Block{}, false, r.pass()
	}
	if err != nil {
		return Block{}, false, err
	}
	r.j.readable(r.held.path, r.at)
	r.at += b.size()
	r.seen = b.end()
	if b.end() <= r.next {
		return Block{}, false, nil
	}
	r.next = b.end()
	return Block{First: b.first, Count: b.count, payload: whole[blockHeader:]}, true, nil
}

// pass goes to the next sound block behind a damaged one, though it be before
// the number wanted, or have it amid: only what lies between is lost.
func (r *Reader) pass() error {
	offset, found, _, err := r.held.resync(r.file, r.at, r.held.end, r.seen)
	if err != nil {
		return err
	}
	if !found {
		offset = r.held.end
	}
	r.j.lost(r.held.path, r.at, offset-r.at)
	r.at = offset
	return nil
}

// position opens the segment where the next block is; while there is none it
// returns what tells that there may be.
func (r *Reader) position() (grown <-chan struct{}, err error) {
	for {
		r.j.mu.Lock()
		h, ok := r.wanted()
		// It is written to, and has more tomorrow: who passed it over would lack that.
		newest := ok && h.path == r.j.segments[len(r.j.segments)-1].path
		grown = r.j.grown
		r.j.mu.Unlock()
		if !ok {
			return grown, nil
		}
		if r.file != nil && h.path == r.held.path {
			r.held = h
			return nil, nil
		}
		r.Close()
		r.least = h.first
		began := time.Now()
		file, err := os.Open(h.path)
		if errors.Is(err, fs.ErrNotExist) {
			r.j.missing(h.path) // unless it was trimmed meanwhile
			continue
		}
		if (r.hasty || !newest) && r.passable(h.path, 0, began, err) {
			// For this reader alone: the disk may be well when another comes.
			r.j.lost(h.path, 0, h.end)
			r.least = h.first + 1
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
		r.j.readable(h.path, 0)
		r.file, r.held, r.at, r.seen = file, h, segmentHeader, h.first
		return nil, nil
	}
}

// wanted is the segment to read from: the open one while it has more, else the
// one behind it, at first the one that has the next record. The journal is locked.
func (r *Reader) wanted() (held, bool) {
	list := r.j.segments
	i := 0
	if r.file != nil {
		i = slices.IndexFunc(list, func(h held) bool { return h.first >= r.held.first })
		if i < 0 {
			return held{}, false
		}
		if list[i].path == r.held.path && r.at >= list[i].end {
			i++
		}
	} else {
		for i+1 < len(list) && list[i+1].first <= r.next {
			i++
		}
	}
	for ; i < len(list); i++ {
		if list[i].end > segmentHeader && !list[i].gone && list[i].first >= r.least {
			return list[i], true
		}
	}
	return held{}, false
}
