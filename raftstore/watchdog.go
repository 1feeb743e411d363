package raftstore

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// errHung: the disk has not answered in time.
var errHung = errors.New("the disk does not answer")

// watchdog turns a write that hangs into one that fails. A leader whose disk
// hangs goes on sending heartbeats, so that nobody else is elected and every
// write of the cluster waits (hashicorp/raft issue 503); a leader whose write
// fails steps down at once.
//
// A write that was given up may still reach the disk later. Raft would then
// find entries that it believes unwritten, behind ones of a newer term, and
// could vote by them. So nothing else is written until the late write is
// finished and, had it succeeded, taken back.
type watchdog struct {
	raft.LogStore
	limit    time.Duration
	onHung   func()
	onAnswer func()      // the late write is dealt with
	onFail   func(error) // a write ended with an error; may be nil
	ended    <-chan struct{}

	mu   sync.Mutex
	late bool
	// The entries of the late write; while it is late they are not there.
	first, last uint64
}

// GetLog implements raft.LogStore. Entries of a late write are not found, also
// when they have reached the disk: they will be removed, and who took them for
// written would write behind them.
func (w *watchdog) GetLog(index uint64, entry *raft.Log) error {
	w.mu.Lock()
	gone := w.late && index >= w.first && index <= w.last
	w.mu.Unlock()
	if gone {
		return raft.ErrLogNotFound
	}
	return w.LogStore.GetLog(index, entry)
}

// StoreLog implements raft.LogStore.
func (w *watchdog) StoreLog(entry *raft.Log) error { return w.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore.
func (w *watchdog) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	if err := w.ready("write"); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- w.LogStore.StoreLogs(entries) }()
	timer := time.NewTimer(w.limit)
	defer timer.Stop()
	select {
	case err := <-done:
		if err != nil && w.onFail != nil && !errors.Is(err, errGap) { // no fault of the disk
			w.onFail(err)
		}
		return err
	case <-timer.C:
	}
	first, last := entries[0].Index, entries[len(entries)-1].Index
	w.mu.Lock()
	w.late, w.first, w.last = true, first, last
	w.mu.Unlock()
	w.onHung()
	go w.takeBack(done, first, last)
	return fmt.Errorf("write log entries %d to %d: %w for %v", first, last, errHung, w.limit)
}

// DeleteRange implements raft.LogStore.
func (w *watchdog) DeleteRange(first, last uint64) error {
	if err := w.ready("delete"); err != nil {
		return err
	}
	return w.LogStore.DeleteRange(first, last)
}

func (w *watchdog) ready(what string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.late {
		return fmt.Errorf("%s log entries: an earlier write is not finished: %w", what, errHung)
	}
	return nil
}

// retryTakeBack is how long a late write that could not be removed waits.
const retryTakeBack = 100 * time.Millisecond

// takeBack waits for a late write. While its entries can't be removed again, for
// which the disk may need room or another moment, the log stays closed to writes.
// It is tried until it works or Raft is being stopped.
func (w *watchdog) takeBack(done <-chan error, first, last uint64) {
	if err := <-done; err == nil {
		for w.LogStore.DeleteRange(first, last) != nil {
			select {
			case <-time.After(retryTakeBack):
			case <-w.ended:
				return
			}
		}
	}
	w.mu.Lock()
	w.late = false
	w.mu.Unlock()
	w.onAnswer()
}
