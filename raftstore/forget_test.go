package raftstore

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// countedDeletes keeps how many entries each transaction was to remove, and can
// end like a crash after some.
type countedDeletes struct {
	raft.LogStore
	sizes []uint64
	left  int // transactions before the crash; -1: none
}

func (c *countedDeletes) DeleteRange(first, last uint64) error {
	if c.left == 0 {
		return errors.New("the power is cut")
	}
	c.left--
	c.sizes = append(c.sizes, last-first+1)
	return c.LogStore.DeleteRange(first, last)
}

// newLongLog has 1000 entries in a log that counts.
func newLongLog(t *testing.T) (*checkedLog, *countedDeletes) {
	t.Helper()
	bolt, err := openBolt(filepath.Join(t.TempDir(), logName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bolt.Close() })
	counted := &countedDeletes{LogStore: bolt, left: -1}
	log := &checkedLog{LogStore: counted}
	var entries []*raft.Log
	for i := range 1000 {
		entries = append(entries, &raft.Log{Index: uint64(i + 1), Term: 1, Data: []byte("x")})
	}
	if err := log.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	return log, counted
}

func hasEntries(t *testing.T, log *checkedLog, first, last uint64) {
	t.Helper()
	if got, err := log.FirstIndex(); got != first || err != nil {
		t.Errorf("the first entry is %d, %v; want %d", got, err, first)
	}
	if got, err := log.LastIndex(); got != last || err != nil {
		t.Errorf("the last entry is %d, %v; want %d", got, err, last)
	}
	if _, err := examineEntries(log, first-1); err != nil {
		t.Error(err)
	}
}

// One transaction for all would hold up every write meanwhile.
func TestOldEntriesAreForgottenPieceByPiece(t *testing.T) {
	log, counted := newLongLog(t)
	if err := log.DeleteRange(1, 900); err != nil {
		t.Fatal(err)
	}
	hasEntries(t, log, 901, 1000)
	for _, n := range counted.sizes {
		if n > forgetAtOnce {
			t.Errorf("%d entries in one transaction", n)
		}
	}
}

func TestCrashWhileOldEntriesAreForgottenLeavesNoGap(t *testing.T) {
	log, counted := newLongLog(t)
	counted.left = 2
	if err := log.DeleteRange(1, 900); err == nil {
		t.Fatal("it did not end early")
	}
	hasEntries(t, log, 2*forgetAtOnce+1, 1000)
}

// The newest are replaced by another leader's: never part of them.
func TestNewEntriesAreTakenBackAtOnce(t *testing.T) {
	log, counted := newLongLog(t)
	if err := log.DeleteRange(200, 1000); err != nil {
		t.Fatal(err)
	}
	hasEntries(t, log, 1, 199)
	if len(counted.sizes) != 1 {
		t.Errorf("transactions of %v", counted.sizes)
	}
	if err := log.DeleteRange(1, 199); err != nil || len(counted.sizes) != 2 {
		t.Errorf("all that is left: %v, transactions of %v", err, counted.sizes)
	}
}
