// Package cas keeps files under the SHA-256 of their content.
//
// A blob appears under its name only when all its bytes are on the disk, so a
// crash at any moment loses at most what was being written. What blobs there
// are is read from the directory itself; the index beside them knows what the
// directory can't say (names from elsewhere, times of use) and may be lost.
package cas

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"holdfast/internal/durable"
)

// Sum is a SHA-256.
type Sum [32]byte

// String is the sum in hex.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// Errors of a Store.
var (
	ErrNotFound = errors.New("the store has no such blob")
	// ErrMismatch says that content doesn't have the hash it should have.
	ErrMismatch = errors.New("the content does not have the expected SHA-256")
	// ErrFull says that the disk, or the store's share of it, is full and
	// nothing may be evicted.
	ErrFull = errors.New("no room for the blob")
)

// Rank says how much a blob is needed.
type Rank int

// The ranks, in the order in which blobs are evicted. Pinned ones never are.
const (
	Unreferenced Rank = iota
	Referenced
	Pinned
)

// Options say how a Store is kept.
type Options struct {
	Max     int64 // bytes of all blobs; 0: as the disk allows
	Reserve int64 // bytes that stay free on the disk
	// Rank tells how much a blob is needed; nil: none is. It is called with no
	// lock held.
	Rank func(Sum) Rank
	Log  *slog.Logger
	Now  func() time.Time // nil: time.Now
}

// Store is a directory of blobs. Its methods may be called from any goroutine.
type Store struct {
	dir     string
	options Options
	log     *slog.Logger
	now     func() time.Time
	index   *index

	mu    sync.Mutex
	blobs map[Sum]*blob
	bytes int64

	evicting    sync.Mutex // one at a time
	broken      atomic.Pointer[error]
	full        atomic.Bool
	quarantined atomic.Int64
	evicted     atomic.Int64
}

// blob is what is known of a file below blobs/.
type blob struct {
	size    int64
	used    atomic.Int64 // unix seconds
	proving sync.Mutex   // held while the file is hashed
	proof   atomic.Pointer[proof]
}

// proof is the file that was hashed and found right in this process. Any change
// of its content through the file system changes the time of its inode.
type proof struct {
	device, inode uint64
	size          int64
	changed       syscall.Timespec
}

func proofOf(info fs.FileInfo) proof {
	st := info.Sys().(*syscall.Stat_t)
	return proof{st.Dev, st.Ino, st.Size, st.Ctim}
}

// Open opens the store in dir, makes it if need be, and removes what a crash
// left behind. A store is opened by one process at a time.
func Open(dir string, options Options) (*Store, error) {
	s := &Store{dir: dir, options: options, log: options.Log, now: options.Now, blobs: map[Sum]*blob{}}
	if s.now == nil {
		s.now = time.Now
	}
	if err := s.makeDirs(); err != nil && !isReadOnly(err) && !errors.Is(classify(err), ErrFull) {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := s.scan(); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var err error
	if s.index, err = openIndex(filepath.Join(dir, "index.db"), s.log); err != nil {
		return nil, fmt.Errorf("store: index: %w", err)
	}
	s.index.uses(func(sum Sum, used int64) {
		if b := s.blobs[sum]; b != nil {
			b.used.Store(used)
		}
	})
	return s, nil
}

func isReadOnly(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}

func (s *Store) makeDirs() error {
	for _, d := range []string{"blobs", "tmp", "quarantine"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			return err
		}
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "tmp", "*"))
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return durable.SyncDir(s.dir)
}

// scan reads the directory: it is the truth about which blobs there are.
func (s *Store) scan() error {
	root := filepath.Join(s.dir, "blobs")
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if path == root && errors.Is(err, fs.ErrNotExist) {
			return nil // a disk that can only be read, and holds nothing
		}
		if err != nil || d.IsDir() {
			return err
		}
		sum, ok := parseSum(d.Name())
		if !ok || path != s.path(sum) || !d.Type().IsRegular() {
			s.log.Warn("a file that is no blob lies in the store; it is left alone", "path", path)
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b := &blob{size: info.Size()}
		b.used.Store(proofOf(info).changed.Sec)
		s.blobs[sum] = b
		s.bytes += b.size
		return nil
	})
}

func parseSum(name string) (sum Sum, ok bool) {
	if len(name) != hex.EncodedLen(len(sum)) {
		return sum, false
	}
	_, err := hex.Decode(sum[:], []byte(name))
	return sum, err == nil && sum.String() == name
}

func (s *Store) path(sum Sum) string {
	name := sum.String()
	return filepath.Join(s.dir, "blobs", name[:2], name)
}

// Close writes what the index has to remember and closes it.
func (s *Store) Close() error {
	s.Flush()
	return s.index.close()
}

// Has tells whether the store has a blob, proven or not, and its size.
func (s *Store) Has(sum Sum) (size int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[sum]
	if b == nil {
		return 0, false
	}
	return b.size, true
}

// Use is Has for a blob that is served from a copy: it counts as used now.
func (s *Store) Use(sum Sum) (size int64, ok bool) {
	s.mu.Lock()
	b := s.blobs[sum]
	s.mu.Unlock()
	if b == nil {
		return 0, false
	}
	b.used.Store(s.now().Unix())
	return b.size, true
}

// Blob is an open blob whose content was proven in this process. The caller
// closes File.
type Blob struct {
	File     *os.File
	Size     int64
	Modified time.Time // as its server said; zero: it did not say
}

// BlobInfo is what is known of a blob.
type BlobInfo struct {
	Sum  Sum
	Size int64 // bytes
	Used int64 // when it was served last: of several, the least is the longest ago
}

// Blobs lists all blobs, in no order.
func (s *Store) Blobs() []BlobInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]BlobInfo, 0, len(s.blobs))
	for sum, b := range s.blobs {
		list = append(list, BlobInfo{sum, b.size, b.used.Load()})
	}
	return list
}

// Open opens a blob. The first time in this process, and whenever its inode
// changed, its content is hashed before, which blocks. A blob that is not what
// it should be is moved into quarantine; then, and when there is none, the
// error wraps ErrNotFound.
func (s *Store) Open(sum Sum) (Blob, error) {
	s.mu.Lock()
	b := s.blobs[sum]
	s.mu.Unlock()
	if b == nil {
		return Blob{}, fmt.Errorf("store: %s: %w", sum, ErrNotFound)
	}
	file, err := os.Open(s.path(sum))
	if err != nil {
		s.forget(sum, b)
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Error("a blob can't be opened", "sum", sum, "error", err)
		}
		return Blob{}, fmt.Errorf("store: %s: %w", sum, ErrNotFound)
	}
	info, err := file.Stat()
	if err == nil {
		err = s.prove(sum, b, file, info)
	}
	if err != nil {
		_ = file.Close()
		return Blob{}, err
	}
	b.used.Store(s.now().Unix())
	blob := Blob{File: file, Size: b.size}
	if at := info.ModTime(); at.Unix() != 0 {
		blob.Modified = at
	}
	return blob, nil
}

func (s *Store) forget(sum Sum, b *blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blobs[sum] == b {
		delete(s.blobs, sum)
		s.bytes -= b.size
	}
}

// Stats are what a store holds and went through since it was opened.
type Stats struct {
	Blobs       int    `json:"blobs"`
	Bytes       int64  `json:"bytes"`
	Max         int64  `json:"max_bytes"` // 0: as the disk allows
	Quarantined int64  `json:"quarantined"`
	Evicted     int64  `json:"evicted"`
	Full        bool   `json:"full"`             // the last write found no room
	Broken      string `json:"broken,omitempty"` // why the last write failed, if not for want of room
}

// Stats tells how the store stands.
func (s *Store) Stats() Stats {
	st := Stats{Max: s.options.Max, Quarantined: s.quarantined.Load(), Evicted: s.evicted.Load(), Full: s.full.Load()}
	if err := s.broken.Load(); err != nil {
		st.Broken = (*err).Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Blobs, st.Bytes = len(s.blobs), s.bytes
	return st
}

// noteWrite remembers how a write went.
func (s *Store) noteWrite(err error) {
	switch {
	case err == nil:
		s.full.Store(false)
		s.broken.Store(nil)
	case errors.Is(err, ErrFull):
		s.full.Store(true)
	default:
		s.broken.Store(&err)
	}
}
