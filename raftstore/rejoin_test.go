package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// damageLog flips a bit of the entry that holds a text.
func (o *host) damageLog(text string) {
	o.hosts.t.Helper()
	flip(o.hosts.t, filepath.Join(o.dir, "raft", logName), text)
}

// startDamaged starts a server that can't serve, again and again as the agent
// does, until its Run ended by an error that satisfies want.
func (o *host) startDamaged(want func(error) bool) {
	h := o.hosts
	h.t.Helper()
	eventually(h.t, o.name+" ends as it should", func() error {
		c := o.config()
		c.SetAside = func() error { return SetAside(o.dir) }
		replica := state.New()
		store, err := New(c, replica, Deps{Board: o.board})
		if err != nil {
			h.t.Fatal(err)
		}
		h.mu.Lock()
		o.store, o.state, o.absent = store, replica, "" // so that the gossip tells it who there is
		h.mu.Unlock()
		h.gossip()
		err = store.Run(h.t.Context(), func() {})
		o.down(state.Alive) // its gossip lives
		if err == nil || !want(err) {
			return fmt.Errorf("Run: %w", err)
		}
		return nil
	})
}

func TestDamagedServerRejoinsFromTheLeaderByItself(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	victim := h.follower()
	for i := range 20 {
		h.leader().put(fmt.Sprint("key/", i), "a value to be found on the disk")
	}
	h.everywhere("key/19", "a value to be found on the disk")
	victim.stop()
	victim.damageLog("a value to be found")
	victim.startDamaged(func(err error) bool { return errors.Is(err, ErrSetAside) && errors.Is(err, ErrDamaged) })
	if _, err := os.Stat(filepath.Join(victim.dir, "raft")); err == nil {
		t.Error("the damaged files are where they were")
	}
	aside, _ := filepath.Glob(filepath.Join(victim.dir, "damaged-*", "raft", logName))
	if len(aside) != 1 {
		t.Errorf("set aside are %v, want the log", aside)
	}
	victim.id, victim.clusterID = newUUID(), "" // as cmd does
	victim.start()
	h.settled("fb1 fb2 fb3", "")
	h.everywhere("key/19", "a value to be found on the disk")
	if !slices.ContainsFunc(victim.board.Conditions(), isCondition(conditionRejoin)) {
		t.Errorf("nobody is told: %+v", victim.board.Conditions())
	}
}

// Without a leader what is damaged may be the last copy of something.
func TestDamagedServerThatMayBeNeededTouchesNothing(t *testing.T) {
	for name, c := range map[string]struct{ servers, up int }{
		"a single server":                     {1, 0},
		"two servers, the other is no quorum": {2, 1},
		"three servers, two are down":         {3, 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHosts(t, c.servers, c.servers)
			h.startAll()
			victim := h.leader()
			victim.put("k", "a value to be found on the disk")
			h.everywhere("k", "a value to be found on the disk")
			running := h.running()
			for _, o := range running {
				if o != victim && c.up == 0 || o == victim {
					o.stop()
				}
			}
			if rest := h.running(); len(rest) > c.up {
				rest[0].stop()
			}
			victim.damageLog("a value to be found")
			victim.startDamaged(func(err error) bool {
				if errors.Is(err, ErrSetAside) {
					t.Fatalf("what may be the last copy was set aside: %v", err)
				}
				return errors.Is(err, ErrDamaged)
			})
			if _, err := os.Stat(filepath.Join(victim.dir, "raft", logName)); err != nil {
				t.Errorf("the log is gone: %v", err)
			}
			told := ""
			for _, c := range victim.board.Conditions() {
				if c.Name == conditionDamaged {
					told = c.Message
				}
			}
			if !strings.Contains(told, "once a leader answers") || !strings.Contains(told, "holdfast raft recover") {
				t.Errorf("the condition does not say what to do: %q", told)
			}
		})
	}
}

func TestSetAsideIsFinishedAfterACrash(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "damaged-20200101T000000.000Z")
	files := []string{"raft/log.db", recordName, "node-id", "other"}
	for _, name := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(old, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := SetAside(dir, "node-id"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("what was set aside before fills the disk still")
	}
	aside, _ := filepath.Glob(filepath.Join(dir, "damaged-*"))
	if len(aside) != 1 {
		t.Fatalf("%v", aside)
	}
	// A crash after the log was moved and before the ID was.
	if err := errors.Join(os.Rename(filepath.Join(aside[0], "node-id"), filepath.Join(dir, "node-id")),
		os.WriteFile(filepath.Join(aside[0], asideUnfinished), []byte("node-id"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := FinishSetAside(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range files[:3] {
		if _, err := os.Stat(filepath.Join(aside[0], name)); err != nil {
			t.Error(err)
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 2 {
		t.Errorf("left are %v, want the other file and what was set aside", left)
	}
	if st, err := os.Stat(filepath.Join(aside[0], asideUnfinished)); err == nil {
		t.Errorf("%s is there still", st.Name())
	}
}

func isCondition(name string) func(health.Condition) bool {
	return func(c health.Condition) bool { return c.Name == name }
}
