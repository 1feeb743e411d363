package boltfile

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// database writes one with trees, buckets in buckets and pages that go on.
func database(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for i := range 3 {
			b, err := tx.CreateBucket(fmt.Append(nil, "bucket", i))
			if err != nil {
				return err
			}
			if _, err := b.CreateBucket([]byte("inner")); err != nil { // stands in its parent's page
				return err
			}
			for k := range 200 * i {
				if err := b.Put(fmt.Append(nil, "key", k), bytes.Repeat([]byte{byte(k)}, k*7%300)); err != nil {
					return err
				}
			}
			if err := b.Put([]byte("long"), make([]byte, 20_000)); err != nil {
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
	return path
}

func TestASoundFileIsSound(t *testing.T) {
	path := database(t)
	if err := Check(path); err != nil {
		t.Error(err)
	}
	if err := Check(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("no file: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Check(empty); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

func TestDamageOfAPageIsNamed(t *testing.T) {
	good, err := os.ReadFile(database(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		at     int
		damage []byte
	}{
		"a meta page's checksum":          {16 + 56, []byte{1}},
		"the other meta page's magic":     {4096 + 16, []byte{0}},
		"a file that was cut":             {-len(good) / 2, nil},
		"something else":                  {0, bytes.Repeat([]byte("text "), 2000)},
		"an overflow beyond the end":      {firstLeaf(good) + 12, []byte{0xff, 0xff}},
		"a page that is another":          {firstLeaf(good), []byte{0x77}},
		"an element that leads elsewhere": {firstLeaf(good) + 16 + 10, []byte{0xff, 0xff}},
	} {
		data := bytes.Clone(good)
		if c.at < 0 {
			data = data[:len(data)+c.at]
		} else {
			copy(data[c.at:], c.damage)
		}
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Check(path); err == nil {
			t.Errorf("%s: it is found sound", name)
		}
	}
}

// firstLeaf is where a leaf page that is in use begins: the root's.
func firstLeaf(data []byte) int {
	meta, err := readMetas(bytes.NewReader(data))
	if err != nil {
		return 0
	}
	return int(meta.root) * int(meta.pageSize)
}

func FuzzCheck(f *testing.F) {
	good, err := os.ReadFile(database(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, uint32(0), byte(0))
	f.Add(good, uint32(2*4096+12), byte(0xff))
	f.Fuzz(func(t *testing.T, data []byte, at uint32, with byte) {
		if len(data) > 0 {
			data = bytes.Clone(data)
			data[int(at)%len(data)] ^= with
		}
		// Sound or not: it must come back, without a panic and in bounded memory.
		_ = check(bytes.NewReader(data), int64(len(data)), func(_, _, _ []byte) {})
	})
}
