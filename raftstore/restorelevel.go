package raftstore

import (
	"context"
	"fmt"

	"holdfast/internal/state"
)

// A restored snapshot brings its own feature level. Above what the servers read it
// would cut off those that can't; below the store's it would let the level sink,
// and newer commands are in use already.

// levelOfSnapshot is the feature level of the store that a snapshot is of.
func levelOfSnapshot(info state.Info) int {
	if info.Cluster == nil {
		return state.BaseLevel
	}
	return max(state.BaseLevel, info.Cluster.Feature)
}

// mayRestore refuses a snapshot that some server could not read, or that nobody
// knows all of them to read.
func (v view) mayRestore(info state.Info) error {
	level := levelOfSnapshot(info)
	if level <= v.Level {
		return nil
	}
	if _, err := v.levels().raise(level); err != nil {
		return fmt.Errorf("the snapshot is of a store at feature level %d, and this one is at %d: %w", level, v.Level, err)
	}
	return nil
}

// keepLevel raises the store's level to what it was before a restore.
func (e *engine) keepLevel(ctx context.Context, was int) (index uint64, err error) {
	now := e.store.state.Snapshot()
	if now.Level() >= was {
		return 0, nil
	}
	next := state.Cluster{ID: e.record.get().ClusterID, Name: e.store.config.Cluster, Feature: was}
	if record := now.Cluster(); record != nil {
		next.ID, next.Name = record.ID, record.Name
	}
	data, err := state.Encode(state.SetCluster{Cluster: next})
	if err == nil {
		index, err = e.store.proposeHere(ctx, data)
	}
	if err != nil {
		return 0, fmt.Errorf("the snapshot is restored, and the feature level, which it has at %d, was not raised to %d again: do so (holdfast operator feature-level raise): %w", now.Level(), was, err)
	}
	e.store.log.Info("the feature level is kept", "snapshot", now.Level(), "is", was)
	return index, nil
}
