package aptproxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"sync"

	"holdfast/aptproxy/cas"
)

// window is how many bytes of a download that can't be stored are held in
// memory for those who read it.
const window = 4 << 20

// errGone says that a reader came too late: what it needs was not kept.
var errGone = errors.New("the beginning of this download was not kept, because the disk is full")

// errNobody ends a download that can't be stored and that nobody reads.
var errNobody = errors.New("nobody reads this download, and it can't be stored")

// body is a download: a growing file that many read while one writes it. When
// the disk takes no more it goes on in memory, as far as its readers follow.
type body struct {
	writer *cas.Writer // nil: all of it is in memory
	hash   hash.Hash   // when there is no writer, which hashes else

	mu       sync.Mutex
	changed  chan struct{} // closed when something below changes
	onDisk   int64         // bytes in the writer's file
	memory   []byte        // what follows, from the offset start
	start    int64
	spilled  bool
	written  int64
	released int64 // readers may have what is before this
	ended    bool
	err      error
	readers  map[*reader]struct{}
	closing  []*cas.Writer // to be closed when there are no readers
}

// reader is one who reads a body.
type reader struct {
	body *body
	at   int64
}

func newBody(w *cas.Writer) *body {
	b := &body{writer: w, changed: make(chan struct{}), readers: map[*reader]struct{}{}}
	if w == nil {
		b.spilled, b.hash = true, sha256.New()
	}
	return b
}

// wake tells the waiting that something changed. It is called with mu held.
func (b *body) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// append adds what came. In memory it waits for the readers, so it blocks, at
// most until ctx ends.
func (b *body) append(ctx context.Context, p []byte) error {
	if b.writer != nil && !b.isSpilled() {
		n, err := b.writer.Write(p)
		b.mu.Lock()
		b.onDisk += int64(n)
		b.written += int64(n)
		b.wake()
		if err != nil {
			b.spilled, b.start = true, b.onDisk
		}
		b.mu.Unlock()
		p = p[n:]
	}
	for len(p) > 0 {
		n, err := b.spill(ctx, p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (b *body) isSpilled() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.spilled
}

// spill adds to the memory what has room there.
func (b *body) spill(ctx context.Context, p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if room := window - len(b.memory); room > 0 {
			n := min(room, len(p))
			b.memory = append(b.memory, p[:n]...)
			b.written += int64(n)
			if b.writer == nil {
				b.hash.Write(p[:n])
			} else {
				b.writer.Absorb(p[:n])
			}
			b.wake()
			return n, nil
		}
		if len(b.readers) == 0 {
			return 0, errNobody
		}
		if b.trim() {
			continue
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			b.mu.Lock()
			return 0, context.Cause(ctx)
		}
		b.mu.Lock()
	}
}

// trim drops from the memory what all readers have. It is called with mu held.
func (b *body) trim() bool {
	least := b.written
	for r := range b.readers {
		least = min(least, r.at)
	}
	n := int(least - b.start)
	if n <= 0 {
		return false
	}
	b.memory = append(b.memory[:0], b.memory[n:]...)
	b.start = least
	return true
}

// sum is the hash of all that came; only the writer of the body calls it.
func (b *body) sum() cas.Sum {
	if b.writer == nil {
		return cas.Sum(b.hash.Sum(nil))
	}
	return b.writer.Sum()
}

// release lets readers have the bytes before n.
func (b *body) release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.released {
		b.released = n
		b.wake()
	}
}

// end ends the body: whole, or broken by err.
func (b *body) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return
	}
	b.ended, b.err = true, err
	if err == nil {
		b.released = b.written
	}
	b.wake()
}

// restart forgets all that came. It is refused when a reader has some of it.
func (b *body) restart(w *cas.Writer) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.released > 0 {
		return false
	}
	if b.writer != nil {
		b.closing = append(b.closing, b.writer)
	}
	b.writer, b.hash, b.spilled = w, nil, w == nil
	if w == nil {
		b.hash = sha256.New()
	}
	b.onDisk, b.written, b.start, b.memory = 0, 0, 0, nil
	return true
}

// read adds a reader that begins at the beginning.
func (b *body) read() *reader {
	r := &reader{body: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.readers[r] = struct{}{}
	return r
}

// seek lets a reader go on at an offset.
func (r *reader) seek(at int64) {
	r.body.mu.Lock()
	defer r.body.mu.Unlock()
	r.at = at
	r.body.wake()
}

func (r *reader) close() {
	r.body.mu.Lock()
	delete(r.body.readers, r)
	r.body.wake() // the writer may wait for us
	r.body.mu.Unlock()
	r.body.closeFiles()
}

// next waits until there is something to read and reads it. At the end of the
// body it gives 0 and no error. It blocks until ctx ends.
func (r *reader) next(ctx context.Context, p []byte) (int, error) {
	b := r.body
	b.mu.Lock()
	for r.at >= b.released {
		ended, err, changed := b.ended, b.err, b.changed
		if ended {
			b.mu.Unlock()
			return 0, err
		}
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		b.mu.Lock()
	}
	n := int(min(int64(len(p)), b.released-r.at))
	if r.at >= b.onDisk {
		if r.at < b.start {
			b.mu.Unlock()
			return 0, errGone
		}
		n = copy(p[:n], b.memory[r.at-b.start:])
		r.at += int64(n)
		b.wake()
		b.mu.Unlock()
		return n, nil
	}
	n = int(min(int64(n), b.onDisk-r.at))
	file := b.writer.File()
	b.mu.Unlock()
	n, err := file.ReadAt(p[:n], r.at)
	if n > 0 {
		err = nil
	}
	b.mu.Lock()
	r.at += int64(n)
	b.mu.Unlock()
	return n, err
}

// length is how many bytes came.
func (b *body) length() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.written
}

// lost tells whether the beginning is not to be had any more.
func (b *body) lost() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.spilled && b.start > b.onDisk
}

// broken tells whether it has ended without being whole.
func (b *body) broken() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended && b.err != nil
}

// close closes the files when the last reader has left. Nobody begins to read
// after it.
func (b *body) close() {
	b.mu.Lock()
	if b.writer != nil {
		b.closing = append(b.closing, b.writer)
	}
	b.mu.Unlock()
	b.closeFiles()
}

// closeFiles closes what nobody reads any more.
func (b *body) closeFiles() {
	b.mu.Lock()
	var list []*cas.Writer
	if len(b.readers) == 0 {
		list, b.closing = b.closing, nil
	}
	b.mu.Unlock()
	for _, w := range list {
		_ = w.Close() // what was not committed is worth nothing
	}
}
