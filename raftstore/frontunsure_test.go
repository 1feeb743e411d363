package raftstore

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
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

// settled has bolt hold what the journal has.
func (f *front) settled(t *testing.T) {
	t.Helper()
	f.writing.Lock()
	defer f.writing.Unlock()
	if err := f.settle(); err != nil {
		t.Fatal(err)
	}
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
	f.settled(t)
	bolt.lie = true
	if err := f.StoreLogs(long); !errors.Is(err, errTest) {
		t.Fatalf("a write that bolt refuses: %v", err)
	}
	hidden := func() {
		t.Helper()
		for index := uint64(101); index <= 110; index++ { // or Raft takes it for written
			if err := f.GetLog(index, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
				t.Errorf("entry %d, whose write failed: %v", index, err)
			}
		}
	}
	hidden()
	bolt.lie, bolt.refuse = false, true
	next := entriesOf(101, 101, 6)
	if err := f.StoreLogs(next); !errors.Is(err, errTest) {
		t.Errorf("what bolt may have can't be removed, and is written over: %v", err)
	}
	hidden()
	bolt.refuse = false
	if err := f.StoreLogs(next); err != nil {
		t.Fatal(err)
	}
	want := append(before, next...)
	f.holds(t, "afterwards", want)
	crashed, _ := openTestFront(t, asAfterACrash(t, dir))
	crashed.holds(t, "after a crash", want)
}

// A store that begins anew in this process does not take what a failed write left
// in the system's cache for written.
func TestWriteThatFailedIsNotThereForWhoOpensTheLogAgain(t *testing.T) {
	dir := t.TempDir()
	f, closeAll := openTestFront(t, dir)
	before := entriesOf(1, 100, 5)
	if err := f.StoreLogs(before); err != nil {
		t.Fatal(err)
	}
	f.settled(t)
	f.bolt = &lyingBolt{LogStore: f.bolt, lie: true}
	f.writing.Lock()
	err := f.storeDirectly(entriesOf(101, 110, 5))
	f.writing.Unlock()
	if !errors.Is(err, errTest) {
		t.Fatalf("a write that bolt refuses: %v", err)
	}
	if err := closeAll(); err != nil {
		t.Fatal(err)
	}
	again, _ := openTestFront(t, dir)
	again.holds(t, "opened again", before)
}

// Entries behind a gap are only taken if a snapshot has what is missing: otherwise
// Raft believes that this server has what it has not.
func TestEntriesBehindAGapAreRefusedWithoutASnapshot(t *testing.T) {
	f, _ := openTestFront(t, t.TempDir())
	want := entriesOf(1, 100, 5)
	if err := f.StoreLogs(want); err != nil {
		t.Fatal(err)
	}
	snapshot, unreadable := uint64(0), error(nil)
	f.covered = func() (uint64, error) { return snapshot, unreadable }
	for _, snapshot = range []uint64{0, 90, 109} {
		if err := f.StoreLogs(entriesOf(111, 112, 5)); !errors.Is(err, errGap) {
			t.Errorf("behind a gap, with a snapshot up to %d: %v", snapshot, err)
		}
	}
	snapshot, unreadable = 110, errTest
	if err := f.StoreLogs(entriesOf(111, 112, 5)); !errors.Is(err, errTest) {
		t.Errorf("the snapshots can't be listed: %v", err)
	}
	f.holds(t, "after what was refused", want)
	unreadable = nil
	next := entriesOf(111, 112, 5)
	if err := f.StoreLogs(next); err != nil {
		t.Errorf("behind a snapshot: %v", err)
	}
	f.holds(t, "with a gap", append(want, next...))
}

// A server that was started knows by which snapshots a gap is covered, and begins
// anew when Raft leaves one.
func TestRunningServerRefusesEntriesBehindAGapAndBeginsAnew(t *testing.T) {
	h := newHosts(t, 1, 1)
	one := h.all["fb1"].start()
	h.leader()
	one.put("k", "1")
	e := one.store.engine.Load()
	last, err := e.front.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	log := suffixLog{LogStore: &watchdog{LogStore: e.checked, limit: time.Minute, onFail: e.disk.wrote}, stale: e.stands}
	if err := log.StoreLogs(entriesOf(last+1000, last+1000, 9)); !errors.Is(err, errGap) {
		t.Errorf("behind a gap: %v", err)
	}
	if f, why := e.disk.fitness(); f == diskSick {
		t.Errorf("it is taken for a fault of the disk: %s", why)
	}
	select { // Raft does not know where the log ends
	case err := <-one.done:
		if !errors.Is(err, errGap) {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(soon):
		t.Fatal("it goes on with a log that it does not know")
	}
	one.down(state.Failed)
}

// What a program before this one left so is set right by the journal.
func TestJournalGoesBeforeWhatAFailedWriteLeftInBolt(t *testing.T) {
	dir := t.TempDir()
	f, _ := openTestFront(t, dir)
	before := entriesOf(1, 100, 5)
	if err := f.StoreLogs(before); err != nil {
		t.Fatal(err)
	}
	f.settled(t)
	next := entriesOf(101, 102, 6)
	err := errors.Join(f.StoreLogs(next), f.bolt.StoreLogs(entriesOf(101, 110, 5)))
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
