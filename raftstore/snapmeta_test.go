package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/raft"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// snapshotsOf makes a store of snapshots in dir/snapshots.
func snapshotsOf(t *testing.T, dir string) snapshotStore {
	t.Helper()
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, keepSnapshots, newRaftLog(slog.New(slog.DiscardHandler), new(atomic.Bool)))
	if err != nil {
		t.Fatal(err)
	}
	return snapshotStore{files, filepath.Join(dir, snapshotsDir)}
}

// addSnapshot writes one of an empty state, up to an entry of term 3.
func addSnapshot(t *testing.T, s snapshotStore, index uint64) (id string) {
	t.Helper()
	_, trans := raft.NewInmemTransport("10.1.0.1:8300")
	sink, err := s.Create(raft.SnapshotVersionMax, index, 3, raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: "a", Address: "10.1.0.1:8300"}, {Suffrage: raft.Nonvoter, ID: "b", Address: "10.1.0.2:8300"},
	}}, 7, trans)
	if err != nil {
		t.Fatal(err)
	}
	if err := (fsmSnapshot{state.New().Snapshot()}).Persist(sink); err != nil {
		t.Fatal(err)
	}
	return sink.ID()
}

// Every single bit of what describes a snapshot is found when it flips, or means
// the same.
func TestEveryBitOfASnapshotsDescriptionCounts(t *testing.T) {
	dir := t.TempDir()
	s := snapshotsOf(t, dir)
	addSnapshot(t, s, 100)
	newest := addSnapshot(t, s, 16390)
	before, err := s.List()
	if err != nil || len(before) != 2 {
		t.Fatalf("%v, %v", before, err)
	}
	if covered, term, err := examineSnapshots(s.dir, s); covered != 16390 || term != 3 || err != nil {
		t.Fatalf("%d, %d, %v", covered, term, err)
	}
	found := 0
	for _, file := range []string{filepath.Join(before[0].ID, snapshotMeta), filepath.Join(before[1].ID, snapshotMeta), filepath.Join(newest, snapshotSum)} {
		path := filepath.Join(s.dir, file)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for bit := range len(good) * 8 {
			bad := bytes.Clone(good)
			bad[bit/8] ^= 1 << (bit % 8)
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			covered, term, err := examineSnapshots(s.dir, s)
			if errors.Is(err, ErrDamaged) {
				found++
				continue
			}
			after, err2 := s.List()
			same := cmp.Equal(before, after, cmpopts.IgnoreFields(raft.SnapshotMeta{}, "Peers")) // which nobody reads
			if err := errors.Join(err, err2); err != nil || covered != 16390 || term != 3 || !same {
				t.Errorf("bit %d of byte %d of %s: covers %d of term %d, %v: %s", bit%8, bit/8, file, covered, term, err, bad)
			}
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if found < 1000 {
		t.Errorf("only %d were found: what was tried?", found)
	}
}

// A snapshot of a version without the checksum has its name.
func TestOlderSnapshotIsComparedWithItsName(t *testing.T) {
	s := snapshotsOf(t, t.TempDir())
	id := addSnapshot(t, s, 16390)
	if err := os.Remove(filepath.Join(s.dir, id, snapshotSum)); err != nil {
		t.Fatal(err)
	}
	if covered, _, err := examineSnapshots(s.dir, s); covered != 16390 || err != nil {
		t.Fatalf("%d, %v", covered, err)
	}
	flipTo(t, filepath.Join(s.dir, id, snapshotMeta), `"Index":16390`, `"Index":96390`)
	if _, _, err := examineSnapshots(s.dir, s); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "up to entry 96390") {
		t.Errorf("examined: %v", err)
	}
	if _, _, err := s.Open(id); !errors.Is(err, ErrDamaged) {
		t.Errorf("opened: %v", err)
	}
	var in Inspection
	if _, err := in.readSnapshots(s.dir); err != nil || !strings.Contains(in.Damage, "96390") || in.LastIndex != 0 {
		t.Errorf("inspected: up to %d, %q, %v", in.LastIndex, in.Damage, err)
	}
}

// flipTo replaces a text that is there once.
func flipTo(t *testing.T, path, from, to string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || bytes.Count(data, []byte(from)) != 1 {
		t.Fatalf("%s has not %s: %s, %v", path, from, data, err)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte(from), []byte(to), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestServerWithAWrongDescriptionOfItsSnapshotStaysOut(t *testing.T) {
	h := newHosts(t, 1, 1)
	one := h.all["fb1"].start()
	h.leader()
	one.put("k", "1")
	if err := one.store.engine.Load().raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	one.put("k", "2")
	one.stop()
	metas, err := filepath.Glob(filepath.Join(one.dir, "raft", snapshotsDir, "*", snapshotMeta))
	if err != nil || len(metas) != 1 {
		t.Fatalf("%v, %v", metas, err)
	}
	flipTo(t, metas[0], `"Suffrage":0`, `"Suffrage":1`)
	store, err := New(one.config(), state.New(), Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := store.Run(ctx, func() { t.Error("it serves") }); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "meta.json") {
		t.Errorf("Run: %v", err)
	}
}

func TestWhatTheSystemRefusesIsNoDamage(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EACCES, syscall.EMFILE, syscall.ENFILE, syscall.EINTR, syscall.ENOMEM} {
		err := asDamage(fmt.Errorf("meta page 0: %w", &os.PathError{Op: "read", Path: logName, Err: errno}))
		if errors.Is(err, ErrDamaged) || !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	for _, err := range []error{errors.New("page 7: flags 0x3"), &os.PathError{Op: "open", Path: snapshotMeta, Err: syscall.ENOENT}} {
		if !errors.Is(asDamage(err), ErrDamaged) {
			t.Errorf("%v: no damage", err)
		}
	}
	if asDamage(nil) != nil {
		t.Error("nothing is a damage")
	}
}

// What can't be opened is told as it is, wherever a start reads it.
func TestUnreadableFilesAreNoDamage(t *testing.T) {
	loop := func(path string) { // root may read all files, but not this
		if err := errors.Join(os.Remove(path), os.Symlink(filepath.Base(path), path)); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, logName)
	writeLog(t, path)
	loop(path)
	if _, err := openBolt(path); errors.Is(err, ErrDamaged) || !errors.Is(err, syscall.ELOOP) {
		t.Errorf("the log: %v", err)
	}
	s := snapshotsOf(t, dir)
	id := addSnapshot(t, s, 100)
	loop(filepath.Join(s.dir, id, snapshotMeta))
	if _, _, err := examineSnapshots(s.dir, s); errors.Is(err, ErrDamaged) || !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a snapshot: %v", err)
	}
}

func TestReadErrorOfTheDiskIsTriedAgainFirst(t *testing.T) {
	disk := &os.PathError{Op: "read", Path: logName, Err: syscall.EIO}
	metrics, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	for failures, damaged := range map[int]bool{0: false, readTries - 1: false, readTries: true} {
		e := &engine{store: &Store{metrics: metrics, board: health.NewBoard(time.Now, nil, nil), log: slog.New(slog.DiscardHandler)}, disk: &diskHealth{}}
		tries := 0
		err := e.patiently(t.Context(), func() error {
			if tries++; tries <= failures {
				return fmt.Errorf("page 3: %w", disk)
			}
			return nil
		})
		if errors.Is(err, ErrDamaged) != damaged || damaged == (err == nil) {
			t.Errorf("after %d failures: %v", failures, err)
		}
		if f, why := e.disk.fitness(); (f == diskSick) != (failures > 0) {
			t.Errorf("after %d failures the disk is %v: %s", failures, f, why)
		}
	}
}

// A crash while hashicorp/raft removes an old snapshot leaves a part of it, which is
// no damage; a part of the newest is.
func TestPartOfAnOldSnapshotIsNoDamage(t *testing.T) {
	for _, gone := range []string{snapshotMeta, snapshotState} {
		dir := t.TempDir()
		s := snapshotsOf(t, dir)
		old, newest := addSnapshot(t, s, 999), addSnapshot(t, s, 1000) // not in the order of their texts
		if err := os.Remove(filepath.Join(s.dir, old, gone)); err != nil {
			t.Fatal(err)
		}
		if covered, _, err := examineSnapshots(s.dir, s); covered != 1000 || err != nil {
			t.Errorf("%s of the old one is gone: covers %d, %v", gone, covered, err)
		}
		var in Inspection
		if _, err := in.readSnapshots(s.dir); err != nil || in.Damage != "" || len(in.Snapshots) != 1 {
			t.Errorf("inspected: %+v, %v", in, err)
		}
		if _, partial, err := snapshotNames(s.dir); err != nil || len(partial) != 1 || partial[0] != old {
			t.Errorf("to be removed are %v, %v", partial, err)
		}
		if err := os.Remove(filepath.Join(s.dir, newest, gone)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := examineSnapshots(s.dir, s); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s of the newest is gone: %v", gone, err)
		}
	}
}
