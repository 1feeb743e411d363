package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/state"
)

// appendRaw puts bytes into the log as the leader.
func appendRaw(t *testing.T, leader *host, data []byte) {
	t.Helper()
	if err := leader.store.engine.Load().raft.Apply(data, soon).Error(); err != nil {
		t.Fatal(err)
	}
}

func TestUnknownEntryHaltsAndNothingIsAppliedPastIt(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	h.leader()
	o.put("before", "1")
	unknown := []byte{1, 99, 0, 0x80} // format 1, kind 99, not to be skipped, an empty map
	appendRaw(t, o, unknown)
	var err error
	select {
	case err = <-o.done:
	case <-time.After(soon):
		t.Fatal("Run goes on")
	}
	if !errors.Is(err, errHalted) || !strings.Contains(err.Error(), "unknown kind 99") {
		t.Fatalf("Run: %v", err)
	}
	c := o.board.Conditions()
	if len(c) != 1 || c[0].Name != conditionHalted || !strings.Contains(c[0].Message, "kind 99") {
		t.Errorf("conditions %+v", c)
	}
	index := o.state.Snapshot().Index()
	if err := o.store.Run(t.Context(), func() {}); !errors.Is(err, errHalted) {
		t.Errorf("Run again: %v, want that it halts again", err)
	}
	if o.get("before") != "1" || o.state.Snapshot().Index() != index {
		t.Error("the state changed after the halt")
	}
	o.down(state.Failed)
}

func TestSkippableEntryIsSkipped(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	h.leader()
	appendRaw(t, o, []byte{1, 99, 1, 0x80})
	o.put("after", "1")
	if err := o.store.ReadBarrier(t.Context()); err != nil || o.get("after") != "1" {
		t.Errorf("after a skippable entry: %v, %q", err, o.get("after"))
	}
}

func TestReadBarrierSeesWhatWasWrittenElsewhere(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	all := h.running()
	for i := range 60 {
		writer, reader := all[i%3], all[(i+1)%3]
		value := fmt.Sprint(i)
		writer.put("k", value)
		reader.barrier()
		if got := reader.get("k"); got != value {
			t.Fatalf("%s reads %q after %s wrote %q", reader.name, got, writer.name, value)
		}
		if i%20 == 10 { // the office changes hands in the middle
			reader.handOver("")
		}
	}
}

// A barrier must also end when the last entry is none of a command's.
func TestReadBarrierEndsBehindEntriesThatAreNoCommands(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	leader := h.leader()
	for range 3 {
		if err := leader.store.engine.Load().raft.Barrier(soon).Error(); err != nil {
			t.Fatal(err)
		}
		for _, o := range h.running() {
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			if err := o.store.ReadBarrier(ctx); err != nil {
				t.Fatalf("%s: %v", o.name, err)
			}
			cancel()
		}
	}
}

func TestAgeFollowsTheLeader(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.leader()
	eventually(t, "fresh replicas", func() error {
		for _, o := range h.running() {
			if age, ok := o.state.Snapshot().Age(time.Now()); !ok || age > time.Second {
				return fmt.Errorf("%s: %v, %v", o.name, age, ok)
			}
		}
		return nil
	})
	last := h.follower()
	for _, o := range h.running() {
		if o != last {
			o.kill()
		}
	}
	eventually(t, "an ageing replica", func() error {
		if age, _ := last.state.Snapshot().Age(time.Now()); age < time.Second {
			return fmt.Errorf("%v", age)
		}
		return nil
	})
}

func saved(t *testing.T, o *host) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := o.store.SaveSnapshot(t.Context(), &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestRestoreThroughAFollowerReachesAllServers(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm // losing the leadership in the middle is another story
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	follower := h.follower()
	follower.put("k", "old")
	h.everywhere("k", "old")
	backup := saved(t, follower)
	follower.put("k", "new")
	follower.put("extra", "1")
	h.everywhere("extra", "1")
	if err := follower.store.RestoreSnapshot(t.Context(), bytes.NewReader(backup)); err != nil {
		t.Fatal(err)
	}
	if follower.get("k") != "old" {
		t.Errorf("the server that asked reads %q", follower.get("k"))
	}
	h.everywhere("k", "old")
	h.everywhere("extra", "")
	follower.put("k", "newer")
	h.everywhere("k", "newer")
	before := h.beforeRestore()
	if entry, _ := before.Snapshot().Entry(nil, "extra"); entry == nil {
		t.Error("what the restore replaced was not kept")
	}
	// And all of it is on the disks.
	for _, o := range h.running() {
		o.kill()
	}
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	h.everywhere("k", "newer")
	h.everywhere("extra", "")
}

// A backup may be of a longer life than the store it is restored into.
func TestRestoreOfAHigherIndex(t *testing.T) {
	old := state.New()
	for i := range 50 {
		old.Apply(uint64(10000+i), state.KV{Verb: state.Set, Entry: state.Entry{Key: "k", Value: fmt.Append(nil, i)}})
	}
	var backup bytes.Buffer
	if _, err := old.Snapshot().WriteTo(&backup); err != nil {
		t.Fatal(err)
	}
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	h.leader()
	if err := o.store.RestoreSnapshot(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	if index := o.put("after", "1"); index <= 10049 {
		t.Errorf("entry %d after a snapshot at 10049", index)
	}
	if o.get("k") != "49" {
		t.Errorf("k is %q", o.get("k"))
	}
}

func TestBadSnapshotLeavesEverythingAsItWas(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	follower := h.follower()
	follower.put("k", "v")
	h.everywhere("k", "v")
	good := saved(t, follower)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for name, c := range map[string]struct {
		r    io.Reader
		want string
	}{
		"truncated": {bytes.NewReader(good[:len(good)-7]), "truncated"},
		"empty":     {bytes.NewReader(nil), "truncated"},
		"changed":   {bytes.NewReader(flipped), "bad snapshot"},
		"garbage":   {strings.NewReader(strings.Repeat("garbage", 10)), "not a snapshot"},
		"trailing":  {bytes.NewReader(append(bytes.Clone(good), 'x')), "data after the end"},
		"breaking":  {io.MultiReader(bytes.NewReader(good[:40]), iotest.ErrReader(errors.New("the cable is out"))), ""},
	} {
		for _, o := range []*host{follower, h.leader()} {
			data, readErr := io.ReadAll(c.r)
			var r io.Reader = bytes.NewReader(data)
			if readErr != nil {
				r = io.MultiReader(r, iotest.ErrReader(readErr))
			}
			c.r = io.MultiReader(bytes.NewReader(data))
			err := o.store.RestoreSnapshot(t.Context(), r)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.want != "" && !errors.Is(err, state.ErrInvalid) {
				t.Errorf("%s, through %s: %v, want ErrInvalid with %q", name, o.name, err, c.want)
			}
		}
	}
	h.everywhere("k", "v")
	counted := 0.0
	for _, o := range h.running() {
		counted += testutil.ToFloat64(o.store.metrics.badSnapshots)
		if strings.Contains(o.log.String(), "a snapshot was restored") || strings.Contains(o.log.String(), "restored user snapshot") {
			t.Errorf("%s restored something", o.name)
		}
		eventually(t, o.name+" keeps no part", func() error { // who broke off did not wait for the other server
			left, err := filepath.Glob(filepath.Join(o.dir, "raft", ".restore.*"))
			if len(left) > 0 {
				return fmt.Errorf("it has %v", left)
			}
			return err
		})
	}
	if counted < 10 { // five kinds that arrived whole, each through two servers
		t.Errorf("%v bad snapshots were counted, want 10 at least", counted)
	}
}

func TestSnapshotLongerThanAllowed(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start(func(c *Config) { c.MaxSnapshot = 100 })
	h.leader()
	o.put("k", strings.Repeat("v", 200))
	err := o.store.RestoreSnapshot(t.Context(), bytes.NewReader(saved(t, o)))
	if !errors.Is(err, state.ErrInvalid) || !strings.Contains(err.Error(), "longer than the 100 bytes") {
		t.Fatalf("restore: %v", err)
	}
}

func TestFollowerFarBehindGetsASnapshot(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	behind := h.follower()
	behind.stop()
	leader := h.leader()
	for i := range 30 {
		leader.put(fmt.Sprint("k", i), "v")
	}
	e := leader.store.engine.Load()
	if err := e.raft.ReloadConfig(raft.ReloadableConfig{
		TrailingLogs: 1, SnapshotInterval: time.Hour, SnapshotThreshold: 1,
		HeartbeatTimeout: leader.store.times.heartbeat, ElectionTimeout: leader.store.times.heartbeat,
	}); err != nil {
		t.Fatal(err)
	}
	if err := e.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	behind.start()
	h.everywhere("k29", "v")
	behind.barrier()
	behind.put("after", "1")
	h.everywhere("after", "1")
	eventually(t, "the replicas are the same", func() error { // the leader may write something of its own
		if !bytes.Equal(saved(t, leader), saved(t, behind)) {
			return errors.New("they differ")
		}
		return nil
	})
}

func TestOperatorRequests(t *testing.T) {
	h := newHosts(t, 4, 3)
	h.timing = calm
	h.startAll()
	h.settled("fb1 fb2 fb3", "fb4")
	ctx := t.Context()
	leader := h.leader()
	var follower *host // a voter
	for _, o := range h.running() {
		if o != leader && o.name != "fb4" {
			follower = o
		}
	}
	for _, c := range []struct {
		what string
		err  error
		is   error
		want string
	}{
		{"remove a stranger", follower.store.RemovePeer(ctx, "fb9"), state.ErrNotFound, `no server of the store has the name, ID or address "fb9"`},
		{"remove nobody", follower.store.RemovePeer(ctx, ""), state.ErrNotFound, ""},
		{"remove one that is alive", follower.store.RemovePeer(ctx, "fb4"), state.ErrInvalid, "fb4 is alive and would be taken in again"},
		{"remove the leader", follower.store.RemovePeer(ctx, leader.name), state.ErrInvalid, "is the leader: transfer the leadership first"},
		{"transfer to a non-voter", follower.store.TransferLeadership(ctx, "fb4"), state.ErrInvalid, "fb4 has no vote"},
		{"transfer to a stranger", leader.store.TransferLeadership(ctx, "fb9"), state.ErrNotFound, ""},
		{"transfer to who has it", follower.store.TransferLeadership(ctx, leader.name), nil, ""},
	} {
		if !errors.Is(c.err, c.is) || c.err != nil && !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: %v, want %v with %q", c.what, c.err, c.is, c.want)
		}
	}
	follower.handOver(follower.id)
	eventually(t, "the new leader", func() error {
		if got := h.leader(); got != follower {
			return errors.New(got.name)
		}
		return nil
	})
	h.all["fb4"].kill()
	if err := h.leader().store.RemovePeer(ctx, "fb4"); err != nil {
		t.Fatal(err)
	}
	h.settled("fb1 fb2 fb3", "")
	// Of three voters one is down; without another one two of the rest would do.
	other := h.follower()
	other.kill()
	if err := h.leader().store.RemovePeer(ctx, other.name); err != nil {
		t.Fatalf("remove a dead voter: %v", err)
	}
	eventually(t, "two voters", func() error {
		if n := len(h.leader().store.Status().Servers); n != 2 {
			return fmt.Errorf("%d servers", n)
		}
		return nil
	})
	other.start() // it is in the file and alive: taken in again
	h.settled("fb1 fb2 fb3", "")
}

func TestStatusOfLeaderAndFollower(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	leader := h.leader()
	follower := h.besides(leader)[0]
	eventually(t, "the leader has heard of all", func() error {
		st := leader.store.Status()
		if st.State != "leader" || st.Leader.Name != leader.name || st.Stats["term"] == "" {
			return fmt.Errorf("%+v", st)
		}
		for _, s := range st.Servers {
			if !s.Known || s.LastIndex == 0 || s.Leader != (s.Name == leader.name) || s.LastContact > 5*time.Second {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	eventually(t, "the follower knows its own part", func() error {
		st := follower.store.Status()
		if st.State != "follower" || st.Leader.Name != leader.name || st.AppliedIndex == 0 || len(st.Servers) != 3 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	name, address, ok := follower.store.Leader()
	if !ok || name != leader.name || address != leader.address {
		t.Errorf("leader is %s at %v, %v", name, address, ok)
	}
}

func TestLeaderChangedIsClosedAtTheNextChange(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	follower := h.follower()
	changed := follower.store.LeaderChanged()
	select {
	case <-changed:
		t.Fatal("closed without a change")
	default:
	}
	h.leader().kill()
	select {
	case <-changed:
	case <-time.After(soon):
		t.Fatal("not closed")
	}
}

// Writers through all servers while leaders die: what was acknowledged is
// there at the end, and what was refused is not.
func TestAcknowledgedWritesSurviveLeaders(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	acked, refused := map[string]bool{}, map[string]bool{}
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				running := h.running()
				o := running[(w+i)%len(running)]
				h.mu.Lock()
				store := o.store
				h.mu.Unlock()
				if store == nil {
					continue
				}
				key := fmt.Sprintf("w%d/%d", w, i)
				_, err := store.Propose(context.Background(), state.KV{Verb: state.Set, Entry: state.Entry{Key: key, Value: []byte("v")}})
				mu.Lock()
				acked[key] = err == nil
				refused[key] = errors.Is(err, state.ErrNoLeader)
				mu.Unlock()
			}
		})
	}
	for range 4 {
		victim := h.leader()
		victim.kill()
		mu.Lock()
		n := len(acked)
		mu.Unlock()
		eventually(t, "writes go on", func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(acked) < n+20 {
				return fmt.Errorf("%d", len(acked)-n)
			}
			return nil
		})
		victim.start()
		h.settled("fb1 fb2 fb3", "")
	}
	cancel()
	writers.Wait()
	for _, o := range h.running() {
		o.barrier()
		for key, ok := range acked {
			if ok && o.get(key) != "v" {
				t.Errorf("%s lost the acknowledged %s", o.name, key)
			}
		}
		for key, no := range refused {
			if no && o.get(key) != "" {
				t.Errorf("%s has %s, which was refused", o.name, key)
			}
		}
	}
	t.Logf("%d writes, %d acknowledged, %d refused", len(acked), count(acked), count(refused))
}

func count(m map[string]bool) (n int) {
	for _, v := range m {
		if v {
			n++
		}
	}
	return n
}
