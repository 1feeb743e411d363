package boltfile

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// A page that says it has fewer elements would lose the last, and bolt would
// never notice: every single bit of the number on every page in use is found, and
// so is one of a bucket that stands in its parent's page.
func TestFlippedNumberOfElementsIsFound(t *testing.T) {
	path := database(t)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { // two elements, so that one bit makes it none
		b, err := tx.CreateBucketIfNotExists([]byte("small"))
		if err != nil {
			return err
		}
		if err := b.Put([]byte("key in place a"), []byte("1")); err != nil {
			return err
		}
		return b.Put([]byte("key in place b"), []byte("2"))
	})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(good))
	meta, err := readMetas(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	c := checker{file: bytes.NewReader(good), meta: meta, seen: map[uint64]bool{}, visit: func(_, _, _ []byte) {}}
	if _, err := c.tree(meta.root, nil, nil, 0); err != nil {
		t.Fatal(err)
	}
	var counts []int // where the numbers are
	for id := range c.seen {
		at := int(id) * int(meta.pageSize)
		if binary.LittleEndian.Uint64(good[at:]) == id && slices.Contains([]uint16{branch, leafPage}, binary.LittleEndian.Uint16(good[at+8:])) {
			counts = append(counts, at+10)
		}
	}
	small := bytes.LastIndex(good, []byte("key in place a")) - 2*header - header
	if n := binary.LittleEndian.Uint16(good[small+10:]); n != 2 {
		t.Fatalf("the bucket in place has %d elements", n)
	}
	counts = append(counts, small+10)
	if len(counts) < 10 {
		t.Fatalf("only %d pages", len(counts))
	}
	for _, at := range counts {
		for bit := range 16 {
			bad := bytes.Clone(good)
			bad[at+bit/8] ^= 1 << (bit % 8)
			if check(bytes.NewReader(bad), size, func(_, _, _ []byte) {}) == nil {
				t.Errorf("bit %d of the number at %d, which is %d", bit, at, binary.LittleEndian.Uint16(good[at:]))
			}
		}
	}
}

func TestCheckEachGivesEveryKeyOfEveryBucket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a/k=1", "b/k=2", "m/x=3", "b/z=4"}
	err = db.Update(func(tx *bbolt.Tx) error {
		a, err := tx.CreateBucket([]byte("a"))
		if err != nil {
			return err
		}
		b, err := tx.CreateBucket([]byte("b"))
		if err != nil {
			return err
		}
		inner, err := b.CreateBucket([]byte("m"))
		if err != nil {
			return err
		}
		for _, err := range []error{a.Put([]byte("k"), []byte("1")), b.Put([]byte("k"), []byte("2")), inner.Put([]byte("x"), []byte("3")), b.Put([]byte("z"), []byte("4"))} {
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	err = CheckEach(path, func(bucket, key, value []byte) {
		got = append(got, string(bucket)+"/"+string(key)+"="+string(value))
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}
