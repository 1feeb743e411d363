package state

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/hashicorp/go-memdb"
)

// The stream of a snapshot, all numbers big-endian:
//
//	header   "holdfast" | format uint16 | index uint64 | CRC-32C of these
//	record   tag byte | length uint32 | body | CRC-32C of these
//	...
//	trailer  0xff | number of records uint64 | SHA-256 of all before it
//
// Records come in the order of their tags, and by primary key within one; a
// body is the row as a MessagePack map.
const (
	snapshotMagic  = "holdfast"
	snapshotFormat = 1
	headerSize     = len(snapshotMagic) + 2 + 8 + 4
	maxRecord      = 2 << 20 // a row is at most MaxValue and some names
	tagTrailer     = 0xff
)

// Tags of records. They never change.
const (
	tagCluster  = 1
	tagNode     = 2
	tagService  = 3
	tagCheck    = 4
	tagEntry    = 5
	tagDocument = 6
	tagIndex    = 7
	tagFloor    = 8
	tagSession  = 9
	tagDelay    = 10
)

// tagNames names the records of a tag in errors and in Info.
var tagNames = map[byte]string{
	tagCluster:  string(TableCluster),
	tagNode:     string(TableNode),
	tagService:  string(TableService),
	tagCheck:    string(TableCheck),
	tagEntry:    string(TableKV),
	tagDocument: string(TableDocument),
	tagIndex:    tableIndex,
	tagFloor:    "floors",
	tagSession:  string(TableSession),
	tagDelay:    string(TableDelay),
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrSnapshot is in every error about the content of a snapshot: truncated,
// corrupt, written by a newer program, or not a snapshot at all.
var ErrSnapshot = errors.New("bad snapshot")

// floorRow is a grave's floor in a snapshot.
type floorRow struct {
	Aspect aspect `codec:"aspect"`
	Index  uint64 `codec:"index"`
}

// WriteTo writes all replicated tables, for Raft's snapshots: a header with
// magic, version and index, then checksummed records, then a trailer that
// proves the stream whole. The same tables always give the same bytes, on
// every replica. Beside a record nothing is buffered.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	out := newRecordWriter(w)
	out.header(s.index)
	writeRows[Cluster](out, s.txn, tagCluster, TableCluster)
	writeRows[Node](out, s.txn, tagNode, TableNode)
	writeRows[Service](out, s.txn, tagService, TableService)
	writeRows[Check](out, s.txn, tagCheck, TableCheck)
	writeRows[Entry](out, s.txn, tagEntry, TableKV)
	writeRows[Document](out, s.txn, tagDocument, TableDocument)
	writeRows[indexRow](out, s.txn, tagIndex, tableIndex)
	for a := ofTable; a < aspects; a++ {
		if f := s.graves[a].floorIndex; f > 0 {
			out.record(tagFloor, &floorRow{a, f})
		}
	}
	writeRows[Session](out, s.txn, tagSession, TableSession)
	writeRows[LockDelay](out, s.txn, tagDelay, TableDelay)
	out.trailer()
	if err := out.close(); err != nil {
		return out.written.n, fmt.Errorf("state: write snapshot: %w", err)
	}
	return out.written.n, nil
}

func writeRows[T any](out *recordWriter, txn *memdb.Txn, tag byte, table Table) {
	writeSome(out, txn, tag, table, func(*T) bool { return true })
}

func writeSome[T any](out *recordWriter, txn *memdb.Txn, tag byte, table Table, wanted func(*T) bool) {
	it, err := txn.Get(string(table), "id")
	must(err)
	for obj := it.Next(); obj != nil && out.err == nil; obj = it.Next() {
		if row := obj.(*T); wanted(row) {
			out.record(tag, row)
		}
	}
}

// recordWriter frames records. After an error it does nothing more.
type recordWriter struct {
	written  countingWriter
	buffered *bufio.Writer
	sum      hash.Hash
	frame    []byte
	encoder  *encoder
	records  uint64
	err      error
}

// countingWriter counts what arrived.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

func newRecordWriter(to io.Writer) *recordWriter {
	w := &recordWriter{written: countingWriter{w: to}, sum: sha256.New(), encoder: newEncoder()}
	w.buffered = bufio.NewWriterSize(&w.written, 64<<10)
	return w
}

func (w *recordWriter) close() error {
	if w.err == nil {
		w.err = w.buffered.Flush()
	}
	return w.err
}

func (w *recordWriter) write(b []byte) {
	if w.err != nil {
		return
	}
	w.sum.Write(b)
	_, w.err = w.buffered.Write(b)
}

func (w *recordWriter) header(index uint64) {
	b := append(w.frame[:0], snapshotMagic...)
	b = binary.BigEndian.AppendUint16(b, snapshotFormat)
	b = binary.BigEndian.AppendUint64(b, index)
	w.write(sealed(b))
	w.frame = b
}

// sealed appends the CRC-32C of b.
func sealed(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func (w *recordWriter) record(tag byte, row any) {
	body, err := w.encoder.encode(row)
	if err != nil {
		w.err = fmt.Errorf("encode %T: %w", row, err)
		return
	}
	b := append(w.frame[:0], tag)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = sealed(append(b, body...))
	w.write(b)
	w.frame = b
	w.records++
}

func (w *recordWriter) trailer() {
	w.write(binary.BigEndian.AppendUint64([]byte{tagTrailer}, w.records))
	w.write(w.sum.Sum(nil))
}
