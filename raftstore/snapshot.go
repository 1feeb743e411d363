package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"holdfast/internal/durable"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

// beforeRestore is where the leader keeps what a restore replaced.
const beforeRestore = "before-restore.snapshot"

// The files in which a state is kept that is to replace this one; see sweep.
const (
	spoolRestore = ".restore.*"
	spoolRebuild = ".rebuild.*"
)

// SaveSnapshot writes this node's state, as it is now, to w. It needs no
// leader; call ReadBarrier first when the newest state is wanted.
func (s *Store) SaveSnapshot(ctx context.Context, w io.Writer) error {
	if _, err := s.state.Snapshot().WriteTo(&contextWriter{ctx, w}); err != nil {
		return fmt.Errorf("save a snapshot: %w", err)
	}
	return nil
}

// contextWriter stops a long copy when nobody waits for it any more.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c *contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// RestoreSnapshot replaces the state of all servers by the snapshot in r. The
// leader first reads it completely (at most Config.MaxSnapshot bytes) and
// verifies it: a truncated or corrupt one is state.ErrInvalid and changes
// nothing, and so is one of a feature level that not all servers read. The level
// of the store never sinks by it. What was there before is kept in the leader's data directory as
// raft/before-restore.snapshot.
func (s *Store) RestoreSnapshot(ctx context.Context, r io.Reader) error {
	e := s.engine.Load()
	if e == nil {
		return fmt.Errorf("restore a snapshot: %w: the store of this server is not running", state.ErrNoLeader)
	}
	index, err := s.restoreAtLeader(ctx, e, r)
	if err != nil {
		return fmt.Errorf("restore a snapshot: %w", unwrapUntouched(err))
	}
	if err := e.waitCommitted(ctx, index); err != nil {
		return fmt.Errorf("restore a snapshot: it is restored, but not on this node yet: %w", err)
	}
	return nil
}

// restoreAtLeader makes one attempt: r can be read only once.
func (s *Store) restoreAtLeader(ctx context.Context, e *engine, r io.Reader) (uint64, error) {
	if e.raft.State() == raft.Leader {
		return s.restoreHere(ctx, r)
	}
	address, id := e.raft.LeaderWithID()
	if address == "" || string(id) == s.config.NodeID {
		return 0, fmt.Errorf("%w: %s", state.ErrNoLeader, s.situation(e))
	}
	if now := s.addressOf(string(id)); now != "" {
		address = raft.ServerAddress(now)
	}
	return e.client.ask(ctx, string(address), pathRestore, io.NopCloser(r))
}

// restoreHere is the leader's part.
func (s *Store) restoreHere(ctx context.Context, r io.Reader) (uint64, error) {
	e, err := s.inOffice()
	if err != nil {
		return 0, err
	}
	spool, err := os.CreateTemp(s.config.dir(), spoolRestore)
	if err != nil {
		return 0, fmt.Errorf("keep the snapshot: %w", err)
	}
	defer os.Remove(spool.Name())
	defer spool.Close()
	size, err := io.Copy(spool, io.LimitReader(r, s.config.MaxSnapshot+1))
	if err != nil {
		return 0, fmt.Errorf("read the snapshot: %w", err)
	}
	if size > s.config.MaxSnapshot {
		s.metrics.badSnapshots.Inc()
		return 0, fmt.Errorf("%w: it is longer than the %d bytes that are allowed", state.ErrInvalid, s.config.MaxSnapshot)
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	info, err := state.Inspect(spool)
	if err != nil {
		s.metrics.badSnapshots.Inc()
		return 0, fmt.Errorf("%w: %w", state.ErrInvalid, err)
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	e.poll(ctx)
	v := e.view()
	if !v.quorum(v.voters()) {
		return 0, fmt.Errorf("%w: a majority of the voters does not answer", state.ErrNoLeader)
	}
	if err := v.mayRestore(info); err != nil {
		return 0, err
	}
	e.restores.Lock() // what is kept must be what is replaced
	defer e.restores.Unlock()
	if err := s.keepPresent(); err != nil {
		return 0, fmt.Errorf("keep the present state first: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	index, err := s.replace(e, info, spool, size)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.times.outcome) // what is restored is not given up
	defer cancel()
	raised, err := e.keepLevel(ctx, v.Level)
	return max(index, raised), err
}

// replace is the point of no return; it is bounded by Raft, not by a caller
// who may have lost patience.
//
// Raft gives the leader the new state first and then brings it to the others.
// When the leadership is lost in between, nobody can tell which state the
// cluster goes on with, and this server may be left with one of its own.
func (s *Store) replace(e *engine, info state.Info, spool io.Reader, size int64) (uint64, error) {
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: info.Index, Size: size}
	err := e.raft.Restore(meta, spool, s.times.outcome)
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return 0, fmt.Errorf("%w: %w", state.ErrNoLeader, err)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
		s.board.Raise(conditionRestore, health.Error, fmt.Sprintf(
			"the leadership was lost while a snapshot was being restored: unless %s leads again, its state is not that of the others; wipe its data directory, then they take it back", s.config.Node))
		return 0, fmt.Errorf("%w: %w", state.ErrUnknownOutcome, err)
	case err != nil:
		return 0, fmt.Errorf("%w: %w", state.ErrUnknownOutcome, err)
	}
	index := e.raft.CommitIndex()
	s.board.Clear(conditionRestore)
	s.log.Warn("a snapshot was restored", "bytes", size, "index", info.Index, "sha256", info.SHA256, "before", filepath.Join(s.config.dir(), beforeRestore))
	return index, nil
}

// keepPresent writes the state as it is beside the log.
func (s *Store) keepPresent() error {
	return durable.ReplaceFunc(filepath.Join(s.config.dir(), beforeRestore), 0o600, func(w io.Writer) error {
		_, err := s.state.Snapshot().WriteTo(w)
		return err
	})
}
