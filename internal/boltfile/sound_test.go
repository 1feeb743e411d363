package boltfile

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// Whatever bolt writes is sound: buckets that grow, shrink and become empty, in
// pages of their own and in their parent's, values that go on for pages. A check
// that is too strict would take a good log out of use.
func TestWhatBoltWritesIsSound(t *testing.T) {
	for _, unsynced := range []bool{true, false} { // the free list is a page of its own, or not
		r := rand.New(rand.NewPCG(8, 1))
		path := filepath.Join(t.TempDir(), "db")
		for round := range 40 {
			db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true, NoFreelistSync: unsynced, FreelistType: bbolt.FreelistMapType})
			if err != nil {
				t.Fatal(err)
			}
			for range 4 {
				if err := db.Update(func(tx *bbolt.Tx) error { return change(r, tx) }); err != nil {
					t.Fatal(err)
				}
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if err := Check(path); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
	}
}

// change puts and removes some keys, or all.
func change(r *rand.Rand, tx *bbolt.Tx) error {
	for _, name := range []string{"logs", "conf", "small"} {
		b, err := tx.CreateBucketIfNotExists([]byte(name))
		if err != nil {
			return err
		}
		inner, err := b.CreateBucketIfNotExists([]byte("inner"))
		if err != nil {
			return err
		}
		if name == "logs" {
			inner = b
		}
		most := 1 + r.IntN(400)
		if name == "small" {
			most = 3
		}
		for range most {
			if err := inner.Put(fmt.Appendf(nil, "key %08d", r.IntN(2000)), bytes.Repeat([]byte{1}, r.IntN(300))); err != nil {
				return err
			}
		}
		if r.IntN(4) == 0 {
			if err := inner.Put([]byte("key 5 is long"), make([]byte, 30_000)); err != nil {
				return err
			}
		}
		if r.IntN(3) > 0 {
			continue
		}
		var keys [][]byte
		err = inner.ForEach(func(key, value []byte) error {
			if value != nil {
				keys = append(keys, bytes.Clone(key))
			}
			return nil
		})
		if err != nil {
			return err
		}
		if r.IntN(2) == 0 {
			keys = keys[:len(keys)/2]
		}
		for _, key := range keys {
			if err := inner.Delete(key); err != nil {
				return err
			}
		}
	}
	return nil
}
