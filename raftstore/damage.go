package raftstore

import (
	"errors"
	"fmt"
	"io"
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
func (e *engine) examine() error {
	err := examineLog(e.checked, e.stable)
	if err == nil {
		err = e.examineSnapshot()
	}
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
func openBolt(path string) (bolt *raftboltdb.BoltStore, err error) {
	if err := checkBoltFile(path); err != nil {
		return nil, err
	}
	err = soundly(func() error {
		bolt, err = raftboltdb.New(raftboltdb.Options{
			Path: path,
			// Without these a log that once was large makes every write slow.
			BoltOptions: &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
		})
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

// examineLog reads every entry and what Raft keeps beside them.
func examineLog(log *checkedLog, stable checkedStable) error {
	return soundly(func() error { return examineEntries(log, stable) })
}

func examineEntries(log *checkedLog, stable checkedStable) error {
	first, err := log.FirstIndex()
	if err != nil {
		return fmt.Errorf("the log: %w: %w", ErrDamaged, err)
	}
	last, err := log.LastIndex()
	if err != nil {
		return fmt.Errorf("the log: %w: %w", ErrDamaged, err)
	}
	term := uint64(0)
	for index := first; index <= last && last > 0; index++ {
		var entry raft.Log
		err := log.read(index, &entry)
		if errors.Is(err, raft.ErrLogNotFound) {
			err = fmt.Errorf("log entry %d: %w: it is missing between %d and %d", index, ErrDamaged, first, last)
		}
		if err == nil && entry.Term < term {
			err = fmt.Errorf("log entry %d: %w: its term %d is lower than that before it, %d", index, ErrDamaged, entry.Term, term)
		}
		if err != nil {
			return err
		}
		term = entry.Term
	}
	for _, key := range []string{"CurrentTerm", "LastVoteTerm"} { // hashicorp/raft's
		current, err := stable.GetUint64([]byte(key))
		if errors.Is(err, ErrDamaged) {
			return fmt.Errorf("the votes: %w", err)
		}
		if key == "CurrentTerm" && err == nil && current < term {
			return fmt.Errorf("the votes: %w: the term is %d, and the log has entries of %d", ErrDamaged, current, term)
		}
	}
	if _, err := stable.Get([]byte("LastVoteCand")); errors.Is(err, ErrDamaged) {
		return fmt.Errorf("the votes: %w", err)
	}
	return nil
}

// examineSnapshot reads the newest snapshot, whose checksum hashicorp/raft
// keeps. An older one would not do in its place: the log begins after it.
func (e *engine) examineSnapshot() error {
	list, err := e.snapshots.List()
	if err != nil {
		return fmt.Errorf("list the snapshots: %w", err)
	}
	if len(list) == 0 {
		return nil
	}
	_, r, err := e.snapshots.Open(list[0].ID) // compares the checksum
	if err != nil {
		return fmt.Errorf("snapshot %s: %w: %w", list[0].ID, ErrDamaged, err)
	}
	_, err = io.Copy(io.Discard, r)
	if err := errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("snapshot %s: %w: %w", list[0].ID, ErrDamaged, err)
	}
	return nil
}
