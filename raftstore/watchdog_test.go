package raftstore

import (
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// fullLog is a stuckLog that can't delete for a while.
type fullLog struct {
	stuckLog
	refuse atomic.Int32 // so many deletions
	asked  atomic.Int32
}

func (l *fullLog) DeleteRange(first, last uint64) error {
	l.asked.Add(1)
	if l.refuse.Add(-1) >= 0 {
		return syscall.ENOSPC
	}
	return l.stuckLog.DeleteRange(first, last)
}

// A disk that hung and then was full for a moment is back by itself: the late
// write is taken back when that can be done.
func TestLateWriteIsTakenBackWhenTheDiskHasRoomAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &fullLog{stuckLog: stuckLog{LogStore: raft.NewInmemStore()}}
		disk.refuse.Store(30)
		var answered atomic.Int32
		ended := make(chan struct{})
		defer close(ended)
		w := &watchdog{LogStore: disk, limit: 2 * time.Second, onHung: func() {}, onAnswer: func() { answered.Add(1) }, ended: ended}
		hang := make(chan struct{})
		disk.set(hang)
		if err := w.StoreLogs(entries(1, 3, 1)); !errors.Is(err, errHung) {
			t.Fatal(err)
		}
		disk.set(nil)
		close(hang)
		start := time.Now()
		for answered.Load() == 0 && time.Since(start) < time.Minute {
			if err := w.StoreLogs(entries(1, 1, 2)); !errors.Is(err, errHung) {
				t.Fatalf("a write before the late one is taken back: %v", err)
			}
			time.Sleep(retryTakeBack / 2)
		}
		if took := time.Since(start); took > 31*retryTakeBack || took < 30*retryTakeBack {
			t.Errorf("it was taken back after %v, and the disk was full for 30 attempts", took)
		}
		if last, _ := disk.LastIndex(); last != 0 {
			t.Errorf("entries up to %d are there still", last)
		}
		if err := w.StoreLogs(entries(1, 1, 2)); err != nil {
			t.Errorf("the disk is back: %v", err)
		}
	})
}

func TestTakingBackEndsWithRaft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails if a goroutine stays
		disk := &fullLog{stuckLog: stuckLog{LogStore: raft.NewInmemStore()}}
		disk.refuse.Store(1 << 30)
		ended := make(chan struct{})
		w := &watchdog{LogStore: disk, limit: 2 * time.Second, onHung: func() {}, onAnswer: func() { t.Error("it says that the disk answers") }, ended: ended}
		hang := make(chan struct{})
		disk.set(hang)
		if err := w.StoreLogs(entries(1, 3, 1)); !errors.Is(err, errHung) {
			t.Fatal(err)
		}
		close(hang)
		time.Sleep(10 * retryTakeBack)
		if disk.asked.Load() < 5 {
			t.Errorf("it was tried %d times", disk.asked.Load())
		}
		close(ended)
	})
}

// Between the moment in which a late write reaches the disk and the one in which
// it is removed, Raft must not find its entries: it would write behind them.
func TestEntriesOfALateWriteAreNotFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &fullLog{stuckLog: stuckLog{LogStore: raft.NewInmemStore()}}
		var answered atomic.Bool
		ended := make(chan struct{})
		defer close(ended)
		w := &watchdog{LogStore: disk, limit: 2 * time.Second, onHung: func() {}, onAnswer: func() { answered.Store(true) }, ended: ended}
		if err := w.StoreLogs(entries(1, 3, 1)); err != nil {
			t.Fatal(err)
		}
		disk.refuse.Store(10)
		hang := make(chan struct{})
		disk.set(hang)
		if err := w.StoreLogs(entries(4, 6, 1)); !errors.Is(err, errHung) {
			t.Fatal(err)
		}
		disk.set(nil)
		close(hang)
		synctest.Wait()
		if last, _ := disk.LastIndex(); last != 6 || answered.Load() {
			t.Fatalf("the disk has entries up to %d; the late ones should be there still", last)
		}
		for index, want := range map[uint64]error{3: nil, 4: raft.ErrLogNotFound, 5: raft.ErrLogNotFound, 6: raft.ErrLogNotFound} {
			if err := w.GetLog(index, new(raft.Log)); !errors.Is(err, want) {
				t.Errorf("entry %d: %v, want %v", index, err, want)
			}
		}
		for begun := time.Now(); !answered.Load() && time.Since(begun) < time.Minute; {
			time.Sleep(retryTakeBack)
		}
		if err := w.StoreLogs(entries(4, 4, 2)); err != nil {
			t.Fatal(err)
		}
		var got raft.Log
		if err := w.GetLog(4, &got); err != nil || got.Term != 2 {
			t.Errorf("what replaced it: term %d, %v", got.Term, err)
		}
	})
}
