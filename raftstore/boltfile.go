package raftstore

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

// A bolt file is looked at before bolt opens it: bolt panics on pages that make
// no sense, at its start in a goroutine of its own, where nobody can catch it,
// and the whole program would end again and again. And when one of its two meta
// pages is damaged it goes on with the other, as if the last transaction, which
// may be a vote, had never been.
//
// The format, all little-endian here since bolt uses the machine's own and we
// run on such machines only: pages of one size, begun by id (8 bytes), flags
// (2), count (2) and overflow (4: how many pages it goes on for). Pages 0 and 1
// are meta pages. See go.etcd.io/bbolt, internal/common.
const (
	boltMagic    = 0xED0CDAED
	boltVersion  = 2
	boltHeader   = 16 // of a page, and each of its elements
	boltBranch   = 0x01
	boltLeaf     = 0x02
	boltBucket   = 0x01 // of a leaf's element: its value is a bucket
	boltMetaSize = 64   // without the page's header
	boltDepth    = 64   // far more than any tree has
	boltMaxSpan  = 1 << 30
)

// boltMeta is a meta page.
type boltMeta struct {
	pageSize int64
	root     uint64
	high     uint64 // the first page that was never used
	txid     uint64
}

// checkBoltFile reads all pages that are reachable. A file that is not there,
// is empty, or is held by another process is none of its business.
func checkBoltFile(path string) error {
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
	if err := checkBolt(f, st.Size()); err != nil {
		return fmt.Errorf("the log: %w: %w", ErrDamaged, err)
	}
	return nil
}

func checkBolt(f io.ReaderAt, size int64) error {
	meta, err := readBoltMetas(f)
	if err != nil {
		return err
	}
	if int64(meta.high) < 0 || int64(meta.high) > size/meta.pageSize {
		return fmt.Errorf("it has %d pages and %d bytes: it was cut", meta.high, size)
	}
	c := boltChecker{file: f, meta: meta, seen: map[uint64]bool{0: true, 1: true}}
	_, err = c.tree(meta.root, nil, nil, 0)
	return err
}

// readBoltMetas gives the newer of the two meta pages. Both are sound unless
// somebody damaged one: bolt writes one at a time, and what it writes fits into
// a sector.
func readBoltMetas(f io.ReaderAt) (boltMeta, error) {
	first, err := readBoltMeta(f, 0)
	if err != nil {
		return first, fmt.Errorf("meta page 0: %w", err)
	}
	second, err := readBoltMeta(f, first.pageSize)
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

func readBoltMeta(f io.ReaderAt, at int64) (boltMeta, error) {
	var b [boltHeader + boltMetaSize]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return boltMeta{}, err
	}
	m := b[boltHeader:]
	h := fnv.New64a()
	_, _ = h.Write(m[:56])
	u32, u64 := binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	meta := boltMeta{pageSize: int64(u32(m[8:])), root: u64(m[16:]), high: u64(m[40:]), txid: u64(m[48:])}
	switch {
	case u32(m) != boltMagic:
		return meta, errors.New("it is none")
	case u64(m[56:]) != h.Sum64():
		return meta, errors.New("its checksum is another")
	case u32(m[4:]) != boltVersion:
		return meta, fmt.Errorf("version %d", u32(m[4:]))
	case meta.pageSize < 512 || meta.pageSize > 1<<20 || meta.pageSize&(meta.pageSize-1) != 0:
		return meta, fmt.Errorf("page size %d", meta.pageSize)
	}
	return meta, nil
}

// boltChecker walks the trees.
type boltChecker struct {
	file io.ReaderAt
	meta boltMeta
	seen map[uint64]bool
}

// tree checks a page and what hangs on it: keys from least, which may be nil,
// up to but not including limit, nil: no limit. It returns the last key.
func (c *boltChecker) tree(id uint64, least, limit []byte, depth int) ([]byte, error) {
	if depth > boltDepth {
		return nil, fmt.Errorf("page %d: a tree deeper than %d", id, boltDepth)
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
func (c *boltChecker) page(id uint64) ([]byte, error) {
	if id >= c.meta.high {
		return nil, fmt.Errorf("page %d is not one of %d", id, c.meta.high)
	}
	var head [boltHeader]byte
	if _, err := c.file.ReadAt(head[:], int64(id)*c.meta.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	if own := binary.LittleEndian.Uint64(head[:]); own != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, own)
	}
	pages := uint64(binary.LittleEndian.Uint32(head[12:])) + 1
	if id+pages > c.meta.high || int64(pages)*c.meta.pageSize > boltMaxSpan {
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
func (c *boltChecker) elements(page, least, limit []byte, depth int) (last []byte, err error) {
	flags, count := binary.LittleEndian.Uint16(page[8:]), int(binary.LittleEndian.Uint16(page[10:]))
	switch {
	case flags != boltBranch && flags != boltLeaf:
		return nil, fmt.Errorf("flags %#x", flags)
	case boltHeader*(count+1) > len(page):
		return nil, fmt.Errorf("%d elements in %d bytes", count, len(page))
	case flags == boltBranch && count == 0:
		return nil, errors.New("a branch without leaves")
	}
	keys := make([][]byte, count)
	values := make([][]byte, count)
	for i := range keys {
		if keys[i], values[i], err = boltElement(page, i, flags == boltLeaf); err != nil {
			return nil, fmt.Errorf("element %d: %w", i, err)
		}
	}
	last = least
	for i, key := range keys {
		if order := bytes.Compare(key, last); last != nil && (order < 0 || order == 0 && i > 0) || limit != nil && bytes.Compare(key, limit) >= 0 {
			return nil, fmt.Errorf("element %d is out of order", i)
		}
		last = key
		at := boltHeader * (i + 1)
		switch {
		case flags == boltBranch:
			next := limit
			if i+1 < count {
				next = keys[i+1]
			}
			last, err = c.tree(binary.LittleEndian.Uint64(page[at+8:]), key, next, depth+1)
		case binary.LittleEndian.Uint32(page[at:])&boltBucket != 0:
			err = c.bucket(values[i], depth)
		}
		if err != nil {
			return nil, err
		}
	}
	return last, nil
}

// boltElement finds the key of an element, and of a leaf's the value.
func boltElement(page []byte, i int, leaf bool) (key, value []byte, err error) {
	at := boltHeader * (i + 1)
	u32 := func(k int) uint64 { return uint64(binary.LittleEndian.Uint32(page[at+k:])) }
	pos, ksize, vsize := u32(0), u32(4), uint64(0)
	if leaf {
		pos, ksize, vsize = u32(4), u32(8), u32(12)
	}
	from := uint64(at) + pos
	if from+ksize+vsize > uint64(len(page)) {
		return nil, nil, fmt.Errorf("%d and %d bytes at %d of %d", ksize, vsize, from, len(page))
	}
	return page[from : from+ksize], page[from+ksize : from+ksize+vsize], nil
}

// bucket checks a bucket: a root page, or a small page in place.
func (c *boltChecker) bucket(value []byte, depth int) error {
	if len(value) < boltHeader {
		return fmt.Errorf("a bucket of %d bytes", len(value))
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		_, err := c.tree(root, nil, nil, depth+1)
		return err
	}
	inline := value[boltHeader:]
	if len(inline) < boltHeader || binary.LittleEndian.Uint16(inline[8:]) != boltLeaf {
		return errors.New("a bucket without a page")
	}
	_, err := c.elements(inline, nil, nil, depth+1)
	return err
}
