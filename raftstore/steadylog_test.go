package raftstore

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// flippedLog gives back entries with a flipped bit when it is told to: from its next
// write on, which is that of a new leader.
type flippedLog struct {
	raft.LogStore
	begin, lies atomic.Bool
}

func (l *flippedLog) StoreLogs(entries []*raft.Log) error {
	if l.begin.Load() {
		l.lies.Store(true)
	}
	return l.LogStore.StoreLogs(entries)
}

func (l *flippedLog) GetLog(index uint64, entry *raft.Log) error {
	err := l.LogStore.GetLog(index, entry)
	if err == nil && l.lies.Load() && len(entry.Data) > 0 {
		entry.Data = bytes.Clone(entry.Data)
		entry.Data[0] ^= 1
	}
	return err
}

// Raft panics, and would end the process, when it can't read a committed entry.
func TestDamageThatRaftMeetsEndsTheStoreAlone(t *testing.T) {
	h := newHosts(t, 1, 1)
	one := h.all["fb1"].start()
	h.leader()
	one.put("k", "1")
	one.stop()
	disk := &flippedLog{}
	one.disk = func(l raft.LogStore) raft.LogStore {
		disk.LogStore = l
		return disk
	}
	disk.begin.Store(true) // it is read soundly; then Raft leads, and applies it
	one.start()
	select {
	case err := <-one.done:
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(soon):
		t.Fatalf("it goes on: %s", stacks())
	}
	one.down(state.Failed)
	disk.begin.Store(false)
	disk.lies.Store(false)
	one.start()
	h.leader()
	h.everywhere("k", "1")
}

func TestLogOfRaftGivesNoAnswerOnADamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		log := steadyLog{failingGet{raft.NewInmemStore(), ErrDamaged}, func() bool { return true }, ended}
		returned, gone := atomic.Bool{}, atomic.Bool{}
		go func() {
			defer gone.Store(true)
			_ = log.GetLog(1, new(raft.Log))
			returned.Store(true)
		}()
		synctest.Wait()
		if returned.Load() || gone.Load() {
			t.Error("it answers before Raft is stopped")
		}
		close(ended)
		synctest.Wait()
		if returned.Load() || !gone.Load() {
			t.Errorf("returned %v, ended %v; want that its goroutine ends", returned.Load(), gone.Load())
		}
		log.running = func() bool { return false }
		if err := log.GetLog(1, new(raft.Log)); !errors.Is(err, ErrDamaged) {
			t.Errorf("before Raft runs: %v", err)
		}
		log.LogStore, log.running = raft.NewInmemStore(), func() bool { return true }
		if err := log.GetLog(1, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
			t.Errorf("an entry that is not there: %v", err)
		}
	})
}

type failingGet struct {
	raft.LogStore
	err error
}

func (f failingGet) GetLog(uint64, *raft.Log) error { return f.err }

// panicking is bolt on a page that makes no sense.
type panicking struct{ raft.LogStore }

func (panicking) FirstIndex() (uint64, error)      { panic("page 7") }
func (panicking) LastIndex() (uint64, error)       { panic("page 7") }
func (panicking) GetLog(uint64, *raft.Log) error   { panic("page 7") }
func (panicking) StoreLogs([]*raft.Log) error      { panic("page 7") }
func (panicking) DeleteRange(uint64, uint64) error { panic("page 7") }

func TestPanicsOfBoltAreDamage(t *testing.T) {
	s := soundLog{panicking{}}
	_, first := s.FirstIndex()
	_, last := s.LastIndex()
	for what, err := range map[string]error{
		"first": first, "last": last, "get": s.GetLog(1, nil), "store": s.StoreLogs(nil), "one": s.StoreLog(nil), "delete": s.DeleteRange(1, 2),
	} {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
