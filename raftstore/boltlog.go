package raftstore

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// The buckets of the file, and what is in them byte for byte, are raft-boltdb's:
// in the one entries as MessagePack under their index, in the other the values of
// the stable store. Numbers are big-endian.
const (
	logsBucket = "logs"
	confBucket = "conf"
)

// boltLog keeps entries and the stable store in a bolt database, as raft-boltdb
// does. That makes a description of the type of an entry, and an encoder, for each
// entry that it writes, which took longer than to write it.
type boltLog struct {
	db *bbolt.DB
	// What is used in a transaction that writes, of which there is one at a time.
	encoder *codec.Encoder
	one     []byte // an entry
	all     []byte // the entries of the transaction, which bolt reads at its end

	reading *codec.MsgpackHandle
}

// keptBytes is how large a buffer may be that is kept for the next transaction.
const keptBytes = 1 << 20

// newBoltLog opens or makes the file at path. It is not examined.
func newBoltLog(path string, options *bbolt.Options) (*boltLog, error) {
	db, err := bbolt.Open(path, 0o600, options)
	if err != nil {
		return nil, err
	}
	b := &boltLog{db: db, one: make([]byte, 0, 512), reading: new(codec.MsgpackHandle)}
	writing := new(codec.MsgpackHandle)
	writing.TimeNotBuiltin = true // a time as encoding.BinaryMarshaler gives it
	b.encoder = codec.NewEncoderBytes(&b.one, writing)
	if options != nil && options.ReadOnly {
		return b, nil
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{logsBucket, confBucket} {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	return b, nil
}

// Close waits for transactions under way.
func (b *boltLog) Close() error { return b.db.Close() }

// FirstIndex implements raft.LogStore.
func (b *boltLog) FirstIndex() (uint64, error) {
	return b.end(func(c *bbolt.Cursor) []byte {
		key, _ := c.First()
		return key
	})
}

// LastIndex implements raft.LogStore.
func (b *boltLog) LastIndex() (uint64, error) {
	return b.end(func(c *bbolt.Cursor) []byte {
		key, _ := c.Last()
		return key
	})
}

// end gives the index that a cursor finds; 0: there is no entry.
func (b *boltLog) end(find func(*bbolt.Cursor) []byte) (index uint64, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		if key := find(tx.Bucket([]byte(logsBucket)).Cursor()); key != nil {
			index = binary.BigEndian.Uint64(key)
		}
		return nil
	})
	return index, err
}

// GetLog implements raft.LogStore.
func (b *boltLog) GetLog(index uint64, entry *raft.Log) error {
	return b.db.View(func(tx *bbolt.Tx) error {
		value := tx.Bucket([]byte(logsBucket)).Get(bigEndian(index))
		if value == nil {
			return raft.ErrLogNotFound
		}
		// From a reader it copies: value is the file's, and another entry's later.
		return codec.NewDecoder(bytes.NewReader(value), b.reading).Decode(entry)
	})
}

// StoreLog implements raft.LogStore.
func (b *boltLog) StoreLog(entry *raft.Log) error { return b.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore, in one transaction.
func (b *boltLog) StoreLogs(entries []*raft.Log) error {
	return b.db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(logsBucket))
		if cap(b.all) > keptBytes {
			b.all = nil
		}
		b.all = b.all[:0]
		for _, entry := range entries {
			value, err := b.encode(entry)
			if err != nil {
				return err
			}
			if err := bucket.Put(bigEndian(entry.Index), value); err != nil {
				return err
			}
		}
		return nil
	})
}

// encode gives an entry's bytes, which are good until the next transaction.
func (b *boltLog) encode(entry *raft.Log) ([]byte, error) {
	b.encoder.ResetBytes(&b.one)
	if err := b.encoder.Encode(entry); err != nil {
		return nil, fmt.Errorf("encode log entry %d: %w", entry.Index, err)
	}
	begun := len(b.all)
	b.all = append(b.all, b.one...) // where it moves, earlier ones stay where they are
	if cap(b.one) > keptBytes {
		b.one = make([]byte, 0, 512)
	}
	return b.all[begun:len(b.all):len(b.all)], nil
}

// DeleteRange implements raft.LogStore, in one transaction; both ends are included.
func (b *boltLog) DeleteRange(first, last uint64) error {
	return b.db.Update(func(tx *bbolt.Tx) error {
		c := tx.Bucket([]byte(logsBucket)).Cursor()
		for key, _ := c.Seek(bigEndian(first)); key != nil && binary.BigEndian.Uint64(key) <= last; key, _ = c.Next() {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}

// Set implements raft.StableStore.
func (b *boltLog) Set(key, value []byte) error {
	return b.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte(confBucket)).Put(key, value) })
}

// Get implements raft.StableStore. For what was never set the error is
// raftboltdb.ErrKeyNotFound, whose text Raft knows.
func (b *boltLog) Get(key []byte) (value []byte, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		found := tx.Bucket([]byte(confBucket)).Get(key)
		if found == nil {
			return raftboltdb.ErrKeyNotFound
		}
		value = bytes.Clone(found)
		return nil
	})
	return value, err
}

// SetUint64 implements raft.StableStore.
func (b *boltLog) SetUint64(key []byte, value uint64) error { return b.Set(key, bigEndian(value)) }

// GetUint64 implements raft.StableStore.
func (b *boltLog) GetUint64(key []byte) (uint64, error) {
	value, err := b.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("%q: %d bytes, and a number has 8", key, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}
