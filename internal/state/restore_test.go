package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// filled is a store with a row in every table.
func filled(t testing.TB) *Store {
	t.Helper()
	s := New()
	for i, cmd := range []Command{
		SetCluster{Cluster{ID: "7f3c", Name: "scibian", Feature: 1}},
		samples()["register"],
		samples()["update-check"],
		Register{Node: Node{Name: "outside", Address: netip.MustParseAddr("2001:db8::9")}, Checks: []Check{{ID: "ping", Status: Passing}}},
		KV{Set, Entry{Key: "site/flag", Value: []byte("up"), Flags: 42}},
		KV{Set, Entry{Key: "site/gone", Value: []byte("x")}},
		KV{Verb: Delete, Entry: Entry{Key: "site/gone"}},
		PutDocument{Set, Document{Kind: "vrrp/hold", Key: "161", Value: []byte("fbservice1")}},
	} {
		if err := s.Apply(uint64(i)*10+10, cmd); err != nil {
			t.Fatal(err)
		}
	}
	s.graves[ofEntry].floorIndex = 60 // as if an older tombstone had been reaped
	snap := *s.Snapshot()
	snap.graves = s.graves
	s.publish(snap, nil)
	return s
}

// TestSnapshotOfFirstReleaseStays reads the snapshot that the first version
// wrote, and writes it again: what clusters have on their disks.
func TestSnapshotOfFirstReleaseStays(t *testing.T) {
	const file = "testdata/snapshot-1.hex"
	b := snapshotOf(t, filled(t))
	if *update {
		if err := os.WriteFile(file, []byte(hex.Dump(b)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden := readDump(t, file)
	if d := cmp.Diff(hex.Dump(golden), hex.Dump(b)); d != "" {
		t.Errorf("written otherwise than before:\n%s", d)
	}
	s := New()
	if err := s.Restore(bytes.NewReader(golden)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(hex.Dump(golden), hex.Dump(snapshotOf(t, s))); d != "" {
		t.Errorf("read and written again it differs:\n%s", d)
	}
}

func TestInspectCountsWhatIsInASnapshot(t *testing.T) {
	b := snapshotOf(t, filled(t))
	got, err := Inspect(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	framed := headerAndTrailer
	for _, table := range got.Tables {
		framed += table.Bytes
	}
	if framed != int64(len(b)) || got.Bytes != int64(len(b)) {
		t.Errorf("tables have %d bytes with header and trailer, Inspect says %d, the stream has %d", framed, got.Bytes, len(b))
	}
	for i := range got.Tables {
		got.Tables[i].Bytes = 0
	}
	want := Info{
		Format: 1, Index: 80, Records: 23, Bytes: int64(len(b)), SHA256: hex.EncodeToString(b[len(b)-32:]),
		Cluster: &Cluster{ID: "7f3c", Name: "scibian", Feature: 1, CreateIndex: 10, ModifyIndex: 10},
		Tables: []TableInfo{{Name: "cluster", Records: 1}, {Name: "nodes", Records: 2}, {Name: "services", Records: 1}, {Name: "checks", Records: 2},
			{Name: "kv", Records: 1}, {Name: "documents", Records: 1}, {Name: "index", Records: 14}, {Name: "floors", Records: 1}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

const headerAndTrailer = int64(headerSize + 1 + 8 + sha256.Size)

// TestBadSnapshotChangesNothing cuts a snapshot at every byte, and damages
// every byte of it.
func TestBadSnapshotChangesNothing(t *testing.T) {
	t.Parallel()
	b := snapshotOf(t, filled(t))
	s := New()
	if err := s.Apply(1, KV{Set, Entry{Key: "mine", Value: []byte("v")}}); err != nil {
		t.Fatal(err)
	}
	before, changed := snapshotOf(t, s), s.Changed()
	refuse := func(what string, bad []byte) {
		t.Helper()
		if err := s.Restore(bytes.NewReader(bad)); !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), "at byte") {
			t.Fatalf("%s: Restore = %v", what, err)
		}
	}
	for n := range b {
		refuse(fmt.Sprintf("cut at %d", n), b[:n])
		bad := bytes.Clone(b)
		bad[n] ^= 0x20
		refuse(fmt.Sprintf("damaged at %d", n), bad)
	}
	refuse("with a byte too many", append(bytes.Clone(b), 0))
	if info, err := Inspect(bytes.NewReader(b[:len(b)-1])); !errors.Is(err, ErrSnapshot) {
		t.Errorf("Inspect = %+v, %v", info, err)
	}
	if !bytes.Equal(before, snapshotOf(t, s)) {
		t.Error("a refused snapshot changed the store")
	}
	select {
	case <-changed:
		t.Error("a refused snapshot woke the watchers")
	default:
	}
}

func TestRestoreSaysWhatIsWrong(t *testing.T) {
	whole := snapshotOf(t, filled(t))
	newer := binary.BigEndian.AppendUint16([]byte(snapshotMagic), snapshotFormat+1)
	huge := append(bytes.Clone(whole[:headerSize]), tagNode, 0x7f, 0xff, 0xff, 0xff)
	node := &Node{Name: "n1", Address: netip.MustParseAddr("10.1.0.1"), CreateIndex: 1, ModifyIndex: 1}
	service := &Service{Node: "n1", ID: "a", Name: "apt", CreateIndex: 1, ModifyIndex: 1}
	for _, c := range []struct {
		name, want string
		stream     []byte
	}{
		{"nothing", "at byte 0: truncated", nil},
		{"something else", `not a snapshot: begins with "<!doctyp`, []byte("<!doctype html><title>404</title>")},
		{"a newer format", "format 2 is newer than 1", append(newer, whole[len(newer):]...)},
		{"a record too long", "a record of 2147483647 bytes", huge},
		{"cut in the trailer", "trailer: truncated", whole[:len(whole)-5]},
		{"two in a row", "data after the end", append(bytes.Clone(whole), whole...)},
		{"an unknown table", "record of unknown kind 99", forge(99, node)},
		{"a node twice", "out of order", forge(tagNode, node, tagNode, node)},
		{"tables in another order", "out of order", forge(tagNode, node, tagEntry, &Entry{Key: "k", CreateIndex: 1, ModifyIndex: 1}, tagService, service)},
		{"a node with an invalid name", "has a control character", forge(tagNode, &Node{Name: "a\x00b", Address: node.Address, CreateIndex: 1, ModifyIndex: 1})},
		{"a node with a mapped address", "not in its normal form", forge(tagNode, &Node{Name: "n", Address: netip.MustParseAddr("::ffff:10.1.0.1"), CreateIndex: 1, ModifyIndex: 1})},
		{"a service without its node", `service "a" is on node "n1", which is not there`, forge(tagService, service)},
		{"a check without its service", `check "c" speaks of service "a", which is not there`,
			forge(tagNode, node, tagCheck, &Check{Node: "n1", ID: "c", Name: "c", Status: Passing, ServiceID: "a", CreateIndex: 1, ModifyIndex: 1})},
		{"a check with another name than its service", "not in its normal form", forge(tagNode, node, tagService, service,
			tagCheck, &Check{Node: "n1", ID: "c", Name: "c", Status: Passing, ServiceID: "a", ServiceName: "deb", CreateIndex: 1, ModifyIndex: 1})},
		{"an index of the future", "changed at 8, in a snapshot at 7", forge(tagEntry, &Entry{Key: "k", CreateIndex: 1, ModifyIndex: 8})},
		{"an entry without key", "key is empty", forge(tagEntry, &Entry{CreateIndex: 1, ModifyIndex: 1})},
		{"a document without kind", "is empty", forge(tagDocument, &Document{Key: "k", CreateIndex: 1, ModifyIndex: 1})},
		{"an unknown aspect", "aspect 77 is unknown", forge(tagIndex, &indexRow{Aspect: 77, Index: 1})},
		{"an unknown aspect's floor", "aspect 77 is unknown", forge(tagFloor, &floorRow{77, 1})},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := New().Restore(bytes.NewReader(c.stream))
			if !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Restore = %v; want %q", err, c.want)
			}
		})
	}
}

// forge writes a stream at index 7 whose checksums are right, out of pairs of
// a tag and a row.
func forge(pairs ...any) []byte {
	var b bytes.Buffer
	w := newRecordWriter(&b)
	w.header(7)
	for i := 0; i < len(pairs); i += 2 {
		w.record(byte(pairs[i].(int)), pairs[i+1])
	}
	w.trailer()
	if err := w.close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func TestFailingReaderIsNotABadSnapshot(t *testing.T) {
	broken := errors.New("connection reset")
	whole := snapshotOf(t, filled(t))
	r := io.MultiReader(bytes.NewReader(whole[:100]), iotest.ErrReader(broken))
	err := New().Restore(r)
	if !errors.Is(err, broken) || errors.Is(err, ErrSnapshot) {
		t.Errorf("Restore = %v", err)
	}
	if err := New().Restore(iotest.OneByteReader(bytes.NewReader(whole))); err != nil {
		t.Errorf("byte by byte: %v", err)
	}
}

func TestFailingWriterIsReported(t *testing.T) {
	full := errors.New("no space left on device")
	s := filled(t)
	n, err := s.Snapshot().WriteTo(writerFunc(func(b []byte) (int, error) { return 0, full }))
	if !errors.Is(err, full) {
		t.Errorf("WriteTo = %d, %v", n, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestSnapshotsAreStreamed writes 32 MiB of values and sees how they arrive:
// nothing beside the record under way is buffered.
func TestSnapshotsAreStreamed(t *testing.T) {
	s := New()
	value := make([]byte, MaxValue)
	for i := range uint64(64) {
		if err := s.Apply(i+1, KV{Set, Entry{Key: fmt.Sprint(i), Value: value}}); err != nil {
			t.Fatal(err)
		}
	}
	largest := 0
	n, err := s.Snapshot().WriteTo(writerFunc(func(b []byte) (int, error) {
		largest = max(largest, len(b))
		return len(b), nil
	}))
	if err != nil || n < 64*MaxValue {
		t.Fatalf("WriteTo = %d, %v", n, err)
	}
	if largest > 2*MaxValue {
		t.Errorf("%d bytes at once", largest)
	}
}
