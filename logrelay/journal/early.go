package journal

import "context"

// TryEarly is TryNext for who need not wait until lines are durable: behind all
// that are it also returns the block that is on its way to the disk. That may
// never get there. Its numbers are used by no other lines of this Journal, but
// after a crash they may be used once more by the next one of its directory, if
// they were not before its End when that was opened.
func (r *Reader) TryEarly() (Block, bool, error) {
	if b, ok, err := r.TryNext(); ok || err != nil {
		return b, ok, err
	}
	b, ok := r.early()
	return b, ok, nil
}

// NextEarly is TryEarly that blocks until there is a block, or ctx ends.
func (r *Reader) NextEarly(ctx context.Context) (Block, error) {
	b, _, err := r.NextEarlyOr(ctx, func() bool { return false })
	return b, err
}

// NextEarlyOr is NextEarly that returns false as well when, before there is a
// block, a write has ended and what is asked for is so.
func (r *Reader) NextEarlyOr(ctx context.Context, so func() bool) (Block, bool, error) {
	for {
		r.j.mu.Lock()
		begun, grown := r.j.begun, r.j.grown
		r.j.mu.Unlock()
		if b, ok, err := r.TryEarly(); ok || err != nil {
			return b, ok, err
		}
		if so() {
			return Block{}, false, nil
		}
		select {
		case <-begun:
		case <-grown: // of a write that began while there was more to read
		case <-ctx.Done():
			return Block{}, false, ctx.Err()
		}
	}
}

// Failed is how many writes failed of which TryEarly may have given the block
// before. While it stays the same, a block that TryEarly gave is durable as soon
// as End is behind it, or TryEarly has given the next one.
func (j *Journal) Failed() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

// early copies the block that is being written, if all before it was read.
func (r *Reader) early() (Block, bool) {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	w := r.j.writing
	if w == nil || r.next < r.j.end || r.next > w.first {
		return Block{}, false
	}
	r.buf = append(r.buf[:0], w.buf...)
	r.next = w.first + uint64(w.count)
	if r.file != nil && r.held.path == w.path && r.at == w.at {
		r.at += int64(len(w.buf)) // it need not be read to be passed over
	}
	return Block{First: w.first, Count: w.count, payload: r.buf[blockHeader:]}, true
}
