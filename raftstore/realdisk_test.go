package raftstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/health"
	"holdfast/internal/state"
	"holdfast/lab/stall"
)

// smallDisk is an ext4 file system of its own.
type smallDisk struct {
	t      *testing.T
	dir    string
	frozen bool
}

const smallDiskSize = 64 << 20

// newSmallDisk mounts one; a test that may not is skipped, in CI it fails.
func newSmallDisk(t *testing.T) *smallDisk {
	t.Helper()
	base := t.TempDir()
	d := &smallDisk{t: t, dir: filepath.Join(base, "mnt")}
	image := filepath.Join(base, "image")
	if err := errors.Join(os.Mkdir(d.dir, 0o700), os.WriteFile(image, nil, 0o600), os.Truncate(image, smallDiskSize)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, d.dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			if os.Getenv("CI") == "" && (os.Geteuid() != 0 || args[0] == "mount") {
				t.Skipf("%v: %v: %s", args, err, out)
			}
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		d.thaw()
		if out, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return d
}

func (d *smallDisk) freeze() {
	d.t.Helper()
	if out, err := exec.Command("fsfreeze", "--freeze", d.dir).CombinedOutput(); err != nil {
		d.t.Fatalf("fsfreeze: %v: %s", err, out)
	}
	d.frozen = true
}

func (d *smallDisk) thaw() {
	if !d.frozen {
		return
	}
	if out, err := exec.Command("fsfreeze", "--unfreeze", d.dir).CombinedOutput(); err != nil {
		d.t.Errorf("fsfreeze: %v: %s", err, out)
	}
	d.frozen = false
}

// fill leaves so many bytes free. The server may take some of them while it looks,
// so that it looks again.
func (d *smallDisk) fill(leave int64) {
	d.t.Helper()
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for range 20 {
		var st syscall.Statfs_t
		err := syscall.Statfs(d.dir, &st)
		info, err2 := f.Stat()
		if err := errors.Join(err, err2); err != nil {
			d.t.Fatal(err)
		}
		more := int64(st.Bavail)*st.Bsize - leave
		if more <= 0 {
			return
		}
		err = syscall.Fallocate(int(f.Fd()), 0, info.Size(), more)
		if err == nil {
			return
		}
		if !errors.Is(err, syscall.ENOSPC) {
			d.t.Fatalf("fill the disk: %v", err)
		}
	}
	d.t.Fatal("fill the disk: there is space each time that it is looked at, and none when it is asked for")
}

func (d *smallDisk) ballast() string { return filepath.Join(d.dir, "ballast") }

func (d *smallDisk) empty() {
	d.t.Helper()
	if err := os.Remove(d.ballast()); err != nil {
		d.t.Fatal(err)
	}
}

// condition waits until a server says, or no longer says, that its disk is not
// fit.
func (o *host) diskCondition(want bool) {
	o.hosts.t.Helper()
	eventually(o.hosts.t, fmt.Sprintf("%s: condition about the disk: %v", o.name, want), func() error {
		var messages []string
		for _, c := range o.board.Conditions() {
			if c.Name == conditionDisk {
				messages = append(messages, c.Message)
			}
		}
		if (len(messages) > 0) != want {
			return fmt.Errorf("%q", messages)
		}
		return nil
	})
}

// onSmallDisks makes three servers, each with a disk of its own, and starts them.
func onSmallDisks(t *testing.T, change ...func(*Config)) (*hosts, map[string]*smallDisk) {
	t.Helper()
	disks := map[string]*smallDisk{}
	for i := range 3 { // before the servers, so that they are stopped first
		disks[fmt.Sprintf("fb%d", i+1)] = newSmallDisk(t)
	}
	h := newHosts(t, 3, 3)
	h.timing, h.hung = 1, 0
	for name, d := range disks {
		h.all[name].dir = d.dir
	}
	for _, name := range h.order {
		h.all[name].start(change...)
	}
	h.settled("fb1 fb2 fb3", "")
	return h, disks
}

// names of all but one, in order.
func (h *hosts) but(one string) string {
	rest := slices.DeleteFunc(slices.Clone(h.order), func(n string) bool { return n == one })
	return fmt.Sprintf("%s %s", rest[0], rest[1])
}

// The disk of a leader hangs while its heartbeats go on (hashicorp/raft issue
// 503): with writes under way, and with none, when only a look can find it.
func TestLeaderOnAFrozenDiskIsReplacedAndComesBack(t *testing.T) {
	for name, writes := range map[string]bool{"under writes": true, "idle": false} {
		t.Run(name, func(t *testing.T) {
			h, disks := onSmallDisks(t)
			machine := stall.Test(t, t.TempDir())
			for try := 1; ; try++ { // a machine that is busy is asked again
				froze, led := replaceFrozenLeader(t, h, disks, writes)
				took := machine.Took(froze, led)
				t.Logf("another leader %v after the freeze, of which the machine stood still for %v", led.Sub(froze), machine.Within(froze, led))
				if took <= 5*time.Second {
					return
				}
				if try == 3 {
					t.Fatalf("it took %v; a hung write counts after 2 s, an election takes 1", took)
				}
			}
		})
	}
}

// replaceFrozenLeader freezes the disk of the leader until it has come back as a
// follower, and tells when it froze it and when another led.
func replaceFrozenLeader(t *testing.T, h *hosts, disks map[string]*smallDisk, writes bool) (froze, led time.Time) {
	t.Helper()
	old := h.leader()
	old.put("before", "1")
	disks[old.name].freeze()
	froze = time.Now()
	others := h.besides(old)
	// As many as Raft could be made to wait by, long before it hears of the disk.
	var outcome sync.WaitGroup
	for i := range 300 {
		if writes {
			outcome.Go(func() {
				<-time.After(time.Duration(i) * 5 * time.Millisecond)
				_, _ = old.tryPut("lost", "1") // it may be done by whoever leads then
			})
		}
	}
	eventually(t, "another leader", func() error {
		for _, o := range others {
			if name, _, ok := o.store.Leader(); !ok || name == old.name {
				return fmt.Errorf("%s says %q", o.name, name)
			}
		}
		return nil
	})
	led = time.Now()
	others[0].put("after", "1")
	old.diskCondition(true)
	voters := func(want string) {
		eventually(t, "voters "+want, func() error {
			var got string
			for _, s := range others[0].store.Status().Servers {
				if s.Voter {
					got += s.Name + " "
				}
			}
			if got != want+" " {
				return errors.New(got)
			}
			return nil
		})
	}
	voters(h.but(old.name))
	if name, _, _ := others[0].store.Leader(); name == old.name {
		t.Error("it leads again with its disk frozen")
	}
	disks[old.name].thaw()
	outcome.Wait()
	voters("fb1 fb2 fb3")
	old.diskCondition(false)
	h.everywhere("after", "1")
	return froze, led
}

// A disk that hangs holds up the opening of the log, and with it all that would
// tell of it.
func TestServerThatStartsOnAFrozenDiskSaysSoAndGoesOn(t *testing.T) {
	d := newSmallDisk(t)
	h := newHosts(t, 1, 1)
	o := h.all["fb1"]
	o.dir = d.dir
	o.start().stop()
	d.freeze()
	board := health.NewBoard(time.Now, nil, nil)
	store, err := New(o.config(), state.New(), Deps{Board: board})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- store.Run(ctx, func() { close(ready) }) }()
	says := func(want bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("condition about the disk: %v", want), func() error {
			list := board.Conditions()
			has := slices.ContainsFunc(list, func(c health.Condition) bool { return c.Name == conditionDisk })
			if has != want {
				return fmt.Errorf("%v", list)
			}
			return nil
		})
	}
	says(true)
	if closed(ready) {
		t.Error("it was ready on a disk that takes nothing")
	}
	d.thaw()
	says(false)
	eventually(t, "ready", func() error {
		if !closed(ready) {
			return errors.New("it is not")
		}
		return nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServerOnAFullDiskGivesWayUntilThereIsSpace(t *testing.T) {
	h, disks := onSmallDisks(t)
	old := h.leader()
	disks[old.name].fill(8 << 20)
	old.diskCondition(true)
	h.settled(h.but(old.name), old.name)
	if now := h.leader(); now == old {
		t.Errorf("%s leads with a disk that is nearly full", now.name)
	}
	// Now to the last block: it keeps what it has and does not end.
	disks[old.name].empty()
	disks[old.name].fill(0)
	big := string(make([]byte, 64<<10))
	for i := range 40 {
		h.leader().put(fmt.Sprintf("big/%d", i%4), big)
	}
	h.leader().put("after", "1")
	select {
	case err := <-old.done:
		t.Fatalf("the server on the full disk ended: %v", err)
	default:
	}
	disks[old.name].empty()
	h.settled("fb1 fb2 fb3", "")
	old.diskCondition(false)
	h.everywhere("after", "1")
}

// meter is a disk of 1 GiB of which only the free space is told.
type meter struct{ free atomic.Int64 }

func (m *meter) look(string) look { return look{Free: m.free.Load(), Size: 1 << 30} }

// When all disks fill at once nobody can take over: all keep their votes, all
// say so, writes and elections go on, and what takes most on each disk makes
// room.
func TestAllDisksFillAtOnceAndTheQuorumStays(t *testing.T) {
	h := newHosts(t, 3, 3)
	var allowed atomic.Bool
	meters := map[string]*meter{}
	start := func(name string) {
		m := meters[name]
		h.all[name].look = m.look
		h.all[name].start(func(c *Config) {
			c.Consumers = []Consumer{
				{Name: "a small one", Bytes: func() int64 { return 1 }, Shed: func(int64) int64 { return 0 }},
				{Name: "the ballast", Bytes: func() int64 { return 2 }, Shed: func(want int64) int64 {
					if !allowed.Load() {
						return 0
					}
					m.free.Add(want)
					return want
				}},
			}
		})
	}
	for _, name := range h.order {
		meters[name] = &meter{}
		meters[name].free.Store(1 << 29)
		start(name)
	}
	h.settled("fb1 fb2 fb3", "")
	// Nobody changes a vote while some are seen low and others not yet: the first
	// would lose its own, and rightly so.
	for _, o := range h.running() {
		o.store.engine.Load().mayLead.Lock()
	}
	for _, m := range meters {
		m.free.Store(8 << 20)
	}
	for _, name := range h.order {
		h.all[name].diskCondition(true)
	}
	for _, o := range h.running() {
		o.store.engine.Load().mayLead.Unlock()
	}
	h.all["fb1"].put("full", "1")
	h.everywhere("full", "1")
	h.settled("fb1 fb2 fb3", "")
	// A leader is found also among servers that would all leave it to others.
	victim := h.leader()
	victim.kill()
	h.leader().put("elected", "1")
	start(victim.name)
	h.settled("fb1 fb2 fb3", "")
	allowed.Store(true)
	for _, name := range h.order {
		h.all[name].diskCondition(false)
	}
}

// errLog is a log whose writes fail while the disk takes votes: the server then
// has all it needs to win elections, and could do so for ever (hashicorp/raft
// issue 614).
type errLog struct {
	raft.LogStore
	sick atomic.Bool
}

func (l *errLog) StoreLogs(entries []*raft.Log) error {
	if l.sick.Load() {
		return syscall.EIO
	}
	return l.LogStore.StoreLogs(entries)
}

func TestServerWhoseLogErrsWinsNoElection(t *testing.T) {
	h := newHosts(t, 3, 3)
	logs := map[string]*errLog{}
	for name, o := range h.all {
		o.disk = func(l raft.LogStore) raft.LogStore {
			logs[name] = &errLog{LogStore: l}
			return logs[name]
		}
	}
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	sick := h.leader()
	logs[sick.name].sick.Store(true)
	if _, err := sick.tryPut("k", "v"); err != nil && !errors.Is(err, state.ErrUnknownOutcome) && !errors.Is(err, state.ErrNoLeader) {
		t.Fatal(err)
	}
	eventually(t, "the leader whose log errs steps down", func() error {
		if sick.store.IsLeader() {
			return errors.New("it leads")
		}
		return nil
	})
	// Whoever leads next is deposed again and again; the sick one is as good a
	// candidate as any.
	for round := range 4 {
		next := h.leader()
		if next == sick {
			t.Fatalf("round %d: the server whose log errs leads", round)
		}
		if err := sick.store.engine.Load().mayStand(); err == nil {
			t.Errorf("round %d: it would stand for an election", round)
		}
		next.put(fmt.Sprint("round/", round), "1")
		for _, o := range h.running() {
			if o != sick && o != next {
				if err := next.store.TransferLeadership(t.Context(), o.name); err != nil {
					t.Logf("round %d: %v", round, err)
				}
			}
		}
	}
	logs[sick.name].sick.Store(false)
	h.settled("fb1 fb2 fb3", "")
	h.everywhere("round/3", "1")
}

// A term that can't be written must not end the process: hashicorp/raft panics.
func TestVoteWaitsForTheDiskAndEndsWithTheStore(t *testing.T) {
	bolt, err := openBolt(filepath.Join(t.TempDir(), logName))
	if err != nil {
		t.Fatal(err)
	}
	failing := &errStable{StableStore: bolt}
	failing.left.Store(3)
	ended, failures := make(chan struct{}), atomic.Int32{}
	s := steadyStable{checkedStable{failing}, ended, func(err error) {
		if err != nil {
			failures.Add(1)
		}
	}}
	if err := s.SetUint64([]byte("CurrentTerm"), 7); err != nil || failures.Load() != 3 {
		t.Errorf("%v after %d failures", err, failures.Load())
	}
	if got, err := s.GetUint64([]byte("CurrentTerm")); got != 7 || err != nil {
		t.Errorf("read %d, %v", got, err)
	}
	failing.left.Store(1 << 30)
	told, gone := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(gone)
		told <- s.SetUint64([]byte("CurrentTerm"), 8)
	}()
	close(ended)
	select {
	case <-gone:
	case <-time.After(soon):
		t.Fatal("it waits for ever")
	}
	select {
	case err := <-told:
		t.Errorf("it said %v about a vote that is not on the disk", err)
	default:
	}
	if err := bolt.Close(); err != nil {
		t.Error(err)
	}
}

// errStable fails some writes.
type errStable struct {
	raft.StableStore
	left atomic.Int32
}

func (s *errStable) Set(key, value []byte) error {
	if s.left.Add(-1) >= 0 {
		return syscall.ENOSPC
	}
	return s.StableStore.Set(key, value)
}
