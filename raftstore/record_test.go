package raftstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/durable"
	"holdfast/internal/state"
)

// writeRecord puts a record into a data directory.
func writeRecord(dir string, r record) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	data, err := r.encode()
	if err != nil {
		return err
	}
	return durable.Replace(filepath.Join(dir, recordName), data, 0o600)
}

func TestRecordSurvivesAndNothingIsLeftBeside(t *testing.T) {
	dir, id := t.TempDir(), newUUID()
	f, err := openRecord(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	d := testDecree(1)
	if err := f.update(func(r *record) bool {
		r.Forming = acceptor{Electorate: []string{"fb1"}, Promised: ballot{3, "fb1"}, AcceptedAt: ballot{2, "fb1"}, Accepted: &d}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if err := f.setClusterID(d.ClusterID); err != nil {
		t.Fatal(err)
	}
	again, err := openRecord(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(f.get(), again.get()); diff != "" {
		t.Errorf("record (-written +read):\n%s", diff)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("directory: %v, %v", entries, err)
	}
}

func TestRecordIsNeverGuessedAt(t *testing.T) {
	r := record{NodeID: newUUID(), ClusterID: newUUID()}
	good, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := decodeRecord(bad); !errors.Is(err, errRecord) {
			t.Fatalf("byte %d of %q changed: %v", i, good, err)
		}
		if _, err := decodeRecord(good[:i]); !errors.Is(err, errRecord) {
			t.Fatalf("cut after byte %d: %v", i, err)
		}
	}
	for name, bad := range map[string]record{
		"a store that is no UUID":  {NodeID: "x", ClusterID: "foobar"},
		"an unfinished decree":     {NodeID: "x", Forming: acceptor{Accepted: &decree{}}},
		"two stores in one record": {NodeID: "x", ClusterID: ourStore, Forming: acceptor{Decided: ptr(testDecree(1))}},
	} {
		data, err := bad.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeRecord(data); !errors.Is(err, errRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestDataDirectoryOfAnotherNodeIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := writeRecord(dir, record{NodeID: ourStore}); err != nil {
		t.Fatal(err)
	}
	if _, err := openRecord(dir, newUUID()); err == nil || !strings.Contains(err.Error(), "belongs to node ID "+ourStore) {
		t.Fatalf("open: %v", err)
	}
}

func TestServerNeverChangesItsStore(t *testing.T) {
	f, err := openRecord(t.TempDir(), newUUID())
	if err != nil {
		t.Fatal(err)
	}
	d := testDecree(1)
	if err := f.update(func(r *record) bool { r.Forming.Decided = &d; return true }); err != nil {
		t.Fatal(err)
	}
	if err := f.setClusterID(ourStore); err == nil {
		t.Error("a server that helped to form one store joined another")
	}
	if err := f.setClusterID(d.ClusterID); err != nil {
		t.Fatal(err)
	}
	if err := f.setClusterID(ourStore); err == nil || f.get().ClusterID != d.ClusterID {
		t.Errorf("store %s, error %v", f.get().ClusterID, err)
	}
}

// A server that lost a part of what it promised must not answer anybody.
func TestServerThatLostAPartOfItsDataRefusesToRun(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	h.leader()
	o.put("k", "v")
	if err := o.store.engine.Load().raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	o.stop()
	raftDir := filepath.Join(o.dir, "raft")
	good, err := os.ReadFile(filepath.Join(o.dir, recordName))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		do   func() error
		want string
	}{
		{"the record", func() error { return os.Remove(filepath.Join(o.dir, recordName)) }, recordName + ", is gone"},
		{"what it promised, of the record", func() error { return writeRecord(o.dir, record{NodeID: o.id, HasLog: true}) }, recordName + ", is gone"},
		{"nothing but the log; the snapshot is there", func() error {
			return errors.Join(os.WriteFile(filepath.Join(o.dir, recordName), good, 0o600), os.Truncate(filepath.Join(raftDir, logName), 0))
		}, "the log in " + raftDir + " is gone"},
		{"the log's file", func() error { return os.Remove(filepath.Join(raftDir, logName)) }, "wipe the whole data directory"},
		{"the log's directory, but not its ID", func() error { return os.RemoveAll(raftDir) }, "wipe the whole data directory"},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		for attempt := range 2 { // systemd tries again; that must not help
			store, err := New(o.config(), state.New(), Deps{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			err = store.Run(ctx, func() { t.Errorf("without %s it says that it is ready", c.what) })
			cancel()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("without %s, attempt %d: %v, want %q", c.what, attempt, err, c.want)
			}
		}
	}
}

// A disk that is full at the start harms nothing that is on it: nobody is to be
// told to wipe it.
func TestAFullDiskAtTheStartIsNoReasonToWipeIt(t *testing.T) {
	disk := newSmallDisk(t)
	h := newHosts(t, 1, 1)
	o := h.all["fb1"]
	o.dir = disk.dir
	o.start()
	h.leader()
	o.put("k", "v")
	o.stop()
	raftDir := filepath.Join(o.dir, "raft")
	bolt, err := openBolt(filepath.Join(raftDir, logName)) // as a version without a journal left it
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join((checkedStable{bolt}).SetUint64(formatKey(), formatChecked), bolt.Close())
	for _, path := range frontPaths(raftDir) {
		err = errors.Join(err, os.Remove(path))
	}
	if err != nil {
		t.Fatal(err)
	}
	disk.fill(-(2 << 20)) // root has what is reserved, too: 3 MB
	store, err := New(o.config(), state.New(), Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	err = store.Run(ctx, func() {})
	if err == nil || !strings.Contains(err.Error(), "make room") || strings.Contains(err.Error(), "wipe") {
		t.Errorf("with a full disk: %v", err)
	}
	disk.empty()
	o.start()
	h.leader()
	h.everywhere("k", "v")
}

func FuzzDecodeRecord(f *testing.F) {
	for _, r := range []record{{NodeID: ourStore}, {NodeID: ourStore, ClusterID: ourStore, HasLog: true, Forming: acceptor{Accepted: ptr(testDecree(1))}}} {
		data, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord(data)
		if err != nil {
			return
		}
		again, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeRecord(again); err != nil || !cmp.Equal(r, back) {
			t.Fatalf("%+v became %+v, %v", r, back, err)
		}
	})
}

func TestUUIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		id := newUUID()
		if !validUUID(id) || id[14] != '4' || seen[id] {
			t.Fatalf("UUID %q", id)
		}
		seen[id] = true
	}
	for _, bad := range []string{"", "x", strings.ToUpper(ourStore[:8]) + "g" + ourStore[9:], strings.Repeat("1", 36), ourStore + "1"} {
		if validUUID(bad) {
			t.Errorf("%q passes for a UUID", bad)
		}
	}
}
