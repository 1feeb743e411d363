package raftstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"holdfast/internal/health"
)

const conditionDamaged = "raftstore.damaged"

// damaged is called for what is found while this server runs: it ends the
// store, so that nothing wrong is served or passed on. What begins anew looks
// at everything first, and refuses.
func (e *engine) damaged(err error) {
	select {
	case e.damage <- err:
	default: // one is enough
	}
}

// examine reads everything that this server would stand on: a damage is found
// before anybody is served from it.
func (e *engine) examine(ctx context.Context) error {
	err := e.patiently(ctx, func() error {
		covered, term, err := examineSnapshots(filepath.Join(e.store.config.dir(), snapshotsDir), e.snapshots)
		if err == nil {
			err = examineLog(e.checked, e.stable, covered, term)
		}
		return err
	})
	if errors.Is(err, ErrDamaged) {
		return e.refuse(err)
	}
	e.store.board.Clear(conditionDamaged)
	return err
}

// refuse says what to do about a damage.
func (e *engine) refuse(err error) error {
	s := e.store
	s.metrics.damages.Inc()
	s.board.Raise(conditionDamaged, health.Error, fmt.Sprintf(
		"this server's store is damaged and stays out of use (%v): look at the disk and the memory, then wipe the whole data directory %s; the others take this server back under a new ID", err, s.config.DataDir))
	return fmt.Errorf("%s: %w; wipe the whole data directory %s, then the others take this server back under a new ID", s.config.dir(), err, s.config.DataDir)
}

// soundly does something with bolt, which panics on pages that make no sense,
// and reads past the end of a file that was cut: that is a damage.
func soundly(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the log: %w: %v", ErrDamaged, p)
		}
	}()
	return do()
}

// openBolt opens the log's file.
func openBolt(path string) (*raftboltdb.BoltStore, error) {
	return openBoltWith(path, boltOptions(), once)
}

// boltOptions are ours: with bolt's defaults a log that once was large makes
// every write slow, since each writes the list of all free pages.
func boltOptions() *bbolt.Options {
	return &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType}
}

// openBoltWith reads the whole file by read first. To open it then is a write, too.
func openBoltWith(path string, options *bbolt.Options, read reading) (bolt *raftboltdb.BoltStore, err error) {
	if err := read(func() error { return checkLogFile(path) }); err != nil {
		return nil, err
	}
	err = soundly(func() error {
		bolt, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: options})
		return err
	})
	for _, bad := range []error{bbolterrors.ErrInvalid, bbolterrors.ErrChecksum, bbolterrors.ErrVersionMismatch} {
		if errors.Is(err, bad) {
			err = fmt.Errorf("the log: %w: %w", ErrDamaged, err)
			break
		}
	}
	return bolt, err
}

// examineLog reads every entry and what Raft keeps beside them. Up to covered,
// what a snapshot has, whose last entry is of coveredTerm, entries may be missing:
// a restored one leaves a hole.
func examineLog(log *checkedLog, stable checkedStable, covered, coveredTerm uint64) error {
	return soundly(func() error {
		term, err := examineEntries(log, covered)
		if err != nil {
			return err
		}
		if err := examineTerm(stable, max(term, coveredTerm)); err != nil {
			return err
		}
		return examineVotes(stable, max(term, coveredTerm))
	})
}

// examineEntries returns the term of the last one.
func examineEntries(log *checkedLog, covered uint64) (term uint64, err error) {
	first, err := log.FirstIndex()
	if err != nil {
		return 0, fmt.Errorf("the log: %w: %w", ErrDamaged, err)
	}
	last, err := log.LastIndex()
	if err != nil {
		return 0, fmt.Errorf("the log: %w: %w", ErrDamaged, err)
	}
	if last > covered && first > covered+1 {
		return 0, fmt.Errorf("log entry %d: %w: it is missing between the snapshot, which ends with %d, and the log, which begins with %d", covered+1, ErrDamaged, covered, first)
	}
	for index := first; index <= last && last > 0; index++ {
		var entry raft.Log
		err := log.read(index, &entry)
		if errors.Is(err, raft.ErrLogNotFound) {
			if index <= covered {
				continue
			}
			err = fmt.Errorf("log entry %d: %w: it is missing between %d and %d", index, ErrDamaged, first, last)
		}
		if err == nil && entry.Term < term {
			err = fmt.Errorf("log entry %d: %w: its term %d is lower than that before it, %d", index, ErrDamaged, entry.Term, term)
		}
		if err != nil {
			return 0, err
		}
		term = entry.Term
	}
	return term, nil
}

// examineVotes looks at hashicorp/raft's term and vote.
func examineVotes(stable checkedStable, least uint64) error {
	current, err := stable.GetUint64([]byte(keyTerm))
	if err == nil && current < least {
		return fmt.Errorf("the votes: %w: the term is %d, and the log has entries of %d", ErrDamaged, current, least)
	}
	_, _, err2 := readVote(stable)
	for _, err := range []error{err, err2} { // what was never set is no damage
		if errors.Is(err, ErrDamaged) {
			return fmt.Errorf("the votes: %w", err)
		}
	}
	return nil
}
