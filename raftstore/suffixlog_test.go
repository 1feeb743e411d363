package raftstore

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

var errTest = errors.New("the disk errs")

// failingLog fails as it is told.
type failingLog struct {
	raft.LogStore
	store, remove error
}

func (l *failingLog) StoreLogs(entries []*raft.Log) error {
	if l.store != nil {
		return l.store
	}
	return l.LogStore.StoreLogs(entries)
}

func (l *failingLog) DeleteRange(first, last uint64) error {
	return errors.Join(l.LogStore.DeleteRange(first, last), l.remove)
}

func TestLogThatWasCutAndNotWrittenIsNoticed(t *testing.T) {
	var told error
	below := &failingLog{LogStore: raft.NewInmemStore()}
	s := &suffixLog{LogStore: below, stale: func(err error) { told = err }}
	step := func(what string, err, want error, stale bool) {
		t.Helper()
		if !errors.Is(err, want) || (err == nil) != (want == nil) || (told != nil) != stale {
			t.Fatalf("%s: %v, told %v; want %v, stale %v", what, err, told, want, stale)
		}
	}
	step("entries", s.StoreLogs(entries(1, 9, 1)), nil, false)
	below.store = errTest
	step("a write that fails", s.StoreLogs(entries(10, 10, 1)), errTest, false)
	step("the oldest are removed", s.DeleteRange(1, 2), nil, false)
	step("a write that fails after that", s.StoreLogs(entries(10, 10, 1)), errTest, false)
	step("the newest are removed", s.DeleteRange(8, 9), nil, false)
	step("nothing is written", s.StoreLogs(nil), errTest, true)
	step("what replaces them is not written", s.StoreLogs(entries(8, 8, 2)), errTest, true)
	below.store = nil
	step("it is written after all", s.StoreLogs(entries(8, 8, 2)), nil, false)
	below.remove = errHung
	step("a removal that is not tried", s.DeleteRange(8, 8), errHung, false)
	below.store, below.remove = nil, errTest
	step("entries", s.StoreLogs(entries(8, 9, 2)), nil, false)
	step("a removal that fails, done or not", s.DeleteRange(9, 9), errTest, true)
	below.remove = nil
	step("a write sets it right", s.StoreLogs(entries(9, 9, 3)), nil, false)
}

// The server begins anew when its disk is well: before, it could not open its log.
func TestServerBeginsAnewWhenItsDiskIsWell(t *testing.T) {
	d := &diskHealth{judge: diskJudge{calm: time.Millisecond}}
	if err := d.anew(); err != nil {
		t.Errorf("nothing is wrong: %v", err)
	}
	d.wrote(errTest)
	d.stands(errTest)
	if err := d.anew(); err != nil {
		t.Errorf("the disk is sick: %v", err)
	}
	begun := time.Now()
	for d.anew() == nil && time.Since(begun) < 10*time.Second {
		d.looked(look{})
	}
	if err := d.anew(); !errors.Is(err, errTest) {
		t.Errorf("the disk is well again: %v", err)
	}
	d.hangs(true)
	if err := d.anew(); err != nil {
		t.Errorf("the disk hangs: %v", err)
	}
	d.hangs(false)
	d.stands(nil)
	for begun = time.Now(); time.Since(begun) < 5*time.Millisecond; {
		d.looked(look{})
	}
	if err := d.anew(); err != nil {
		t.Errorf("a write has set it right: %v", err)
	}
}

// A follower that was cut while its disk could not be written ends its store, so
// that it begins anew, and then follows.
func TestFollowerThatWasCutBeginsAnew(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	victim := h.follower()
	victim.store.engine.Load().disk.stands(errTest) // as suffixLog says it
	select {
	case err := <-victim.done:
		if !errors.Is(err, errTest) || errors.Is(err, ErrDamaged) {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(soon):
		t.Fatal("it goes on with a log that it does not know")
	}
	victim.down(state.Failed)
	victim.start()
	h.leader().put("k", "1")
	h.everywhere("k", "1")
}

// senselessLog is a log whose bolt meets a page that makes no sense when it is
// told to.
type senselessLog struct {
	raft.LogStore
	met atomic.Bool
}

func (l *senselessLog) StoreLogs(entries []*raft.Log) error {
	if l.met.Load() {
		return soundLog{panicking{}}.StoreLogs(entries)
	}
	return l.LogStore.StoreLogs(entries)
}

// A damage that a leader's write meets ends its store, though what is pending is
// written again and again, so that its disk is never well.
func TestDamageThatALeadersWriteMeetsEndsItsStore(t *testing.T) {
	h := newHosts(t, 1, 1)
	one, log := h.all["fb1"], &senselessLog{}
	one.disk = func(l raft.LogStore) raft.LogStore {
		log.LogStore = l
		return log
	}
	one.start()
	h.leader()
	one.put("k", "1")
	log.met.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	store, written := one.store, make(chan struct{})
	go func() {
		defer close(written)
		_, _ = store.Propose(ctx, state.KV{Verb: state.Set, Entry: state.Entry{Key: "k", Value: []byte("2")}}) // its outcome is unknown
	}()
	defer func() {
		cancel()
		<-written
	}()
	select {
	case err := <-one.done:
		if !errors.Is(err, ErrDamaged) || strings.Contains(err.Error(), "nothing is lost") {
			t.Errorf("Run: %v", err)
		}
	case <-ctx.Done():
		t.Fatalf("it goes on: %s", stacks())
	}
	one.down(state.Failed)
	log.met.Store(false)
	one.start()
	h.leader()
	h.everywhere("k", "1")
}
