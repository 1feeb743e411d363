package cas

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"holdfast/internal/boltfile"
)

// Entry is what the index remembers of a name: a URL whose content nothing
// vouches for but its server.
type Entry struct {
	Sum          Sum       `json:"sum"`
	Size         int64     `json:"size"`
	Type         string    `json:"type,omitempty"` // Content-Type
	ETag         string    `json:"etag,omitempty"`
	LastModified string    `json:"modified,omitempty"`
	Checked      time.Time `json:"checked"`           // when the server last said that this is it
	Fresh        time.Time `json:"fresh"`             // until when it need not be asked again
	Private      bool      `json:"private,omitempty"` // not kept
}

// index is the part of the store that a directory can't say. Changes are
// collected and written together; those of the last moment may be lost, and so
// may all of it.
type index struct {
	path string
	log  *slog.Logger

	mu    sync.Mutex
	db    *bolt.DB          // nil: in memory only, because the disk can't be written
	names map[string]*Entry // not yet written; nil: to be deleted
}

var (
	bucketNames = []byte("names") // name -> Entry, JSON
	bucketUses  = []byte("uses")  // sum -> unix seconds, 8 bytes big-endian
)

// openIndex opens the index; one that is damaged is put aside and a new one
// made, and where nothing can be written there is none.
func openIndex(path string, log *slog.Logger) (*index, error) {
	x := &index{path: path, log: log, names: map[string]*Entry{}}
	db, err := openBolt(path)
	if isReadOnly(err) || errors.Is(classify(err), ErrFull) {
		log.Error("the store can't be written: what is in it is served, nothing is added", "error", err)
		return x, nil
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is in use by another process: %w", path, err)
	}
	if err != nil {
		aside := path + ".damaged"
		log.Error("the index is damaged: it is put aside and made anew, names are asked for again", "path", path, "aside", aside, "error", err)
		if err := os.Rename(path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if db, err = openBolt(path); err != nil {
			return nil, err
		}
	}
	x.db = db
	return x, nil
}

// openBolt opens the database, when all of its pages make sense: bbolt panics
// where they don't, some of it in goroutines of its own.
func openBolt(path string) (db *bolt.DB, err error) {
	// A pointer in a damaged page may lead out of the mapped file.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if db != nil {
				closeQuietly(db)
			}
			db, err = nil, fmt.Errorf("%s: %v", path, p)
		}
	}()
	if err := boltfile.Check(path); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	// Without a list of free pages in the file, damage to it can't free what is
	// in use.
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketNames, bucketUses} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		closeQuietly(db)
		return nil, err
	}
	return db, nil
}

// closeQuietly closes a database that is damaged.
func closeQuietly(db *bolt.DB) {
	defer func() { _ = recover() }()
	_ = db.Close()
}

// guard turns a panic of bbolt into an error: damage that appears later.
func (x *index) guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %v", x.path, p)
		}
	}()
	return f()
}

// uses calls each for every time of use that is remembered.
func (x *index) uses(each func(Sum, int64)) {
	if x.db == nil {
		return
	}
	err := x.guard(func() error {
		return x.db.View(func(tx *bolt.Tx) error {
			return tx.Bucket(bucketUses).ForEach(func(k, v []byte) error {
				if len(k) == len(Sum{}) && len(v) == 8 {
					each(Sum(k), int64(binary.BigEndian.Uint64(v)))
				}
				return nil
			})
		})
	})
	if err != nil {
		x.log.Error("times of use can't be read from the index", "error", err)
	}
}

// Name gives what a name stands for.
func (s *Store) Name(name string) (Entry, bool) {
	x := s.index
	x.mu.Lock()
	defer x.mu.Unlock()
	if e, ok := x.names[name]; ok {
		if e == nil {
			return Entry{}, false
		}
		return *e, true
	}
	if x.db == nil {
		return Entry{}, false
	}
	var e Entry
	found := false
	err := x.guard(func() error {
		return x.db.View(func(tx *bolt.Tx) error {
			data := tx.Bucket(bucketNames).Get([]byte(name))
			if data == nil {
				return nil
			}
			found = true
			return json.Unmarshal(data, &e)
		})
	})
	if err != nil {
		x.log.Error("a name can't be read from the index", "name", name, "error", err)
		return Entry{}, false
	}
	return e, found
}

// maxName bounds a name, in bytes: bbolt's bound on keys.
const maxName = bolt.MaxKeySize

// SetName remembers what a name stands for; it is written by the next Flush.
func (s *Store) SetName(name string, e Entry) {
	if len(name) == 0 || len(name) > maxName {
		return
	}
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	s.index.names[name] = &e
}

// ForgetName makes the store forget a name.
func (s *Store) ForgetName(name string) {
	if len(name) == 0 || len(name) > maxName {
		return
	}
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	s.index.names[name] = nil
}

// Flush writes names and times of use. What can't be written stays in memory
// for the next time.
func (s *Store) Flush() {
	x := s.index
	if x.db == nil {
		return
	}
	s.mu.Lock()
	uses := make(map[Sum]int64, len(s.blobs))
	for sum, b := range s.blobs {
		uses[sum] = b.used.Load()
	}
	s.mu.Unlock()
	x.mu.Lock()
	names := x.names
	x.names = map[string]*Entry{}
	x.mu.Unlock()
	err := x.guard(func() error {
		return x.db.Update(func(tx *bolt.Tx) error { return write(tx, names, uses) })
	})
	if err == nil {
		return
	}
	x.log.Error("the index can't be written; names stay in memory", "error", err)
	x.mu.Lock()
	defer x.mu.Unlock()
	for name, e := range names {
		if _, newer := x.names[name]; !newer {
			x.names[name] = e
		}
	}
}

func write(tx *bolt.Tx, names map[string]*Entry, uses map[Sum]int64) error {
	bucket := tx.Bucket(bucketNames)
	for name, e := range names {
		if e == nil {
			if err := bucket.Delete([]byte(name)); err != nil {
				return err
			}
			continue
		}
		data, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if err := bucket.Put([]byte(name), data); err != nil {
			return err
		}
	}
	return writeUses(tx, uses)
}

// writeUses writes those that changed, and drops those of blobs that are gone.
func writeUses(tx *bolt.Tx, uses map[Sum]int64) error {
	bucket := tx.Bucket(bucketUses)
	var gone [][]byte
	err := bucket.ForEach(func(k, v []byte) error {
		if len(k) != len(Sum{}) {
			gone = append(gone, k)
			return nil
		}
		used, ok := uses[Sum(k)]
		switch {
		case !ok:
			gone = append(gone, k)
		case len(v) == 8 && int64(binary.BigEndian.Uint64(v)) == used:
			delete(uses, Sum(k))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range gone {
		if err := bucket.Delete(k); err != nil {
			return err
		}
	}
	for sum, used := range uses {
		if err := bucket.Put(sum[:], binary.BigEndian.AppendUint64(nil, uint64(used))); err != nil {
			return err
		}
	}
	return nil
}

func (x *index) close() error {
	if x.db == nil {
		return nil
	}
	return x.guard(x.db.Close)
}
