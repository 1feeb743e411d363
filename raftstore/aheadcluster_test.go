package raftstore

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// lostLog keeps each write until the hang ends, and then loses it.
type lostLog struct {
	raft.LogStore
	hang atomic.Pointer[chan struct{}] // nil: the disk is fine
}

func (l *lostLog) StoreLogs(entries []*raft.Log) error {
	if hang := l.hang.Load(); hang != nil {
		<-*hang
		return errors.New("the power is gone")
	}
	return l.LogStore.StoreLogs(entries)
}

// The disk of a leader hangs while it writes an entry that both followers have:
// nobody answers for it, and nobody applies it. When the leader is gone, without
// the entry, the others go on with everything that was acknowledged.
func TestNobodyLearnsOfAnEntryThatIsNotOnTheLeadersDisk(t *testing.T) {
	t.Parallel()
	for try := 1; !hidesPendingEntry(t); try++ { // an election shows nothing: the next leader may have the entry
		if try == 3 {
			t.Fatal("the leader lost its office each time")
		}
	}
}

// hidesPendingEntry is the test, on servers of its own; false: another was elected
// meanwhile, as while the machine stands still.
func hidesPendingEntry(t *testing.T) bool {
	t.Helper()
	h := newHostsAlone(t, 3, 3)
	defer h.stopAll()
	h.timing = 5 // an election shows nothing
	disks := map[string]*lostLog{}
	for name, o := range h.all {
		o.disk = func(l raft.LogStore) raft.LogStore {
			disks[name] = &lostLog{LogStore: l}
			return disks[name]
		}
	}
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	leader := h.leader()
	leader.put("acknowledged", "1")
	h.everywhere("acknowledged", "1")
	term := leader.store.Status().Term
	elected := func() bool {
		return slices.ContainsFunc(h.running(), func(o *host) bool { return o.store.Status().Term != term })
	}
	hang := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(hang) })
	defer letGo()
	disks[leader.name].hang.Store(&hang)
	before := leader.store.engine.Load().raft.LastIndex()
	outcome := make(chan error, 1)
	go func() {
		_, err := leader.tryPut("pending", "1")
		outcome <- err
	}()
	others := h.besides(leader)
	eventually(t, "the entry in both followers' logs, and Raft's commit", func() error {
		if elected() {
			return nil
		}
		for _, o := range others {
			if got := o.store.engine.Load().raft.LastIndex(); got <= before {
				return fmt.Errorf("%s has %d", o.name, got)
			}
		}
		if got := leader.store.engine.Load().raft.CommitIndex(); got <= before {
			return fmt.Errorf("the leader has %d committed", got)
		}
		return nil
	})
	// Raft tells followers of a commit after 50 to 100 ms at the latest, times five.
	for end := time.Now().Add(time.Second); time.Now().Before(end); pause(10 * time.Millisecond) {
		for _, o := range h.running() {
			if o.get("pending") == "" {
				continue
			}
			if elected() {
				return false
			}
			t.Fatalf("%s applied what is not on the leader's disk", o.name)
		}
		select {
		case err := <-outcome:
			if elected() {
				return false
			}
			t.Fatalf("the write was answered: %v", err)
		default:
		}
	}
	if elected() {
		return false
	}
	leader.store.engine.Load().net.stop() // its power is gone
	letGo()
	leader.stop()
	<-outcome
	h.leader().put("after", "1")
	h.everywhere("acknowledged", "1")
	leader.disk = nil
	leader.start()
	h.everywhere("acknowledged", "1")
	h.everywhere("after", "1")
	return true
}
