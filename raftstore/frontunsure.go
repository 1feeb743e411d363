package raftstore

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// A transaction of bolt that failed can be there all the same: when it is the sync
// of its meta page that failed, the page is in the system's cache, from which bolt
// reads. Its entries would stand behind those that are written later, and at the
// next start be taken for the end of the log.

// makeSure removes what a write to bolt that failed may have left. The caller
// holds writing.
func (f *front) makeSure() error {
	if len(f.unsure) == 0 {
		return nil
	}
	from, to := max(f.unsure[0].Index, f.last+1), f.unsure[len(f.unsure)-1].Index
	if from <= to {
		if err := f.bolt.DeleteRange(from, to); err != nil {
			return fmt.Errorf("remove log entries %d to %d, whose write failed: %w", from, to, err)
		}
	}
	f.unsure = nil
	return nil
}

// errGap: entries would stand behind a gap that no snapshot covers, so that Raft
// and the log disagree about where the log ends.
var errGap = errors.New("the log does not go so far")

// covered is the last entry that this server's snapshots have; 0 without one. It
// may read the disk.
type covered func() (uint64, error)

// refuseGap refuses an entry that does not follow the log, unless a snapshot has
// what is between them, as one does that another server sent. The caller holds
// writing.
func (f *front) refuseGap(first uint64) error {
	f.mu.RLock()
	last := f.last
	f.mu.RUnlock()
	if last == 0 || first <= last+1 || f.covered == nil {
		return nil
	}
	snapshot, err := f.covered()
	if err != nil {
		return fmt.Errorf("write log entry %d behind %d: %w", first, last, err)
	}
	if first > snapshot+1 {
		return fmt.Errorf("write log entry %d: %w: it ends with %d, and the newest snapshot with %d", first, errGap, last, snapshot)
	}
	return nil
}

// preferJournal removes from bolt what others of the same places in the journal
// replaced. Whatever bolt has is in it before the journal goes on, so that another
// entry there is what a failed write left, of this program or one before, and so
// is everything behind it.
func (f *front) preferJournal(all []*raft.Log) error {
	return soundly(func() error {
		for _, entry := range all {
			if entry.Index > f.last {
				return nil
			}
			var there raft.Log
			err := f.bolt.GetLog(entry.Index, &there)
			if errors.Is(err, raft.ErrLogNotFound) || err == nil && there.Term == entry.Term {
				continue
			}
			if err != nil {
				return fmt.Errorf("log entry %d: %w: %w", entry.Index, ErrDamaged, err)
			}
			if f.journal != nil { // else the log is only looked at
				if err := f.bolt.DeleteRange(entry.Index, f.last); err != nil {
					return fmt.Errorf("remove log entries %d to %d, which others replaced: %w", entry.Index, f.last, err)
				}
			}
			f.last = entry.Index - 1
			return nil
		}
		return nil
	})
}
