package state

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-memdb"
)

func set(key, value string) KV { return KV{Set, Entry{Key: key, Value: []byte(value)}} }

func apply(t testing.TB, s *Store, index uint64, cmd Command) {
	t.Helper()
	if err := s.Apply(index, cmd); err != nil {
		t.Fatalf("entry %d: %v", index, err)
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestEmptyStoreAnswers(t *testing.T) {
	s := New().Snapshot()
	if s.Index() != 0 || s.Version() != 0 || s.Cluster() != nil || len(s.Members()) != 0 {
		t.Errorf("index %d, version %d, cluster %v, members %v", s.Index(), s.Version(), s.Cluster(), s.Members())
	}
	if age, ok := s.Age(time.Now()); ok {
		t.Errorf("Age = %v of a replica that nobody confirmed", age)
	}
	if keys, ok := New().Since(0); !ok || keys != nil {
		t.Errorf("Since(0) = %v, %v", keys, ok)
	}
	if got := s.Healthy(nil, true); len(got) != 0 {
		t.Errorf("Healthy of nothing = %v", got)
	}
}

func TestASnapshotStaysAsItWas(t *testing.T) {
	s := New()
	apply(t, s, 1, set("k", "old"))
	snap := s.Snapshot()
	before := snapshotOf(t, s)
	apply(t, s, 2, set("k", "new"))
	s.SetMembers([]Member{{Name: "n1"}})
	s.Touch(time.Now())
	var after bytes.Buffer
	if _, err := snap.WriteTo(&after); err != nil {
		t.Fatal(err)
	}
	e, index := snap.Entry(nil, "k")
	if string(e.Value) != "old" || index != 1 || snap.Index() != 1 || len(snap.Members()) != 0 || !bytes.Equal(before, after.Bytes()) {
		t.Errorf("the snapshot at 1 has %q at %d, index %d, members %v", e.Value, index, snap.Index(), snap.Members())
	}
	if _, ok := snap.Age(time.Now()); ok {
		t.Error("a Touch reached a snapshot that was taken before it")
	}
}

func TestApplyKeepsNothingOfTheCommand(t *testing.T) {
	s := New()
	r := Register{
		Node:     Node{Name: "n1", Address: netip.MustParseAddr("10.1.0.1"), Meta: map[string]string{"a": "b"}},
		Services: []Service{{Name: "apt", Tags: []string{"x"}, Meta: map[string]string{"c": "d"}}},
	}
	e := set("k", "value")
	d := PutDocument{Set, Document{Kind: "k", Key: "d", Value: []byte("value")}}
	members := []Member{{Name: "n1", Tags: map[string]string{"a": "b"}}}
	for i, cmd := range []Command{r, e, d} {
		apply(t, s, uint64(i)+1, cmd)
	}
	s.SetMembers(members)
	before := snapshotOf(t, s)
	r.Node.Meta["a"], r.Services[0].Tags[0], r.Services[0].Meta["c"] = "!", "!", "!"
	e.Entry.Value[0], d.Document.Value[0], members[0].Tags["a"] = '!', '!', "!"
	if !bytes.Equal(before, snapshotOf(t, s)) {
		t.Error("a change of the command reached the store")
	}
	if m, _ := s.Snapshot().Member("n1"); m.Tags["a"] != "b" {
		t.Error("a change of the members' tags reached the store")
	}
	s.Snapshot().Members()[0].Name = "!"
	if _, ok := s.Snapshot().Member("n1"); !ok {
		t.Error("a change of what Members returned reached the store")
	}
}

func TestCommandThatChangesNothingMovesOnlyTheIndex(t *testing.T) {
	s := New()
	apply(t, s, 1, set("k", "v"))
	changed, version := s.Changed(), s.Snapshot().Version()
	apply(t, s, 5, set("k", "v"))
	if err := s.Apply(9, KV{CAS, Entry{Key: "k"}}); err == nil {
		t.Fatal("a CAS on index 0 of a key that is there succeeded")
	}
	s.SetMembers(nil)
	if closed(changed) || s.Snapshot().Version() != version {
		t.Error("a command that changed nothing woke somebody")
	}
	if got := s.Snapshot().Index(); got != 9 {
		t.Errorf("Index = %d after entry 9", got)
	}
}

func TestEntriesOutOfOrderPanic(t *testing.T) {
	s := New()
	apply(t, s, 5, set("k", "v"))
	for _, index := range []uint64{0, 4, 5} {
		func() {
			defer func() {
				if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "after entry 5") {
					t.Errorf("entry %d after 5: %v", index, r)
				}
			}()
			_ = s.Apply(index, set("k", "w"))
		}()
	}
	apply(t, s, 6, set("k", "x")) // and the lock is free again
}

func TestTouchWakesNobody(t *testing.T) {
	s := New()
	changed := s.Changed()
	ws := WatchSet{}
	s.Snapshot().Nodes(ws)
	start := time.Now()
	s.Touch(start)
	s.Touch(start.Add(-time.Minute)) // late news of an earlier contact
	if closed(changed) || (&watched{ws: ws}).fired() || s.Snapshot().Version() != 0 {
		t.Error("Touch woke somebody")
	}
	for _, c := range []struct{ later, want time.Duration }{{time.Second, time.Second}, {-time.Second, 0}} {
		if age, ok := s.Snapshot().Age(start.Add(c.later)); age != c.want || !ok {
			t.Errorf("Age %v later = %v, %v; want %v", c.later, age, ok, c.want)
		}
	}
	apply(t, s, 1, set("k", "v"))
	if age, ok := s.Snapshot().Age(start.Add(time.Second)); age != time.Second || !ok {
		t.Errorf("a command made Age %v, %v", age, ok)
	}
}

func TestSinceTellsEachKeyOnce(t *testing.T) {
	s := New()
	for i := range uint64(10) {
		apply(t, s, i+1, set([]string{"a", "b"}[i%2], fmt.Sprint(i)))
	}
	for _, c := range []struct {
		since uint64
		want  []Key
		ok    bool
	}{
		{0, []Key{{TableKV, "a"}, {TableKV, "b"}}, true},
		{8, []Key{{TableKV, "a"}, {TableKV, "b"}}, true},
		{9, []Key{{TableKV, "b"}}, true},
		{10, nil, true},
		{11, nil, false}, // of another replica, or before a restart
	} {
		got, ok := s.Since(c.since)
		if d := cmp.Diff(c.want, got); d != "" || ok != c.ok {
			t.Errorf("Since(%d) = %v, %v; want %v, %v", c.since, got, ok, c.want, c.ok)
		}
	}
}

func TestSinceIsBounded(t *testing.T) {
	t.Parallel()
	s := New()
	for i := range uint64(journalSize + 10) {
		apply(t, s, i+1, set(fmt.Sprint(i), "v"))
	}
	// Versions 1 to 10 fell out: what came after 9 can't be told any more.
	if keys, ok := s.Since(9); ok {
		t.Errorf("Since(9) = %d keys, ok", len(keys))
	}
	if keys, ok := s.Since(10); len(keys) != journalSize || !ok {
		t.Errorf("Since(10) = %d keys, %v", len(keys), ok)
	}
	if keys, ok := s.Since(journalSize + 9); len(keys) != 1 || !ok {
		t.Errorf("Since of the version before = %v, %v", keys, ok)
	}

	// A command of more keys than it can hold.
	version := s.Snapshot().Version()
	apply(t, s, journalSize+11, KV{DeleteTree, Entry{}})
	if keys, ok := s.Since(version); ok {
		t.Errorf("Since tells %d keys of %d", len(keys), journalSize+10)
	}
	apply(t, s, journalSize+12, set("k", "v"))
	if keys, ok := s.Since(version + 1); len(keys) != 1 || !ok {
		t.Errorf("Since afterwards = %v, %v", keys, ok)
	}
}

func TestRestoreMakesConsumersRebuild(t *testing.T) {
	s := New()
	apply(t, s, 1, set("k", "v"))
	b := snapshotOf(t, s)
	changed, version := s.Changed(), s.Snapshot().Version()
	if err := s.Restore(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if !closed(changed) {
		t.Error("Changed is open after a restore")
	}
	if keys, ok := s.Since(version); ok {
		t.Errorf("Since over a restore = %v, ok", keys)
	}
	if keys, ok := s.Since(s.Snapshot().Version()); len(keys) != 0 || !ok {
		t.Errorf("Since after a restore = %v, %v", keys, ok)
	}
}

// TestReadersAndWatchersRunBesideWriters is for the race detector, and for a
// watcher that a change passes by: it would wait for ever.
func TestReadersAndWatchersRunBesideWriters(t *testing.T) {
	const last = 400
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s := New()
	apply(t, s, 1, samples()["register"])
	var readers, writers, waiting sync.WaitGroup
	until := func(done func(*Snapshot, WatchSet) bool) {
		waiting.Add(1)
		waits := sync.OnceFunc(waiting.Done)
		readers.Go(func() {
			defer waits()
			for ws := (WatchSet{}); !done(s.Snapshot(), ws); ws = (WatchSet{}) {
				waits()
				if ws.WatchCtx(ctx) != nil {
					t.Error("a watch slept through the last change")
					return
				}
			}
		})
	}
	until(func(snap *Snapshot, ws WatchSet) bool {
		_, index := snap.Entry(ws, "k")
		return index == last
	})
	until(func(snap *Snapshot, ws WatchSet) bool {
		instances, _ := snap.Instances(ws, "apt")
		return instances[0].Checks[0].Output == fmt.Sprint(last)
	})
	readers.Go(func() {
		var seen uint64
		for {
			changed, snap := s.Changed(), s.Snapshot()
			if snap.Version() < seen {
				t.Errorf("version went from %d to %d", seen, snap.Version())
			}
			s.Since(seen)
			seen = snap.Version()
			snap.Healthy(nil, false)
			if _, err := snap.WriteTo(writerFunc(func(b []byte) (int, error) { return len(b), nil })); err != nil {
				t.Error(err)
			}
			if e, _ := snap.Entry(nil, "k"); e != nil && e.ModifyIndex == last {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Error("Changed slept through the last change")
				return
			}
		}
	})
	waiting.Wait() // for the watchers, who would else come when all is written
	writers.Go(func() {
		for i := uint64(2); i <= last; i++ {
			var cmd Command = set("k", fmt.Sprint(i))
			if i%2 == 1 {
				cmd = UpdateCheck{Node: "fbservice1", Updates: []CheckState{{"service:apt", Warning, fmt.Sprint(i + 1)}}}
			}
			if err := s.Apply(i, cmd); err != nil {
				t.Errorf("entry %d: %v", i, err)
			}
		}
	})
	writers.Go(func() {
		for i := range 200 {
			s.SetMembers([]Member{{Name: "fbservice1", Feature: i}})
			s.Touch(time.Now())
		}
	})
	writers.Wait()
	readers.Wait()
}

// Who was woken must find the change, or it waits on a watch that has fired
// already, and spins until the change is there.
func TestFiredWatchFindsTheChange(t *testing.T) {
	const writes, watchers = 2000, 4
	s := New()
	done := make(chan struct{})
	var early atomic.Int32
	var wg sync.WaitGroup
	for range watchers {
		wg.Go(func() {
			for {
				ws := memdb.NewWatchSet()
				_, before := s.Snapshot().Entry(ws, "k")
				ws.Add(done)
				if ws.WatchCtx(context.Background()) != nil {
					return
				}
				select {
				case <-done:
					return
				default:
				}
				if _, after := s.Snapshot().Entry(nil, "k"); after == before {
					early.Add(1)
				}
			}
		})
	}
	for i := range uint64(writes) {
		apply(t, s, i+2, set("k", fmt.Sprint(i))) // 1 is what an absent key says
	}
	close(done)
	wg.Wait()
	if n := early.Load(); n > 0 {
		t.Errorf("%d of those that were woken found the state of before", n)
	}
}
