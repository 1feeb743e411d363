package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"holdfast/internal/state"
)

// savedAt gives a snapshot of a store of its own at a feature level.
func savedAt(t *testing.T, level int) *bytes.Buffer {
	t.Helper()
	s := state.New()
	for i, cmd := range []state.Command{
		state.SetCluster{Cluster: state.Cluster{ID: newUUID(), Name: "foobar", Feature: level}},
		state.KV{Verb: state.Set, Entry: state.Entry{Key: "restored", Value: []byte("1")}},
	} {
		if err := s.Apply(uint64(i+1), cmd); err != nil {
			t.Fatal(err)
		}
	}
	var saved bytes.Buffer
	if _, err := s.Snapshot().WriteTo(&saved); err != nil {
		t.Fatal(err)
	}
	return &saved
}

func TestSnapshotThatSomeServerCannotReadIsNotRestored(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.read(2)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	old := h.follower()
	old.stop()
	old.feature = 1
	old.start()
	h.leader().put("k", "1")
	eventually(t, "refused for the old one's sake", func() error {
		err := h.leader().store.RestoreSnapshot(t.Context(), savedAt(t, 2))
		if err == nil {
			t.Fatal("it is restored, and one server can't read it")
		}
		if !errors.Is(err, state.ErrInvalid) || !strings.Contains(err.Error(), old.name+" reads 1") {
			return err // it may not have answered yet
		}
		return nil
	})
	h.everywhere("k", "1")
	h.everywhere("restored", "")
}

func TestRestoreKeepsTheFeatureLevel(t *testing.T) {
	h := newHosts(t, 1, 1)
	h.read(2)
	o := h.all["fb1"].start()
	h.leader()
	eventually(t, "raised", func() error { _, err := o.raise(2); return err })
	for _, level := range []int{1, 2, 0} {
		if err := o.store.RestoreSnapshot(t.Context(), savedAt(t, level)); err != nil {
			t.Fatal(err)
		}
		if got := o.state.Snapshot().Level(); got != 2 || o.get("restored") != "1" {
			t.Errorf("after a snapshot of level %d the store is at %d, and the key is %q", level, got, o.get("restored"))
		}
	}
}

func TestSnapshotOfAHigherLevelIsRestoredWhenAllReadIt(t *testing.T) {
	h := newHosts(t, 2, 2)
	h.read(2)
	h.startAll()
	h.settled("fb1 fb2", "")
	eventually(t, "restored", func() error {
		if err := h.leader().store.RestoreSnapshot(t.Context(), savedAt(t, 2)); err != nil {
			return err
		}
		for _, o := range h.running() {
			if level := o.state.Snapshot().Level(); level != 2 {
				return fmt.Errorf("%s is at %d", o.name, level)
			}
		}
		return nil
	})
}
