package cas

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"holdfast/internal/durable"
)

// Writer is a blob that is being written. One goroutine writes; any may read
// what was written through File meanwhile.
type Writer struct {
	store *Store
	file  *os.File
	hash  hash.Hash
	size  int64
	moved bool

	absorbed bool // a part is not in the file
}

// Create begins a blob of size bytes (0: unknown), for which room is made. The
// error wraps ErrFull when there is none, or is the disk's.
func (s *Store) Create(size int64) (*Writer, error) {
	if err := s.makeRoom(size); err != nil {
		s.noteWrite(err)
		return nil, err
	}
	file, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "")
	if err != nil {
		err = classify(err)
		s.noteWrite(err)
		return nil, fmt.Errorf("store: begin a blob: %w", err)
	}
	return &Writer{store: s, file: file, hash: sha256.New()}, nil
}

// classify wraps ErrFull around what the kernel calls a full disk.
func classify(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// File is what was written so far, for reading with ReadAt.
func (w *Writer) File() *os.File { return w.file }

// Size is how many bytes were written.
func (w *Writer) Size() int64 { return w.size }

// Write appends. When the disk is full it evicts what may be and tries once
// more; an error wraps ErrFull or is the disk's, and n bytes were written.
func (w *Writer) Write(p []byte) (n int, err error) {
	n, err = w.file.Write(p)
	if err != nil && errors.Is(classify(err), ErrFull) && w.store.evict(int64(len(p))*16) {
		var more int
		more, err = w.file.Write(p[n:])
		n += more
	}
	w.hash.Write(p[:n])
	w.size += int64(n)
	if err != nil {
		err = fmt.Errorf("store: write: %w", classify(err))
		w.store.noteWrite(err)
	}
	return n, err
}

// Absorb hashes what follows without writing it. Such a blob can't be
// committed.
func (w *Writer) Absorb(p []byte) {
	w.hash.Write(p)
	w.absorbed = true
}

// Sum is the hash of what was written and absorbed so far.
func (w *Writer) Sum() Sum { return Sum(w.hash.Sum(nil)) }

// Commit makes the blob durable under its hash, which has to be want, with the
// time at which its server says it was modified (zero: unknown). It blocks
// until it is on the disk. On an error the blob is not in the store; File can
// still be read until Close.
func (w *Writer) Commit(want Sum, modified time.Time) error {
	if got := w.Sum(); got != want {
		return fmt.Errorf("store: %w: %s in place of %s", ErrMismatch, got, want)
	}
	if w.absorbed {
		return fmt.Errorf("store: keep %s: %w", want, ErrFull)
	}
	err := w.commit(want, modified)
	w.store.noteWrite(err)
	if err != nil {
		return fmt.Errorf("store: keep %s: %w", want, err)
	}
	return nil
}

func (w *Writer) commit(sum Sum, modified time.Time) error {
	s := w.store
	if modified.IsZero() {
		modified = time.Unix(0, 0)
	}
	if err := os.Chtimes(w.file.Name(), time.Time{}, modified); err != nil {
		return err
	}
	if err := w.file.Chmod(0o444); err != nil {
		return err
	}
	if err := w.file.Sync(); err != nil {
		return classify(err)
	}
	to := s.path(sum)
	if err := os.Mkdir(filepath.Dir(to), 0o755); err == nil {
		if err := durable.SyncDir(filepath.Join(s.dir, "blobs")); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrExist) {
		return classify(err)
	}
	if err := os.Rename(w.file.Name(), to); err != nil {
		return classify(err)
	}
	w.moved = true
	if err := durable.SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	info, err := w.file.Stat()
	if err != nil {
		return err
	}
	s.add(sum, w.size, proofOf(info))
	return nil
}

// add enters a blob that was just written, in the place of an older one.
func (s *Store) add(sum Sum, size int64, p proof) {
	b := &blob{size: size}
	b.proof.Store(&p)
	b.used.Store(s.now().Unix())
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.blobs[sum]; old != nil {
		s.bytes -= old.size
	}
	s.blobs[sum] = b
	s.bytes += size
}

// Close ends the writing; what was not committed is removed.
func (w *Writer) Close() error {
	err := w.file.Close()
	if !w.moved {
		err = errors.Join(err, os.Remove(w.file.Name()))
	}
	return err
}

// Put keeps data as a blob and gives its hash. It blocks until it is durable.
func (s *Store) Put(data []byte, modified time.Time) (Sum, error) {
	sum := Sum(sha256.Sum256(data))
	if _, ok := s.Has(sum); ok {
		return sum, nil
	}
	w, err := s.Create(int64(len(data)))
	if err != nil {
		return sum, err
	}
	if _, err = w.Write(data); err == nil {
		err = w.Commit(sum, modified)
	}
	return sum, errors.Join(err, w.Close())
}
