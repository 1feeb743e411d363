package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"slices"

	"github.com/hashicorp/go-memdb"
)

// Info describes a snapshot.
type Info struct {
	Format  int         `json:"format"`
	Index   uint64      `json:"index"`             // Snapshot.Index of the state in it
	Cluster *Cluster    `json:"cluster,omitempty"` // nil: of a store that was not formed
	Tables  []TableInfo `json:"tables"`            // those that have records, in the stream's order
	Records uint64      `json:"records"`
	Bytes   int64       `json:"bytes"`  // of the whole stream
	SHA256  string      `json:"sha256"` // hex, as in the trailer
}

// TableInfo describes one table in a snapshot.
type TableInfo struct {
	Name    string `json:"name"`
	Records uint64 `json:"records"`
	Bytes   int64  `json:"bytes"` // with the framing
}

// Restore replaces all replicated tables by what r holds (as Snapshot.WriteTo wrote
// it) and wakes every watcher. r is read to its end. A truncated, corrupt or
// newer stream is an ErrSnapshot and changes nothing. Gossip's view stays.
//
// Snapshot.Index becomes that of the stream: the next command's must be
// greater. Who restores a snapshot of another time into a running Raft gives
// it the index that Inspect tells.
func (s *Store) Restore(r io.Reader) error {
	l, err := load(r)
	if err != nil {
		return fmt.Errorf("state: restore: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.view.Load()
	abandoned := s.abandoned
	s.db, s.graves, s.abandoned = l.db, l.graves, make(chan struct{})
	next := *old.snapshot
	next.txn, next.abandoned, next.graves = s.db.Txn(false), s.abandoned, l.graves
	next.index = l.info.Index
	next.version++
	s.journal.reset(next.version)
	s.view.Store(&view{snapshot: &next, changed: make(chan struct{})})
	s.committed.reset(next.index) // after the view: see Whole
	close(old.changed)
	close(abandoned)
	return nil
}

// Inspect reads a snapshot to its end, verifies it as completely as Restore
// does, and tells what is in it.
func Inspect(r io.Reader) (Info, error) {
	l, err := load(r)
	if err != nil {
		return Info{}, fmt.Errorf("state: inspect: %w", err)
	}
	return l.info, nil
}

// loader rebuilds the tables from a stream.
type loader struct {
	in     *recordReader
	db     *memdb.MemDB
	txn    *memdb.Txn
	graves graves
	info   Info
	tag    byte   // of the record before
	key    []byte // likewise
}

func load(r io.Reader) (*loader, error) {
	l := &loader{in: &recordReader{r: r, sum: sha256.New()}, db: newDB()}
	l.txn = l.db.Txn(true)
	defer l.txn.Abort() // after Commit it does nothing
	if err := l.run(); err != nil {
		var foreign *readError
		if errors.As(err, &foreign) {
			return nil, foreign.err
		}
		return nil, fmt.Errorf("%w: at byte %d: %w", ErrSnapshot, l.in.start, err)
	}
	addBuckets(l.txn)
	l.txn.Commit()
	l.info.Bytes = l.in.read
	return l, nil
}

func (l *loader) run() error {
	index, err := l.in.header()
	if err != nil {
		return err
	}
	l.info.Format, l.info.Index = snapshotFormat, index
	for {
		tag, body, err := l.in.record()
		if err != nil {
			return err
		}
		if tag == tagTrailer {
			break
		}
		if err := l.row(tag, body); err != nil {
			return fmt.Errorf("%s: %w", tagNames[tag], err)
		}
		l.count(tag, l.in.read-l.in.start)
	}
	if err := l.holders(); err != nil {
		return err
	}
	l.info.Records, l.info.SHA256 = l.in.records, hex.EncodeToString(l.in.digest)
	return l.in.end()
}

func (l *loader) count(tag byte, n int64) {
	if len(l.info.Tables) == 0 || l.info.Tables[len(l.info.Tables)-1].Name != tagNames[tag] {
		l.info.Tables = append(l.info.Tables, TableInfo{Name: tagNames[tag]})
	}
	t := &l.info.Tables[len(l.info.Tables)-1]
	t.Records++
	t.Bytes += n
}

// row stores one record. Its checksum was right, so what is wrong here was
// written wrongly; believed, it would break what Apply relies on.
func (l *loader) row(tag byte, body []byte) error {
	switch tag {
	case tagCluster:
		return loadRow(l, tag, body, TableCluster, func(c *Cluster) ([]byte, error) {
			l.info.Cluster = c
			return key("cluster"), l.indexes(c.CreateIndex, c.ModifyIndex)
		})
	case tagNode:
		return loadRow(l, tag, body, TableNode, func(n *Node) ([]byte, error) {
			return nodeKey(n), errors.Join(l.indexes(n.CreateIndex, n.ModifyIndex), l.node(n))
		})
	case tagService:
		return loadRow(l, tag, body, TableService, func(s *Service) ([]byte, error) {
			return serviceKey(s), errors.Join(l.indexes(s.CreateIndex, s.ModifyIndex), l.service(s))
		})
	case tagCheck:
		return loadRow(l, tag, body, TableCheck, func(c *Check) ([]byte, error) {
			return checkKey(c), errors.Join(l.indexes(c.CreateIndex, c.ModifyIndex), l.check(c))
		})
	case tagEntry:
		return loadRow(l, tag, body, TableKV, func(e *Entry) ([]byte, error) {
			if e.Key == "" {
				return nil, errors.New("key is empty")
			}
			return entryKey(e), errors.Join(l.indexes(e.CreateIndex, e.ModifyIndex), checkBytes("key", func() string { return e.Key }, e.Key, e.Value))
		})
	case tagDocument:
		return loadRow(l, tag, body, TableDocument, func(d *Document) ([]byte, error) {
			if d.Key == "" {
				return nil, errors.New("key is empty")
			}
			return documentKey(d), errors.Join(l.indexes(d.CreateIndex, d.ModifyIndex),
				checkName("kind", d.Kind), checkBytes("key", func() string { return d.Key }, d.Key, d.Value))
		})
	case tagIndex:
		return loadRow(l, tag, body, tableIndex, func(r *indexRow) ([]byte, error) {
			return r.subject().key(), errors.Join(l.indexes(r.Index, r.Index), l.grave(r))
		})
	case tagFloor:
		return l.floor(body)
	case tagSession:
		return loadRow(l, tag, body, TableSession, func(s *Session) ([]byte, error) {
			return key(s.ID), errors.Join(l.indexes(s.CreateIndex, s.ModifyIndex), l.indexes(s.CreateIndex, s.RenewIndex), l.session(s))
		})
	case tagDelay:
		return loadRow(l, tag, body, TableDelay, func(d *LockDelay) ([]byte, error) {
			if d.Delay < MinLockDelay || d.Delay > MaxLockDelay {
				return nil, fmt.Errorf("lock-delay of %s", d.Delay)
			}
			return []byte(d.Key), errors.Join(l.indexes(d.Index, d.Index), checkBytes("key", func() string { return d.Key }, d.Key, nil))
		})
	}
	return fmt.Errorf("record of unknown kind %d: a newer program wrote it", tag)
}

// loadRow decodes a row, has it examined, and stores it if it comes after the
// row before.
func loadRow[T any](l *loader, tag byte, body []byte, table Table, examine func(*T) ([]byte, error)) error {
	row := new(T)
	if err := decodeBody(body, row); err != nil {
		return err
	}
	k, err := examine(row)
	if err != nil {
		return err
	}
	if err := l.ascending(tag, k); err != nil {
		return err
	}
	must(l.txn.Insert(string(table), row))
	return nil
}

func (l *loader) ascending(tag byte, k []byte) error {
	if tag < l.tag || tag == l.tag && bytes.Compare(k, l.key) <= 0 {
		return fmt.Errorf("record %q is out of order", k)
	}
	l.tag, l.key = tag, k
	return nil
}

func (l *loader) indexes(create, modify uint64) error {
	if create == 0 || create > modify || modify > l.info.Index {
		return fmt.Errorf("created at index %d, changed at %d, in a snapshot at %d", create, modify, l.info.Index)
	}
	return nil
}

// The rows of the catalog must be as Apply would have written them.

func (l *loader) node(n *Node) error {
	clean, err := cleanNode(*n)
	if err == nil && !equalNode(clean, n) {
		err = fmt.Errorf("node %q is not in its normal form", n.Name)
	}
	return err
}

func (l *loader) service(s *Service) error {
	node := first[Node](l.txn, string(TableNode), "id", key(Fold(s.Node)))
	if node == nil {
		return fmt.Errorf("service %.64q is on node %.64q, which is not there", s.ID, s.Node)
	}
	clean, err := cleanService(node, *s)
	if err == nil && !equalService(clean, s) {
		err = fmt.Errorf("service %q is not in its normal form", s.ID)
	}
	return err
}

func (l *loader) check(c *Check) error {
	node := first[Node](l.txn, string(TableNode), "id", key(Fold(c.Node)))
	if node == nil {
		return fmt.Errorf("check %.64q is on node %.64q, which is not there", c.ID, c.Node)
	}
	clean, err := cleanCheck(node, *c)
	if err != nil {
		return err
	}
	if c.ServiceID != "" {
		svc := first[Service](l.txn, string(TableService), "id", key(Fold(c.Node), c.ServiceID))
		if svc == nil {
			return fmt.Errorf("check %q speaks of service %.64q, which is not there", c.ID, c.ServiceID)
		}
		clean.ServiceName, clean.ServiceTags = svc.Name, svc.Tags
	}
	if !equalCheck(clean, c) {
		return fmt.Errorf("check %q is not in its normal form", c.ID)
	}
	return nil
}

// session must be on its node, and stand on checks that are not critical.
func (l *loader) session(s *Session) error {
	clean, err := cleanSession(*s)
	if err != nil {
		return err
	}
	node := first[Node](l.txn, string(TableNode), "id", key(Fold(s.Node)))
	if node == nil || node.Name != s.Node || clean.Behavior != s.Behavior {
		return fmt.Errorf("session %q is on node %.64q, which is not there, or not in its normal form", s.ID, s.Node)
	}
	for _, id := range slices.Concat(s.NodeChecks, s.ServiceChecks) {
		chk := first[Check](l.txn, string(TableCheck), "id", key(Fold(s.Node), id))
		if chk == nil || chk.Status == Critical {
			return fmt.Errorf("session %q stands on check %.64q, which is critical or not there", s.ID, id)
		}
	}
	return nil
}

// holders makes sure that who holds a key is there: nobody else could free it.
func (l *loader) holders() error {
	for _, e := range list[Entry](l.txn, string(TableKV), "id", nil) {
		if e.Session != "" && first[Session](l.txn, string(TableSession), "id", key(e.Session)) == nil {
			return fmt.Errorf("key %q is held by session %.64q, which is not there", e.Key, e.Session)
		}
	}
	return nil
}

// hasRows tells whether an aspect can have rows in a snapshot.
func hasRows(a aspect) bool { return a >= ofTable && a < aspects && a != ofPrefix }

func (l *loader) grave(r *indexRow) error {
	if !hasRows(r.Aspect) {
		return fmt.Errorf("aspect %d is unknown", r.Aspect)
	}
	if !r.Dead {
		return nil
	}
	if l.graves[r.Aspect].count++; l.graves[r.Aspect].count > maxGraves {
		return fmt.Errorf("more than %d tombstones of %s", maxGraves, r.Aspect)
	}
	return nil
}

func (l *loader) floor(body []byte) error {
	var f floorRow
	if err := decodeBody(body, &f); err != nil {
		return err
	}
	if !hasRows(f.Aspect) {
		return fmt.Errorf("aspect %d is unknown", f.Aspect)
	}
	if err := l.ascending(tagFloor, []byte{byte(f.Aspect)}); err != nil {
		return err
	}
	l.graves[f.Aspect].floorIndex = f.Index
	return l.indexes(f.Index, f.Index)
}

// recordReader takes a stream apart and verifies its checksums.
type recordReader struct {
	r       io.Reader
	sum     hash.Hash
	start   int64 // of the record being read
	read    int64
	records uint64
	digest  []byte
	frame   bytes.Buffer
}

// readError is a failure of the reader underneath, not of what it read.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }

// take appends n bytes of the stream to the frame. The buffer grows only as
// far as there are bytes.
func (r *recordReader) take(n int64) error {
	got, err := io.CopyN(&r.frame, r.r, n)
	r.read += got
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("truncated: %d of %d bytes", got, n)
	case err != nil:
		return &readError{fmt.Errorf("read snapshot at byte %d: %w", r.read, err)}
	}
	return nil
}

func (r *recordReader) header() (index uint64, err error) {
	if err := r.take(int64(headerSize)); err != nil {
		return 0, err
	}
	b := r.frame.Bytes()
	if string(b[:len(snapshotMagic)]) != snapshotMagic {
		return 0, fmt.Errorf("not a snapshot: begins with %q instead of %q", b[:len(snapshotMagic)], snapshotMagic)
	}
	rest := b[len(snapshotMagic):]
	if f := binary.BigEndian.Uint16(rest); f > snapshotFormat {
		return 0, fmt.Errorf("format %d is newer than %d, which is the newest this program reads", f, snapshotFormat)
	} else if f == 0 {
		return 0, errors.New("format 0 does not exist")
	}
	if err := r.crc(); err != nil {
		return 0, fmt.Errorf("header: %w", err)
	}
	return binary.BigEndian.Uint64(rest[2:]), nil
}

// crc checks the sum at the end of the frame, and adds the frame to the digest.
func (r *recordReader) crc() error {
	b := r.frame.Bytes()
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return fmt.Errorf("corrupt: CRC-32C is %08x, not %08x", got, sum)
	}
	r.sum.Write(b)
	return nil
}

// record returns the next record; its body is valid until the one after.
func (r *recordReader) record() (tag byte, body []byte, err error) {
	r.start = r.read
	r.frame.Reset()
	if err := r.take(1); err != nil {
		return 0, nil, err
	}
	if tag = r.frame.Bytes()[0]; tag == tagTrailer {
		return tag, nil, r.trailer()
	}
	if err := r.take(4); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(r.frame.Bytes()[1:])
	if n > maxRecord {
		return 0, nil, fmt.Errorf("corrupt: a record of %d bytes, more than %d", n, maxRecord)
	}
	if err := r.take(int64(n) + 4); err != nil {
		return 0, nil, err
	}
	if err := r.crc(); err != nil {
		return 0, nil, err
	}
	r.records++
	return tag, r.frame.Bytes()[5 : 5+n], nil
}

func (r *recordReader) trailer() error {
	if err := r.take(8 + sha256.Size); err != nil {
		return fmt.Errorf("trailer: %w", err)
	}
	b := r.frame.Bytes()
	r.sum.Write(b[:9])
	r.digest = r.sum.Sum(nil)
	if !bytes.Equal(r.digest, b[9:]) {
		return fmt.Errorf("corrupt: SHA-256 is %x, not %x", r.digest, b[9:])
	}
	if n := binary.BigEndian.Uint64(b[1:]); n != r.records {
		return fmt.Errorf("corrupt: %d records, not %d", r.records, n)
	}
	return nil
}

// end verifies that nothing follows.
func (r *recordReader) end() error {
	r.start = r.read
	r.frame.Reset()
	var more *readError
	switch err := r.take(1); {
	case err == nil:
		return errors.New("data after the end")
	case errors.As(err, &more):
		return err
	}
	return nil
}
