// Package boltfile examines bolt databases before bolt opens them.
//
// bolt panics on pages that make no sense, and faults where they lead out of
// the mapped file: at its start, and when it checks itself, in goroutines of its
// own, where nobody can catch it, and the whole program would end again and
// again. And when one of its two meta pages is damaged it goes on with the
// other, as if the last transaction, which may be a vote, had never been.
package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// The format, all little-endian here since bolt uses the machine's own and we
// run on such machines only: pages of one size, begun by id (8 bytes), flags
// (2), count (2) and overflow (4: how many pages it goes on for). Pages 0 and 1
// are meta pages. See go.etcd.io/bbolt, internal/common.
const (
	magic         = 0xED0CDAED
	formatVersion = 2
	header        = 16 // of a page, and each of its elements
	branch        = 0x01
	leafPage      = 0x02
	bucketFlag    = 0x01 // of a leaf's element: its value is a bucket
	metaSize      = 64   // without the page's header
	maxDepth      = 64   // far more than any tree has
	maxSpan       = 1 << 30
)

// metaPage is what counts of a meta page.
type metaPage struct {
	pageSize int64
	root     uint64
	high     uint64 // the first page that was never used
	txid     uint64
}

// Check reads all pages that are reachable, and blocks meanwhile. A file that is
// not there, is empty, or is held by another process is none of its business.
// The error says which page is wrong, or is the disk's.
func Check(path string) error { return CheckEach(path, func(_, _, _ []byte) {}) }

// CheckEach is Check, and gives visit all keys and values with the name of their
// bucket, which is that of the innermost one.
func CheckEach(path string, visit func(bucket, key, value []byte)) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil {
		return nil
	}
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	return check(f, st.Size(), visit)
}

func check(f io.ReaderAt, size int64, visit func(bucket, key, value []byte)) error {
	meta, err := readMetas(f)
	if err != nil {
		return err
	}
	if int64(meta.high) < 0 || int64(meta.high) > size/meta.pageSize {
		return fmt.Errorf("it has %d pages and %d bytes: it was cut", meta.high, size)
	}
	c := checker{file: f, meta: meta, seen: map[uint64]bool{0: true, 1: true}, visit: visit}
	_, err = c.tree(meta.root, nil, nil, 0)
	return err
}

// readMetas gives the newer of the two meta pages. Both are sound unless
// somebody damaged one: bolt writes one at a time, and what it writes fits into
// a sector.
func readMetas(f io.ReaderAt) (metaPage, error) {
	first, err := readMeta(f, 0)
	if err != nil {
		return first, fmt.Errorf("meta page 0: %w", err)
	}
	second, err := readMeta(f, first.pageSize)
	if err != nil {
		return second, fmt.Errorf("meta page 1: %w", err)
	}
	if second.pageSize != first.pageSize {
		return second, errors.New("its two meta pages have other page sizes")
	}
	if second.txid > first.txid {
		return second, nil
	}
	return first, nil
}

func readMeta(f io.ReaderAt, at int64) (metaPage, error) {
	var b [header + metaSize]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return metaPage{}, err
	}
	m := b[header:]
	h := fnv.New64a()
	_, _ = h.Write(m[:56])
	u32, u64 := binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	meta := metaPage{pageSize: int64(u32(m[8:])), root: u64(m[16:]), high: u64(m[40:]), txid: u64(m[48:])}
	switch {
	case u32(m) != magic:
		return meta, errors.New("it is none")
	case u64(m[56:]) != h.Sum64():
		return meta, errors.New("its checksum is another")
	case u32(m[4:]) != formatVersion:
		return meta, fmt.Errorf("version %d", u32(m[4:]))
	case meta.pageSize < 512 || meta.pageSize > 1<<20 || meta.pageSize&(meta.pageSize-1) != 0:
		return meta, fmt.Errorf("page size %d", meta.pageSize)
	}
	return meta, nil
}

// checker walks the trees.
type checker struct {
	file io.ReaderAt
	meta metaPage
	seen map[uint64]bool

	visit  func(bucket, key, value []byte)
	bucket []byte // the name of the one whose tree is walked
}

// tree checks a page and what hangs on it: keys from least, which may be nil,
// up to but not including limit, nil: no limit. It returns the last key.
func (c *checker) tree(id uint64, least, limit []byte, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("page %d: a tree deeper than %d", id, maxDepth)
	}
	page, err := c.page(id)
	if err != nil {
		return nil, err
	}
	last, err := c.elements(page, least, limit, depth)
	if err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return last, nil
}

// page reads a page with its overflow; each only once.
func (c *checker) page(id uint64) ([]byte, error) {
	if id >= c.meta.high {
		return nil, fmt.Errorf("page %d is not one of %d", id, c.meta.high)
	}
	var head [header]byte
	if _, err := c.file.ReadAt(head[:], int64(id)*c.meta.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	if own := binary.LittleEndian.Uint64(head[:]); own != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, own)
	}
	pages := uint64(binary.LittleEndian.Uint32(head[12:])) + 1
	if id+pages > c.meta.high || int64(pages)*c.meta.pageSize > maxSpan {
		return nil, fmt.Errorf("page %d says that it goes on for %d pages of %d", id, pages, c.meta.high)
	}
	for i := id; i < id+pages; i++ {
		if c.seen[i] {
			return nil, fmt.Errorf("page %d stands in two places", i)
		}
		c.seen[i] = true
	}
	page := make([]byte, int64(pages)*c.meta.pageSize)
	if _, err := c.file.ReadAt(page, int64(id)*c.meta.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return page, nil
}

// elements checks what stands on a page.
func (c *checker) elements(page, least, limit []byte, depth int) (last []byte, err error) {
	flags, count := binary.LittleEndian.Uint16(page[8:]), int(binary.LittleEndian.Uint16(page[10:]))
	switch {
	case flags != branch && flags != leafPage:
		return nil, fmt.Errorf("flags %#x", flags)
	case header*(count+1) > len(page):
		return nil, fmt.Errorf("%d elements in %d bytes", count, len(page))
	case flags == branch && count == 0:
		return nil, errors.New("a branch without leaves")
	}
	keys := make([][]byte, count)
	values := make([][]byte, count)
	end := header * (count + 1) // bolt writes what they hold behind them, without a gap
	for i := range keys {
		at := 0
		if keys[i], values[i], at, err = element(page, i, flags == leafPage); err != nil {
			return nil, fmt.Errorf("element %d: %w", i, err)
		}
		if at != end {
			return nil, fmt.Errorf("element %d of %d is at %d, and should be at %d", i, count, at, end)
		}
		end = at + len(keys[i]) + len(values[i])
	}
	if count == 0 && len(bytes.Trim(page[header:], "\x00")) > 0 {
		return nil, errors.New("no elements, and something behind them")
	}
	last = least
	for i, key := range keys {
		if order := bytes.Compare(key, last); last != nil && (order < 0 || order == 0 && i > 0) || limit != nil && bytes.Compare(key, limit) >= 0 {
			return nil, fmt.Errorf("element %d is out of order", i)
		}
		last = key
		at := header * (i + 1)
		switch {
		case flags == branch:
			next := limit
			if i+1 < count {
				next = keys[i+1]
			}
			last, err = c.tree(binary.LittleEndian.Uint64(page[at+8:]), key, next, depth+1)
		case binary.LittleEndian.Uint32(page[at:])&bucketFlag != 0:
			outer := c.bucket
			c.bucket = key
			err = c.inner(values[i], depth)
			c.bucket = outer
		default:
			c.visit(c.bucket, key, values[i])
		}
		if err != nil {
			return nil, err
		}
	}
	return last, nil
}

// element finds the key of an element, and of a leaf's the value, and where on
// the page they are.
func element(page []byte, i int, leaf bool) (key, value []byte, start int, err error) {
	at := header * (i + 1)
	u32 := func(k int) uint64 { return uint64(binary.LittleEndian.Uint32(page[at+k:])) }
	pos, ksize, vsize := u32(0), u32(4), uint64(0)
	if leaf {
		pos, ksize, vsize = u32(4), u32(8), u32(12)
	}
	from := uint64(at) + pos
	if from+ksize+vsize > uint64(len(page)) {
		return nil, nil, 0, fmt.Errorf("%d and %d bytes at %d of %d", ksize, vsize, from, len(page))
	}
	return page[from : from+ksize], page[from+ksize : from+ksize+vsize], int(from), nil
}

// inner checks a bucket: a root page, or a small page in place.
func (c *checker) inner(value []byte, depth int) error {
	if len(value) < header {
		return fmt.Errorf("a bucket of %d bytes", len(value))
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		_, err := c.tree(root, nil, nil, depth+1)
		return err
	}
	inline := value[header:]
	if len(inline) < header || binary.LittleEndian.Uint16(inline[8:]) != leafPage {
		return errors.New("a bucket without a page")
	}
	_, err := c.elements(inline, nil, nil, depth+1)
	return err
}
