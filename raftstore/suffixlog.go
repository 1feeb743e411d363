package raftstore

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// suffixLog sees when Raft no longer knows what its log ends with. A follower
// removes entries that another leader's replace, and then writes those; when it
// can't, hashicorp/raft goes on with the last entry that it had before (a TODO of
// its appendEntries). It asks its log for entries that are gone, refuses every
// message, and the leader comes to it ever more seldom. Only a new start, or a
// write that succeeds, sets that right.
type suffixLog struct {
	raft.LogStore
	// stale is called with why, and with nil when all is right again; it must not
	// block.
	stale func(error)

	mu  sync.Mutex
	cut bool // the newest were removed, and nothing was written since
}

// StoreLog implements raft.LogStore.
func (s *suffixLog) StoreLog(entry *raft.Log) error { return s.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore.
func (s *suffixLog) StoreLogs(entries []*raft.Log) error {
	err := s.LogStore.StoreLogs(entries)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case errors.Is(err, ErrDamaged), // of bolt, while it moves what is in the journal
		errors.Is(err, errGap):
		s.cut = true
		s.stale(err)
	case !s.cut:
	case err != nil:
		s.stale(fmt.Errorf("the entries that replace others could not be written: %w", err))
	case len(entries) > 0:
		s.cut = false
		s.stale(nil)
	}
	return err
}

// DeleteRange implements raft.LogStore.
func (s *suffixLog) DeleteRange(first, last uint64) error {
	newest, err := s.LastIndex()
	if err != nil || last < newest {
		return errors.Join(err, s.LogStore.DeleteRange(first, last))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.LogStore.DeleteRange(first, last)
	switch {
	case errors.Is(err, errHung): // it was not tried
	case err != nil:
		s.cut = true
		s.stale(fmt.Errorf("entries %d to %d, which others replace, could not be removed for certain: %w", first, last, err))
	default:
		s.cut = true
	}
	return err
}
