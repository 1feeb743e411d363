package raftstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"holdfast/internal/journal"
)

const (
	frontName = "log.journal" // .0 and .1
	frontSize = 2 << 20       // bytes of each of its files
	// What waits in front of bolt is moved when it is so much, and so much at a
	// time.
	moveEntries = 1024
	moveBytes   = 512 << 10
)

func frontPaths(dir string) [2]string {
	return [2]string{filepath.Join(dir, frontName+".0"), filepath.Join(dir, frontName+".1")}
}

// front keeps the newest entries in a journal, where they are on the disk after
// one sync of data alone, and moves them to bolt behind the writers' backs: bolt
// syncs twice for each write, and writes its pages anew. What is in the journal
// is in memory, too.
//
// The journal has entries without a gap, which follow those of bolt. Whatever is
// not that, an entry after a gap or in the place of another, goes to bolt, after
// everything in the journal did.
type front struct {
	bolt    raft.LogStore
	journal *journal.Journal // nil: nothing can be written
	wake    chan struct{}
	stopped chan struct{}
	done    sync.WaitGroup

	writing sync.Mutex // held by who appends or takes back
	buffer  []byte
	unsure  []*raft.Log // entries that may be in bolt though it erred
	covered covered     // nil: any gap is taken

	moving sync.Mutex // held by who moves; after writing

	mu      sync.RWMutex
	tail    []*raft.Log // entries that are not in bolt yet
	size    int         // their bytes
	last    uint64      // the last entry of all
	trouble error       // why nothing could be moved
}

// openFront takes up the journal in dir and moves what it has to bolt. fresh:
// there is none yet. The journal is read by read.
func openFront(dir string, bolt raft.LogStore, fresh bool, read reading) (*front, error) {
	paths := frontPaths(dir)
	if fresh {
		if err := journal.Create(paths, frontSize); err != nil {
			return nil, fmt.Errorf("make the journal: %w", err)
		}
	}
	var j *journal.Journal
	var records [][]byte
	err := read(func() (err error) {
		j, records, err = journal.Open(paths)
		return err
	})
	if err != nil {
		return nil, frontError(err)
	}
	f := &front{bolt: soundLog{bolt}, journal: j, wake: make(chan struct{}, 1), stopped: make(chan struct{})}
	err = f.takeUp(records)
	if err == nil {
		err = f.settle()
	}
	if err != nil {
		return nil, errors.Join(err, j.Close())
	}
	f.done.Go(f.moveAlong)
	return f, nil
}

// readFront shows the log of a server that is down; nothing can be written.
func readFront(dir string, bolt raft.LogStore) (*front, error) {
	records, err := journal.Read(frontPaths(dir))
	if err != nil {
		return nil, frontError(err)
	}
	f := &front{bolt: soundLog{bolt}}
	return f, f.takeUp(records)
}

func frontError(err error) error {
	if errors.Is(err, journal.ErrDamaged) {
		return fmt.Errorf("the log: %w: %w", ErrDamaged, err)
	}
	return fmt.Errorf("open the journal: %w", err)
}

// takeUp makes the tail of what bolt has not; it may have been moved already.
func (f *front) takeUp(records [][]byte) error {
	var all []*raft.Log
	for _, data := range records {
		entries, err := decodeEntries(data)
		if err != nil {
			return fmt.Errorf("the journal: %w: %w", ErrDamaged, err)
		}
		if n := len(all); n > 0 && all[n-1].Index+1 != entries[0].Index {
			return fmt.Errorf("the journal: %w: entry %d follows %d", ErrDamaged, entries[0].Index, all[n-1].Index)
		}
		all = append(all, entries...)
	}
	err := soundly(func() (err error) {
		f.last, err = f.bolt.LastIndex()
		return err
	})
	if err != nil {
		return fmt.Errorf("the log: %w: %w", ErrDamaged, err)
	}
	if err := f.preferJournal(all); err != nil {
		return err
	}
	for len(all) > 0 && all[0].Index <= f.last {
		all = all[1:]
	}
	f.add(all)
	return nil
}

// add puts entries behind the tail; nobody else writes.
func (f *front) add(entries []*raft.Log) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tail = append(f.tail, entries...)
	for _, entry := range entries {
		f.size += len(entry.Data)
		f.last = max(f.last, entry.Index)
	}
}

// StoreLog implements raft.LogStore.
func (f *front) StoreLog(entry *raft.Log) error { return f.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore. The entries are kept, and must not be
// changed.
func (f *front) StoreLogs(entries []*raft.Log) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	if len(entries) == 0 {
		return nil
	}
	if err := f.makeSure(); err != nil {
		return err
	}
	if err := f.refuseGap(entries[0].Index); err != nil {
		return err
	}
	if f.journal.Broken() != nil || f.troubled() {
		if err := f.settle(); err != nil {
			return err
		}
	}
	if !f.follows(entries) {
		return f.storeDirectly(entries)
	}
	f.buffer = encodeEntries(f.buffer[:0], entries)
	if len(f.buffer) > f.journal.Largest()/2 {
		return f.storeDirectly(entries)
	}
	last := entries[len(entries)-1].Index
	err := f.journal.Append(last, f.buffer)
	if errors.Is(err, journal.ErrFull) { // the moving is behind
		if err := f.settle(); err != nil {
			return err
		}
		err = f.journal.Append(last, f.buffer)
	}
	if err != nil {
		return err
	}
	f.add(entries)
	if f.due() {
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// follows tells whether entries continue the log without a gap.
func (f *front) follows(entries []*raft.Log) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	next := f.last + 1
	if f.last == 0 {
		next = entries[0].Index
	}
	for i, entry := range entries {
		if entry.Index != next+uint64(i) {
			return false
		}
	}
	return true
}

func (f *front) storeDirectly(entries []*raft.Log) error {
	if err := f.settle(); err != nil {
		return err
	}
	if err := f.bolt.StoreLogs(entries); err != nil {
		f.unsure = entries
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = max(f.last, entries[len(entries)-1].Index)
	return nil
}

func (f *front) troubled() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.trouble != nil
}

func (f *front) due() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.tail) >= moveEntries || f.size >= moveBytes
}

// moveAlong moves entries to bolt until the front is closed. What can't be moved
// is tried again by who writes next, who gets the error.
func (f *front) moveAlong() {
	for {
		select {
		case <-f.wake:
		case <-f.stopped:
			return
		}
		for f.due() && !closed(f.stopped) {
			if f.moveSome() != nil {
				break
			}
		}
	}
}

func (f *front) moveAll() error {
	for {
		f.mu.RLock()
		n := len(f.tail)
		f.mu.RUnlock()
		if n == 0 {
			return nil
		}
		if err := f.moveSome(); err != nil {
			return err
		}
	}
}

// moveSome moves as many of the oldest entries as one transaction should have.
func (f *front) moveSome() error {
	f.moving.Lock()
	defer f.moving.Unlock()
	f.mu.RLock()
	n, size := 0, 0
	for n < len(f.tail) && n < moveEntries && (n == 0 || size+len(f.tail[n].Data) <= moveBytes) {
		size += len(f.tail[n].Data)
		n++
	}
	some := f.tail[:n:n]
	f.mu.RUnlock()
	if n == 0 {
		return nil
	}
	err := f.bolt.StoreLogs(some)
	if err == nil {
		f.mu.Lock()
		f.tail, f.size = slices.Clone(f.tail[n:]), f.size-size
		f.mu.Unlock()
		err = f.journal.Release(some[n-1].Index)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trouble = err
	if err != nil {
		return fmt.Errorf("move entries from the journal: %w", err)
	}
	return nil
}

// settle moves everything to bolt and empties the journal. The caller holds
// writing.
func (f *front) settle() error {
	if err := f.moveAll(); err != nil {
		return err
	}
	f.moving.Lock()
	defer f.moving.Unlock()
	if !f.journal.Empty() {
		if err := f.journal.Reset(); err != nil {
			return fmt.Errorf("empty the journal: %w", err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trouble = nil
	return nil
}

// FirstIndex implements raft.LogStore.
func (f *front) FirstIndex() (uint64, error) {
	f.mu.RLock()
	var newer uint64
	if len(f.tail) > 0 {
		newer = f.tail[0].Index
	}
	f.mu.RUnlock() // what is moved meanwhile is in bolt by the time it is looked for there
	first, err := f.bolt.FirstIndex()
	if err == nil && first == 0 {
		first = newer
	}
	return first, err
}

// LastIndex implements raft.LogStore.
func (f *front) LastIndex() (uint64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.last, nil
}

// GetLog implements raft.LogStore. It never waits for who writes. What bolt has
// behind the last entry is what a write that failed left: Raft would take it for
// written, and tell the leader so.
func (f *front) GetLog(index uint64, entry *raft.Log) error {
	f.mu.RLock()
	if index > f.last {
		f.mu.RUnlock()
		return raft.ErrLogNotFound
	}
	if len(f.tail) > 0 && index >= f.tail[0].Index {
		defer f.mu.RUnlock()
		i := index - f.tail[0].Index
		if i >= uint64(len(f.tail)) {
			return raft.ErrLogNotFound
		}
		*entry = *f.tail[i]
		return nil
	}
	f.mu.RUnlock()
	return f.bolt.GetLog(index, entry)
}

// DeleteRange implements raft.LogStore. Old entries, which are in bolt, are
// removed while others write. The newest must not come back out of the journal,
// which is therefore emptied before.
func (f *front) DeleteRange(first, last uint64) error {
	f.mu.RLock()
	old := last < f.last && (len(f.tail) == 0 || last < f.tail[0].Index)
	f.mu.RUnlock()
	if old {
		return f.bolt.DeleteRange(first, last)
	}
	f.writing.Lock()
	defer f.writing.Unlock()
	if err := f.makeSure(); err != nil {
		return err
	}
	if err := f.settle(); err != nil {
		return err
	}
	err := f.bolt.DeleteRange(first, last)
	newest, err2 := f.bolt.LastIndex()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err2 == nil {
		f.last = newest
	}
	return errors.Join(err, err2)
}

// Close moves everything to bolt, if that can be done, and closes the journal.
// bolt stays open. What a write that failed may have left is removed: who opens
// the log in this process again would take it for written. The error says, too,
// that this could not be done.
func (f *front) Close() error {
	close(f.stopped)
	f.done.Wait()
	f.writing.Lock()
	defer f.writing.Unlock()
	err := f.makeSure()
	_ = f.settle() // the next start does it
	return errors.Join(err, f.journal.Close())
}
