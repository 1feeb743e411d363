package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

// A server whose store is damaged begins anew, by itself, when nothing can be
// lost by it: some leader proves its office while this server's Raft does not
// run. The proof is a majority of the voters without this one, and a leader has
// everything that was acknowledged. Without such a leader, as on a server that
// is alone, what is damaged may be the last copy, and an admin must look.
//
// It comes back as a new server under its name, as after a wipe: under its old
// ID it could break its word, since the votes that it gave are what it lost.

const (
	asidePrefix      = "damaged-"
	asideUnfinished  = "unfinished"
	conditionRejoin  = "raftstore.rejoined"
	asideTime        = "20060102T150405.000Z"
	asidePermissions = 0o700
)

// ErrSetAside is in the error of a Run that has set its damaged files aside:
// with a new node ID this node can begin anew.
var ErrSetAside = errors.New("the damaged store was set aside")

// rejoin answers a damage that open found: it sets the files aside when the
// others can spare them, and says so, or why not. It returns Run's error.
func (s *Store) rejoin(ctx context.Context, damage error) error {
	leader, err := s.spared(ctx)
	if err != nil {
		s.board.Raise(conditionDamaged, health.Error, fmt.Sprintf(
			"this server's store is damaged and stays out of use (%v). It begins anew by itself once a leader answers that needs it not; so far: %v. If the others are lost for good see \"holdfast raft recover\"", damage, err))
		return damage
	}
	if s.config.SetAside == nil {
		return damage
	}
	if err := s.config.SetAside(); err != nil {
		return errors.Join(damage, fmt.Errorf("set the damaged store aside: %w", err))
	}
	s.log.Error("the damaged store was set aside; this server begins anew with what the others have", "leader", leader, "damage", damage)
	return fmt.Errorf("%w: %w", ErrSetAside, damage)
}

// spared asks the other servers whether one of them leads, by a proof made now,
// while this one has no Raft. It returns the leader's name.
func (s *Store) spared(ctx context.Context) (leader string, err error) {
	e := &engine{store: s, tracker: newTracker()}
	if e.record, err = openRecord(s.config.DataDir, s.config.NodeID); err != nil {
		return "", err
	}
	if err := e.listen(ctx); err != nil {
		return "", err
	}
	defer func() {
		e.net.hangUp()
		e.client.stop()
		e.net.stop()
		e.rpc.stop()
	}()
	ctx, cancel := context.WithTimeout(ctx, s.times.transport)
	defer cancel()
	err = errors.New("no other server is known")
	for _, m := range s.state.Snapshot().Members() {
		if !m.Server || m.Liveness != state.Alive || m.ID == s.config.NodeID || !m.RPC.IsValid() {
			continue
		}
		index, failed := e.client.ask(ctx, m.RPC.String(), pathReadIndex, strings.NewReader(""))
		if failed == nil && index > 0 {
			return m.Name, nil
		}
		err = fmt.Errorf("%s: %w", m.Name, failed)
	}
	return "", err
}

// SetAside moves the store of a data directory, and the files that say whose
// directory it is, into a directory of their own in it. A crash in between is
// made good by FinishSetAside. What was set aside before is removed.
func SetAside(dataDir string, identity ...string) error {
	if err := removeAside(dataDir); err != nil {
		return err
	}
	dir := filepath.Join(dataDir, asidePrefix+time.Now().UTC().Format(asideTime))
	if err := os.Mkdir(dir, asidePermissions); err != nil {
		return err
	}
	if err := durable.Replace(filepath.Join(dir, asideUnfinished), []byte(strings.Join(identity, "\n")), 0o600); err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(dataDir), FinishSetAside(dataDir))
}

// FinishSetAside ends what a crash left undone of SetAside. Call it before the
// node's ID is read.
func FinishSetAside(dataDir string) error {
	dirs, err := filepath.Glob(filepath.Join(dataDir, asidePrefix+"*", asideUnfinished))
	if err != nil {
		return err
	}
	for _, unfinished := range dirs {
		identity, err := os.ReadFile(unfinished)
		if err != nil {
			return fmt.Errorf("raftstore: %w", err)
		}
		dir := filepath.Dir(unfinished)
		for _, name := range append([]string{"raft", recordName}, strings.Fields(string(identity))...) {
			err := os.Rename(filepath.Join(dataDir, name), filepath.Join(dir, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("raftstore: set %s aside: %w", name, err)
			}
		}
		err = errors.Join(durable.SyncDir(dir), durable.SyncDir(dataDir), os.Remove(unfinished), durable.SyncDir(dir))
		if err != nil {
			return fmt.Errorf("raftstore: %w", err)
		}
	}
	return nil
}

func removeAside(dataDir string) error {
	dirs, err := filepath.Glob(filepath.Join(dataDir, asidePrefix+"*"))
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// tellAside says what is left of a damaged store.
func (s *Store) tellAside() {
	dirs, _ := filepath.Glob(filepath.Join(s.config.DataDir, asidePrefix+"*"))
	if len(dirs) == 0 {
		s.board.Clear(conditionRejoin)
		return
	}
	s.board.Raise(conditionRejoin, health.Warning, fmt.Sprintf(
		"this server's store was damaged; it was set aside in %s, and the server began anew with what the others have. Look at disk and memory, remove that directory and restart the agent", dirs[0]))
}
