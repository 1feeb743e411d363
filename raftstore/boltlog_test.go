package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// unsynced is for files that no crash will meet.
func unsynced() *bbolt.Options { return &bbolt.Options{Timeout: time.Second, NoSync: true} }

func newTestBolt(tb testing.TB, path string) *boltLog {
	tb.Helper()
	b, err := newBoltLog(path, unsynced())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { b.Close() })
	return b
}

func newTheirBolt(tb testing.TB, path string) *raftboltdb.BoltStore {
	tb.Helper()
	b, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: unsynced(), NoSync: true})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { b.Close() })
	return b
}

// manyEntries are of all kinds, from index 1 on.
func manyEntries() (all []*raft.Log) {
	at := time.Date(2026, 11, 26, 12, 0, 0, 123456789, time.UTC)
	for i := range uint64(1500) {
		entry := &raft.Log{Index: i + 1, Term: 1 + i/100, Type: raft.LogType(i % 5), AppendedAt: at.Add(time.Duration(i) * time.Millisecond)}
		switch i % 7 {
		case 0:
			entry.AppendedAt = time.Time{}
		case 1:
			entry.AppendedAt = entry.AppendedAt.In(time.FixedZone("", 3600))
			entry.Data = []byte{}
		case 2:
			entry.Data, entry.Extensions = []byte("x"), []byte{1, 2, 3, 4}
		default:
			entry.Data, entry.Extensions = bytes.Repeat([]byte{byte(i)}, int(i)), []byte{}
		}
		all = append(all, entry)
	}
	all[77].Data = bytes.Repeat([]byte("large"), keptBytes/2)
	return all
}

// content is every bucket, key and value of a file.
func content(t *testing.T, path string) map[string]string {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	all := map[string]string{}
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			all[string(name)] = "bucket"
			return b.ForEach(func(key, value []byte) error {
				all[fmt.Sprintf("%s/%x", name, key)] = string(value)
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A server of any version takes up the log of any other: what is written must be
// raft-boltdb's to the byte. The wrong form of a time, or a buffer that is used
// again while bolt still needs it, shows here.
func TestTheLogIsRaftBoltDBsToTheByte(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
	fill := func(log interface {
		raft.LogStore
		raft.StableStore
		Close() error
	}) {
		all := manyEntries()
		for _, err := range []error{
			log.StoreLogs(all[:1000]), log.StoreLogs(all[1000:]), log.StoreLog(&raft.Log{Index: 1501, Term: 40}),
			log.DeleteRange(1, 10), log.DeleteRange(1400, 9999), log.DeleteRange(700, 650),
			log.Set([]byte("name"), []byte("value")), log.SetUint64([]byte("number"), 1<<40), log.Set([]byte("empty"), nil), log.Close(),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(newTestBolt(t, ours))
	fill(newTheirBolt(t, theirs))
	got, want := content(t, ours), content(t, theirs)
	if len(want) != 1399-10+3+2 {
		t.Errorf("%d keys and buckets, want what is left of 1500 entries", len(want))
	}
	for key, value := range want {
		if got[key] != value {
			t.Errorf("%s: %.60q, want %.60q", key, got[key], value)
		}
		delete(got, key)
	}
	if len(got) > 0 {
		t.Errorf("%d keys that raft-boltdb would not write", len(got))
	}
}

// Each reads what the other wrote, and says the same of what is not there.
func TestTheLogReadsAsRaftBoltDBDoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	ours := newTestBolt(t, path)
	if err := errors.Join(ours.StoreLogs(manyEntries()), ours.DeleteRange(1, 3), ours.SetUint64([]byte("number"), 7)); err != nil {
		t.Fatal(err)
	}
	read := func(log interface {
		raft.LogStore
		raft.StableStore
		Close() error
	}) (said []string, entries []raft.Log) {
		say := func(what string, value any, err error) { said = append(said, fmt.Sprint(what, " ", value, " ", err)) }
		first, err := log.FirstIndex()
		say("first", first, err)
		last, err := log.LastIndex()
		say("last", last, err)
		for i := range last + 1 {
			var entry raft.Log
			if err := log.GetLog(i+1, &entry); err != nil {
				say("entry", i+1, err)
				continue
			}
			entries = append(entries, entry)
		}
		number, err := log.GetUint64([]byte("number"))
		say("number", number, err)
		none, err := log.Get([]byte("none"))
		say("none", none, err)
		if !errors.Is(err, raftboltdb.ErrKeyNotFound) {
			t.Errorf("what was never set: %v", err)
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
		_, err = log.FirstIndex()
		say("closed", "", err)
		return said, entries
	}
	said, entries := read(ours)
	wantSaid, wantEntries := read(newTheirBolt(t, path))
	if diff := cmp.Diff(wantSaid, said); diff != "" {
		t.Errorf("what it says (-raft-boltdb +ours):\n%s", diff)
	}
	if diff := cmp.Diff(wantEntries, entries); diff != "" {
		t.Errorf("entries (-raft-boltdb +ours):\n%.2000s", diff)
	}
}

// A file that was read once stays unharmed: entries keep nothing of its pages,
// which are the next transaction's.
func TestAnEntryThatWasReadKeepsNothingOfTheFile(t *testing.T) {
	b := newTestBolt(t, filepath.Join(t.TempDir(), "log"))
	if err := b.StoreLogs(manyEntries()); err != nil {
		t.Fatal(err)
	}
	var entry raft.Log
	if err := b.GetLog(101, &entry); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if want := manyEntries()[100]; !bytes.Equal(entry.Data, want.Data) || !bytes.Equal(entry.Extensions, want.Extensions) { // or the process dies
		t.Errorf("%+v, want %+v", entry, want)
	}
}

// raft-boltdb, with an encoder and a description of the type for each entry, needs
// 29, most of which are those. bolt itself needs six.
func TestEntriesAreWrittenWithOneEncoder(t *testing.T) {
	b := newTestBolt(t, filepath.Join(t.TempDir(), "log"))
	entries := benchEntries(256)
	n := testing.AllocsPerRun(10, func() {
		for _, entry := range entries {
			entry.Index += uint64(len(entries))
		}
		if err := b.StoreLogs(entries); err != nil {
			t.Fatal(err)
		}
	})
	if per := n / float64(len(entries)); per > 12 {
		t.Errorf("%.1f allocations an entry, want at most 12", per)
	}
}

func benchEntries(n int) []*raft.Log {
	entries := make([]*raft.Log, n)
	for i := range entries {
		entries[i] = &raft.Log{Index: uint64(i + 1), Term: 2, Data: bytes.Repeat([]byte("v"), 300), Extensions: []byte{1, 2, 3, 4}, AppendedAt: time.Now()}
	}
	return entries
}

// BenchmarkMove is the cost of an entry on its way from the journal to bolt,
// without that of the disk.
func BenchmarkMove(b *testing.B) {
	for name, log := range map[string]raft.LogStore{
		"ours": newTestBolt(b, filepath.Join(b.TempDir(), "log")), "raft-boltdb": newTheirBolt(b, filepath.Join(b.TempDir(), "log")),
	} {
		b.Run(name, func(b *testing.B) {
			entries := benchEntries(moveEntries)
			b.ReportAllocs()
			for range (b.N + moveEntries - 1) / moveEntries {
				for _, entry := range entries {
					entry.Index += moveEntries
				}
				if err := log.StoreLogs(entries); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
