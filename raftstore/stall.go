package raftstore

import (
	"context"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
)

// A follower that does not hear the leader calls an election, also when nothing
// failed but this or the other server was held up: it was given no processor, or
// waited for its disk. That is measured where it happens, so that the admin can
// tell a starved machine from a fault.

// stallKind is what a server waited for; also the metric's label.
type stallKind string

const (
	stallProcessor stallKind = "processor" // a goroutine was to run, and did not
	stallDisk      stallKind = "disk"      // a write to the log took so long
)

const (
	stallSample = 10 * time.Millisecond // between two looks at the processor
	// stallCounted is the shortest stall that is counted.
	stallCounted = 50 * time.Millisecond
)

// stalled notes that this server was held up from begun to ended. Half of what
// makes a follower call an election is told.
func (s *Store) stalled(kind stallKind, begun, ended time.Time) {
	lasted := ended.Sub(begun)
	if lasted < stallCounted {
		return
	}
	s.metrics.stalls.WithLabelValues(string(kind)).Observe(lasted.Seconds())
	if lasted < s.times.heartbeat/2 {
		return
	}
	level := slog.LevelInfo
	if s.stallLimit.allow(string(kind)) {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "this server was held up: when it lasts, another leader is elected",
		"by", string(kind), "lasted", lasted.Round(time.Millisecond), "since", begun.UTC().Format(time.RFC3339Nano))
}

// watchProcessor measures how late this process is given the processor, until
// ctx ends.
func (e *engine) watchProcessor(ctx context.Context) {
	timer := time.NewTimer(stallSample)
	defer timer.Stop()
	for {
		due := time.Now().Add(stallSample)
		timer.Reset(stallSample)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		e.store.stalled(stallProcessor, due, time.Now())
	}
}

// timedLog measures how long the disk takes for writes to the log.
type timedLog struct {
	raft.LogStore
	stalled func(kind stallKind, begun, ended time.Time)
}

// StoreLog implements raft.LogStore.
func (t timedLog) StoreLog(entry *raft.Log) error { return t.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore.
func (t timedLog) StoreLogs(entries []*raft.Log) error {
	begun := time.Now()
	err := t.LogStore.StoreLogs(entries)
	t.stalled(stallDisk, begun, time.Now())
	return err
}
