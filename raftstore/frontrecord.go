package raftstore

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/hashicorp/raft"
)

// A record of the journal holds entries that were written together: the index of
// the first, how many there are, and of each the term, the type, when it was
// appended (nanoseconds since 1970, or nothing), data and extensions. All numbers
// are variable-length.

const (
	appendedUnknown = 0
	appendedKnown   = 1
)

// encodeEntries appends entries that follow each other.
func encodeEntries(to []byte, entries []*raft.Log) []byte {
	to = binary.AppendUvarint(to, entries[0].Index)
	to = binary.AppendUvarint(to, uint64(len(entries)))
	for _, entry := range entries {
		to = binary.AppendUvarint(to, entry.Term)
		to = append(to, byte(entry.Type))
		if entry.AppendedAt.IsZero() {
			to = append(to, appendedUnknown)
		} else {
			to = binary.AppendVarint(append(to, appendedKnown), entry.AppendedAt.UnixNano())
		}
		to = append(binary.AppendUvarint(to, uint64(len(entry.Data))), entry.Data...)
		to = append(binary.AppendUvarint(to, uint64(len(entry.Extensions))), entry.Extensions...)
	}
	return to
}

var errNoEntries = errors.New("a record that holds no entries")

// decodeEntries is the inverse; the entries share data.
func decodeEntries(data []byte) ([]*raft.Log, error) {
	r := entryReader{data}
	first, okFirst := r.number()
	count, okCount := r.number()
	if !okFirst || !okCount || count == 0 || count > uint64(len(data)) {
		return nil, errNoEntries
	}
	entries := make([]*raft.Log, 0, count)
	for i := range count {
		entry := &raft.Log{Index: first + i}
		if !r.entry(entry) {
			return nil, errNoEntries
		}
		entries = append(entries, entry)
	}
	if len(r.left) > 0 {
		return nil, errNoEntries
	}
	return entries, nil
}

// entryReader takes an encoding apart.
type entryReader struct{ left []byte }

func (r *entryReader) number() (uint64, bool) {
	n, size := binary.Uvarint(r.left)
	if size <= 0 {
		return 0, false
	}
	r.left = r.left[size:]
	return n, true
}

func (r *entryReader) octet() (byte, bool) {
	if len(r.left) == 0 {
		return 0, false
	}
	b := r.left[0]
	r.left = r.left[1:]
	return b, true
}

func (r *entryReader) text() ([]byte, bool) {
	n, ok := r.number()
	if !ok || n > uint64(len(r.left)) {
		return nil, false
	}
	text := r.left[:n:n]
	r.left = r.left[n:]
	if n == 0 {
		return nil, true
	}
	return text, true
}

func (r *entryReader) entry(entry *raft.Log) bool {
	var ok [4]bool
	var kind byte
	entry.Term, ok[0] = r.number()
	kind, ok[1] = r.octet()
	entry.Type = raft.LogType(kind)
	if !ok[0] || !ok[1] || !r.time(&entry.AppendedAt) {
		return false
	}
	entry.Data, ok[2] = r.text()
	entry.Extensions, ok[3] = r.text()
	return ok[2] && ok[3]
}

func (r *entryReader) time(t *time.Time) bool {
	known, ok := r.octet()
	if !ok || known > appendedKnown {
		return false
	}
	if known == appendedUnknown {
		return true
	}
	nanoseconds, size := binary.Varint(r.left)
	if size <= 0 {
		return false
	}
	r.left = r.left[size:]
	*t = time.Unix(0, nanoseconds)
	return true
}
