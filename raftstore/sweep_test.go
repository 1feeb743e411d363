package raftstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestStartRemovesWhatACrashLeftHalfWritten(t *testing.T) {
	h := newHosts(t, 1, 1)
	one := h.all["fb1"].start()
	h.leader()
	one.put("k", "1")
	if err := one.store.engine.Load().raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	one.stop()
	raft := filepath.Join(one.dir, "raft")
	keep := []string{filepath.Join(raft, beforeRestore), filepath.Join(one.dir, "other"), filepath.Join(one.dir, ".other.1"),
		filepath.Join(raft, snapshotsDir, "the admin's", "file"), filepath.Join(raft, snapshotsDir, "1-1-1 of old", "file")}
	left := []string{
		filepath.Join(raft, ".restore.123"), filepath.Join(raft, ".rebuild.456"), filepath.Join(raft, snapshotsDir, "3-9-1.tmp", snapshotState),
		filepath.Join(raft, snapshotsDir, "1-1-1", snapshotState), // a part of an old one
		filepath.Join(raft, ".before-restore.snapshot.1"), filepath.Join(raft, ".log.journal.0.77"), filepath.Join(one.dir, "."+recordName+".5"),
	}
	for _, path := range append(keep, left...) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("plain"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	one.start()
	h.leader()
	h.everywhere("k", "1")
	for _, path := range left {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there still: %v", path, err)
		}
	}
	for _, path := range keep {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}
