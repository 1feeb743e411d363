package raftstore

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// lyingBolt has what it says that it could not write.
type lyingBolt struct {
	raft.LogStore
	lie, refuse bool
}

func (b *lyingBolt) StoreLogs(entries []*raft.Log) error {
	err := b.LogStore.StoreLogs(entries)
	if b.lie {
		return errors.Join(err, errTest)
	}
	return err
}

func (b *lyingBolt) DeleteRange(first, last uint64) error {
	if b.refuse {
		return errTest
	}
	return b.LogStore.DeleteRange(first, last)
}

// A write to bolt that failed and is there all the same is not found behind what
// another leader's took its place, also after a crash.
func TestWriteThatFailedAndIsThereIsRemoved(t *testing.T) {
	dir := t.TempDir()
	f, _ := openTestFront(t, dir)
	before := entriesOf(1, 100, 5)
	if err := f.StoreLogs(before); err != nil {
		t.Fatal(err)
	}
	bolt := &lyingBolt{LogStore: f.bolt}
	f.bolt = bolt
	long := entriesOf(101, 110, 5)
	for _, entry := range long {
		entry.Data = make([]byte, frontSize/10) // together too long for the journal
	}
	f.writing.Lock()
	err := f.settle()
	f.writing.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	bolt.lie = true
	if err := f.StoreLogs(long); !errors.Is(err, errTest) {
		t.Fatalf("a write that bolt refuses: %v", err)
	}
	bolt.lie, bolt.refuse = false, true
	next := entriesOf(101, 101, 6)
	if err := f.StoreLogs(next); !errors.Is(err, errTest) {
		t.Errorf("what bolt may have can't be removed, and is written over: %v", err)
	}
	bolt.refuse = false
	if err := f.StoreLogs(next); err != nil {
		t.Fatal(err)
	}
	want := append(before, next...)
	f.holds(t, "afterwards", want)
	crashed, _ := openTestFront(t, asAfterACrash(t, dir))
	crashed.holds(t, "after a crash", want)
}

// What a program before this one left so is set right by the journal.
func TestJournalGoesBeforeWhatAFailedWriteLeftInBolt(t *testing.T) {
	dir := t.TempDir()
	f, _ := openTestFront(t, dir)
	before := entriesOf(1, 100, 5)
	if err := f.StoreLogs(before); err != nil {
		t.Fatal(err)
	}
	f.writing.Lock()
	err := f.settle()
	f.writing.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	next := entriesOf(101, 102, 6)
	err = errors.Join(f.StoreLogs(next), f.bolt.StoreLogs(entriesOf(101, 110, 5)))
	if err != nil {
		t.Fatal(err)
	}
	copied := asAfterACrash(t, dir)
	bolt, err := openBolt(filepath.Join(copied, logName))
	if err != nil {
		t.Fatal(err)
	}
	looked, err := readFront(copied, bolt)
	if err != nil {
		t.Fatal(err)
	}
	want := append(before, next...)
	looked.holds(t, "looked at", want)
	if last, _ := bolt.LastIndex(); last != 110 {
		t.Errorf("looking at it changed it: bolt ends with %d", last)
	}
	if err := bolt.Close(); err != nil {
		t.Fatal(err)
	}
	after, _ := openTestFront(t, copied)
	after.holds(t, "after a start", want)
}
