package raftstore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/state"
)

// kept are the data directories that versions left, one each: a log with a
// snapshot before its end. HOLDFAST_KEEP_VERSION=X records testdata/versions/X
// by the program as it is; do so once before a release.
const kept = "testdata/versions"

func TestDataDirectoriesOfEarlierVersionsAreTakenUp(t *testing.T) {
	if version := os.Getenv("HOLDFAST_KEEP_VERSION"); version != "" {
		keepVersion(t, filepath.Join(kept, version))
	}
	versions, err := os.ReadDir(kept)
	if err != nil || len(versions) == 0 {
		t.Fatalf("%d versions: %v", len(versions), err)
	}
	for _, v := range versions {
		t.Run(v.Name(), func(t *testing.T) {
			h := newHosts(t, 1, 1)
			one := h.all["fb1"]
			if err := os.CopyFS(one.dir, os.DirFS(filepath.Join(kept, v.Name()))); err != nil {
				t.Fatal(err)
			}
			in, err := Inspect(one.dir, 5)
			if err != nil || in.Damage != "" || len(in.Snapshots) == 0 {
				t.Fatalf("inspected: %+v, %v", in, err)
			}
			one.id = in.NodeID
			one.start()
			h.leader()
			for _, key := range []string{"old/in the snapshot", "old/in the log"} {
				if got := one.get(key); got != key {
					t.Errorf("%s is %q", key, got)
				}
			}
			if sessions, _ := one.state.Snapshot().Sessions(nil); len(sessions) != 1 {
				t.Errorf("sessions: %v", sessions)
			}
			if id := one.store.engine.Load().record.get().ClusterID; id != in.StoreID {
				t.Errorf("it is store %s now, and was %s", id, in.StoreID)
			}
			one.put("new", "1")
		})
	}
}

func keepVersion(t *testing.T, dir string) {
	h := newHosts(t, 1, 1)
	one := h.all["fb1"].start()
	h.leader()
	write := func(cmd state.Command) {
		t.Helper()
		if _, err := one.store.Propose(t.Context(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	set := func(key string) { write(state.KV{Verb: state.Set, Entry: state.Entry{Key: key, Value: []byte(key)}}) }
	write(state.Register{Node: state.Node{Name: "fb1", ID: newUUID(), Address: one.address.Addr()}})
	write(state.CreateSession{Session: state.Session{ID: newUUID(), Node: "fb1", Behavior: state.BehaviorRelease}})
	set("old/in the snapshot")
	for i := range 50 {
		set(fmt.Sprint("old/", i))
	}
	if err := one.store.engine.Load().raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	set("old/in the log")
	one.stop()
	for _, name := range []string{"raft/" + logName, "raft/" + frontName + ".0", "raft/" + frontName + ".1", recordName} {
		data, err := os.ReadFile(filepath.Join(one.dir, name))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "raft", "snapshots"), os.DirFS(filepath.Join(one.dir, "raft", "snapshots"))); err != nil {
		t.Fatal(err)
	}
}
