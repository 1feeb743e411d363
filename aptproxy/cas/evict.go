package cas

import (
	"fmt"
	"os"
	"slices"
	"syscall"
)

// makeRoom sees that size more bytes may be written, and evicts for it.
func (s *Store) makeRoom(size int64) error {
	need := s.excess(size)
	if need <= 0 {
		return nil
	}
	// A little more, so that not every blob has to look for room.
	s.evict(need + s.options.Max/64)
	if need = s.excess(size); need > 0 {
		return fmt.Errorf("store: %w: %d bytes too much, and all that is left is needed", ErrFull, need)
	}
	return nil
}

// excess is how many bytes too much there would be with size more.
func (s *Store) excess(size int64) int64 {
	var over int64
	s.mu.Lock()
	if s.options.Max > 0 {
		over = s.bytes + size - s.options.Max
	}
	s.mu.Unlock()
	if s.options.Reserve > 0 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(s.dir, &st); err == nil {
			over = max(over, s.options.Reserve+size-int64(st.Bavail)*st.Bsize)
		}
	}
	return over
}

// Shed removes blobs of at least need bytes, if it may; see [Options.Rank].
func (s *Store) Shed(need int64) { s.evict(need) }

// evict removes blobs of at least need bytes, if it may: the unreferenced
// first, those used longest ago first, pinned ones never. It tells whether
// anything was removed.
func (s *Store) evict(need int64) bool {
	s.evicting.Lock()
	defer s.evicting.Unlock()
	type candidate struct {
		sum  Sum
		b    *blob
		rank Rank
		used int64
	}
	var list []candidate
	s.mu.Lock()
	for sum, b := range s.blobs {
		list = append(list, candidate{sum: sum, b: b, used: b.used.Load()})
	}
	s.mu.Unlock()
	for i := range list {
		if s.options.Rank != nil {
			list[i].rank = s.options.Rank(list[i].sum)
		}
	}
	slices.SortFunc(list, func(x, y candidate) int {
		if x.rank != y.rank {
			return int(x.rank - y.rank)
		}
		return int(x.used - y.used)
	})
	any := false
	for _, c := range list {
		if need <= 0 || c.rank >= Pinned {
			break
		}
		if err := os.Remove(s.path(c.sum)); err != nil {
			s.log.Error("a blob can't be evicted", "sum", c.sum, "error", err)
			continue
		}
		s.forget(c.sum, c.b)
		s.evicted.Add(1)
		need -= c.b.size
		any = true
	}
	return any
}

// Remove takes a blob out of the store, pinned or not. One that is not there
// is no error.
func (s *Store) Remove(sum Sum) error {
	s.mu.Lock()
	b := s.blobs[sum]
	s.mu.Unlock()
	if b == nil {
		return nil
	}
	if err := os.Remove(s.path(sum)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("store: remove %s: %w", sum, err)
	}
	s.forget(sum, b)
	return nil
}
