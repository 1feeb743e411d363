package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// ErrDamaged: what the disk gives back is not what was written to it.
var ErrDamaged = errors.New("the disk gave back something else than was written")

// sumSize is the length of a checksum: CRC-32C, as in iSCSI and ext4. It finds
// every burst of up to 32 flipped bits.
const sumSize = 4

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// sumOf is the checksum of an entry: of all that makes Raft and the state what
// they are. When it was appended is for people.
func sumOf(entry *raft.Log, extensions []byte) uint32 {
	var head [25]byte
	binary.LittleEndian.PutUint64(head[0:], entry.Index)
	binary.LittleEndian.PutUint64(head[8:], entry.Term)
	binary.LittleEndian.PutUint64(head[16:], uint64(len(entry.Data)))
	head[24] = byte(entry.Type)
	sum := crc32.Update(0, castagnoli(), head[:])
	sum = crc32.Update(sum, castagnoli(), entry.Data)
	return crc32.Update(sum, castagnoli(), extensions)
}

// checkedLog keeps a checksum with each entry, behind its extensions, and takes
// none back that does not have it: bolt checks its own pages, and not what
// stands on them. Raft never sees the checksums, nor do other servers.
type checkedLog struct {
	raft.LogStore
	onDamage func(error) // called with every ErrDamaged; must not block
}

// StoreLog implements raft.LogStore.
func (c *checkedLog) StoreLog(entry *raft.Log) error { return c.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore.
func (c *checkedLog) StoreLogs(entries []*raft.Log) error {
	sealed := make([]raft.Log, len(entries))
	pointers := make([]*raft.Log, len(entries))
	size := 0
	for _, entry := range entries {
		size += len(entry.Extensions) + sumSize
	}
	sums := make([]byte, 0, size) // of all entries, each in a part of its own
	for i, entry := range entries {
		begun := len(sums)
		sums = binary.LittleEndian.AppendUint32(append(sums, entry.Extensions...), sumOf(entry, entry.Extensions))
		sealed[i] = *entry // the caller's is in a cache, and on its way to others
		sealed[i].Extensions = slices.Clip(sums[begun:])
		pointers[i] = &sealed[i]
	}
	return c.LogStore.StoreLogs(pointers)
}

// forgetAtOnce is how many entries are removed in one transaction. bolt has one
// writer: whoever appends waits for it, and to remove what a gigabyte of log left
// took 1.5 s.
const forgetAtOnce = 256

// DeleteRange implements raft.LogStore. The oldest entries are removed piece by
// piece, and a crash in between leaves fewer of them; the newest, which others
// replace, at once, or it would leave a gap.
func (c *checkedLog) DeleteRange(first, last uint64) error {
	oldest, err := c.FirstIndex()
	if err != nil {
		return err
	}
	if newest, err := c.LastIndex(); err != nil || first > oldest || last >= newest {
		return errors.Join(err, c.LogStore.DeleteRange(first, last))
	}
	for from := max(first, oldest); from <= last; from += forgetAtOnce {
		if err := c.LogStore.DeleteRange(from, min(last, from+forgetAtOnce-1)); err != nil {
			return err
		}
	}
	return nil
}

// GetLog implements raft.LogStore. ErrDamaged: the entry is there and is not
// what was written.
func (c *checkedLog) GetLog(index uint64, entry *raft.Log) error {
	err := c.read(index, entry)
	if errors.Is(err, ErrDamaged) && c.onDamage != nil {
		c.onDamage(err)
	}
	return err
}

func (c *checkedLog) read(index uint64, entry *raft.Log) error {
	err := c.LogStore.GetLog(index, entry)
	if errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, bbolterrors.ErrDatabaseNotOpen) {
		return err
	}
	if err != nil {
		return fmt.Errorf("log entry %d: %w: %w", index, ErrDamaged, err)
	}
	if entry.Index != index {
		return fmt.Errorf("log entry %d: %w: it says that it is entry %d", index, ErrDamaged, entry.Index)
	}
	at := len(entry.Extensions) - sumSize
	if at < 0 {
		return fmt.Errorf("log entry %d: %w: it has no checksum", index, ErrDamaged)
	}
	want := binary.LittleEndian.Uint32(entry.Extensions[at:])
	entry.Extensions = entry.Extensions[:at:at]
	if at == 0 {
		entry.Extensions = nil // as it was given
	}
	if got := sumOf(entry, entry.Extensions); got != want {
		return fmt.Errorf("log entry %d: %w: its checksum is %08x and was %08x", index, ErrDamaged, got, want)
	}
	return nil
}

// checkedStable keeps a checksum with each value: the term and the vote, on
// which rests that nobody votes twice.
type checkedStable struct{ bolt raft.StableStore }

func stableSum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli()), castagnoli(), value)
}

// stableIntact tells whether a value as bolt has it is the one of its key.
func stableIntact(key, value []byte) bool {
	at := len(value) - sumSize
	return at >= 0 && binary.LittleEndian.Uint32(value[at:]) == stableSum(key, value[:at])
}

// Set implements raft.StableStore.
func (c checkedStable) Set(key, value []byte) error {
	return c.bolt.Set(key, binary.LittleEndian.AppendUint32(slices.Clone(value), stableSum(key, value)))
}

// Get implements raft.StableStore; its error for what was never set is the one
// that Raft knows.
func (c checkedStable) Get(key []byte) ([]byte, error) {
	value, err := c.bolt.Get(key)
	if err != nil {
		return nil, err
	}
	if !stableIntact(key, value) {
		return nil, fmt.Errorf("%q: %w", key, ErrDamaged)
	}
	at := len(value) - sumSize
	return value[:at:at], nil
}

// SetUint64 implements raft.StableStore.
func (c checkedStable) SetUint64(key []byte, value uint64) error {
	return c.Set(key, bigEndian(value))
}

func bigEndian(value uint64) []byte { return binary.BigEndian.AppendUint64(nil, value) }

// GetUint64 implements raft.StableStore.
func (c checkedStable) GetUint64(key []byte) (uint64, error) {
	value, err := c.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("%q: %w: %d bytes, and a number has 8", key, ErrDamaged, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}

// The format of the log, kept in it: one whose entries have no checksums can't
// be told from one whose checksums are damaged, and a journal that is gone not
// from one that never was.
const (
	formatChecked = 1 // entries have checksums
	formatFronted = 2 // and the newest are in a journal
	formatVoted   = 3 // and the last vote is one value; who reads two would forget it
	logFormat     = formatVoted
)

func formatKey() []byte { return []byte("holdfast log format") }

// readFormat gives the format of a log, 0 of a new one, and refuses one that this
// program can't read.
func readFormat(bolt *raftboltdb.BoltStore) (format uint64, err error) {
	err = soundly(func() error {
		format, err = readSound(bolt)
		return err
	})
	return format, err
}

// errNoChecksums: nothing in the log can be trusted.
var errNoChecksums = errors.New("it keeps no checksums: it was written by a version before they came, or its format is damaged")

func readSound(bolt *raftboltdb.BoltStore) (uint64, error) {
	format, err := checkedStable{bolt}.GetUint64(formatKey())
	switch {
	case err == nil && format >= formatChecked && format <= logFormat:
		return format, nil
	case err == nil:
		return 0, fmt.Errorf("its format is %d, and this version reads up to %d: install the version that wrote it", format, logFormat)
	case !errors.Is(err, raftboltdb.ErrKeyNotFound):
		return 0, fmt.Errorf("read its format: %w", err)
	}
	used, err := raft.HasExistingState(bolt, bolt, raft.NewDiscardSnapshotStore())
	if err != nil {
		return 0, fmt.Errorf("look into it: %w", err)
	}
	if used {
		return 0, errNoChecksums
	}
	return 0, nil
}

// openLogOver takes up the journal before a log in dir, or makes one for a log
// that has none, and notes that.
func openLogOver(dir string, bolt *raftboltdb.BoltStore) (*front, error) {
	return openLogReading(dir, bolt, once)
}

// openLogReading is openLogOver; what only reads is done by read.
func openLogReading(dir string, bolt *raftboltdb.BoltStore, read reading) (*front, error) {
	var format uint64
	err := read(func() (err error) {
		format, err = readFormat(bolt)
		return err
	})
	if err != nil {
		return nil, err
	}
	f, err := openFront(dir, bolt, format < formatFronted, read)
	if err != nil {
		return nil, err
	}
	if format < logFormat {
		if err := (checkedStable{bolt}).SetUint64(formatKey(), logFormat); err != nil {
			return nil, errors.Join(fmt.Errorf("note its format: %w", err), f.Close())
		}
	}
	return f, nil
}
