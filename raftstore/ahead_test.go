package raftstore

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// slowDisk is a log that keeps each write until the test lets it go on, and says
// what the test wants.
type slowDisk struct {
	raft.LogStore
	begun   chan []*raft.Log
	outcome chan error
}

func newSlowDisk() *slowDisk {
	return &slowDisk{LogStore: raft.NewInmemStore(), begun: make(chan []*raft.Log, 100), outcome: make(chan error)}
}

func (d *slowDisk) StoreLogs(entries []*raft.Log) error {
	select {
	case d.begun <- entries:
	default:
	}
	if err := <-d.outcome; err != nil {
		return err
	}
	return d.LogStore.StoreLogs(entries)
}

// aheadOf is a leader's log over disk, and how often Raft was called for.
func aheadOf(t *testing.T, disk raft.LogStore) (a *aheadLog, leads *atomic.Bool, yields *atomic.Int32) {
	t.Helper()
	leads, yields = new(atomic.Bool), new(atomic.Int32)
	leads.Store(true)
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended) })
	a = newAheadLog(disk, leads.Load, func() { yields.Add(1) }, ended)
	return a, leads, yields
}

func mustStore(t *testing.T, log raft.LogStore, entries []*raft.Log) {
	t.Helper()
	if err := log.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
}

func mustHave(t *testing.T, log raft.LogStore, first, last uint64) {
	t.Helper()
	for i := first; i <= last; i++ {
		var entry raft.Log
		if err := log.GetLog(i, &entry); err != nil || entry.Index != i {
			t.Fatalf("entry %d: %v, %v", i, entry.Index, err)
		}
	}
	if got, err := log.LastIndex(); got != last || err != nil {
		t.Fatalf("the last is %d, %v; want %d", got, err, last)
	}
}

// Entries that a leader accepts while it writes share the next write, can be sent
// meanwhile, and count as being on the disk when they are.
func TestLeaderSendsWhileItWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newSlowDisk()
		a, _, _ := aheadOf(t, disk)
		mustStore(t, a, entriesOf(1, 2, 1)) // nobody lets the disk go on
		<-disk.begun
		mustStore(t, a, entriesOf(3, 5, 1))
		mustStore(t, a, entriesOf(6, 6, 1))
		mustHave(t, a, 1, 6)
		there := make([]bool, 7)
		for _, i := range []uint64{2, 6} {
			go func() { there[i] = a.await(i) }()
		}
		synctest.Wait()
		if there[2] || there[6] || a.durable(6) != 0 {
			t.Fatalf("on the disk while it is written: %v, %d", there, a.durable(6))
		}
		disk.outcome <- nil
		synctest.Wait()
		if !there[2] || there[6] || a.durable(6) != 2 || a.durable(1) != 1 {
			t.Fatalf("after the first write: %v, %d, %d", there, a.durable(6), a.durable(1))
		}
		if batch := <-disk.begun; len(batch) != 4 {
			t.Errorf("%d entries share the second write, want the 4 that came during the first", len(batch))
		}
		disk.outcome <- nil
		synctest.Wait()
		if !there[6] || a.durable(6) != 6 {
			t.Errorf("after the second write: %v, %d", there, a.durable(6))
		}
		mustHave(t, disk.LogStore, 1, 6)
		a.close()
	})
}

// What a follower stores it answers for, and the first entry of a term and a
// configuration count as soon as they are stored.
func TestOnlyALeadersCommandsRunAheadOfItsDisk(t *testing.T) {
	for name, c := range map[string]struct {
		leads bool
		kind  raft.LogType
	}{
		"a follower's command": {false, raft.LogCommand},
		"a leader's no-op":     {true, raft.LogNoop},
		"a configuration":      {true, raft.LogConfiguration},
		"a barrier":            {true, raft.LogBarrier},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := newSlowDisk()
				a, leads, _ := aheadOf(t, disk)
				mustStore(t, a, entriesOf(1, 3, 1)) // of the office before
				leads.Store(c.leads)
				entry := entriesOf(4, 4, 1)
				entry[0].Type = c.kind
				stored := make(chan error, 1)
				go func() { stored <- a.StoreLogs(entry) }()
				for range 2 {
					synctest.Wait()
					select {
					case err := <-stored:
						t.Fatalf("stored before it is on the disk: %v", err)
					default:
					}
					disk.outcome <- nil
				}
				if err := <-stored; err != nil {
					t.Fatal(err)
				}
				mustHave(t, disk.LogStore, 1, 4)
				a.close()
			})
		})
	}
}

// A write behind Raft's back that fails is told to Raft, also when Raft has
// nothing to write; the entries, which Raft has, are not said to be on the disk
// before they were written again.
func TestFailedWriteOfALeaderIsHeardAndRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newSlowDisk()
		a, leads, yields := aheadOf(t, disk)
		mustStore(t, a, entriesOf(1, 2, 1))
		fails := a.fails()
		there := make(chan bool, 1)
		go func() { there <- a.await(2) }()
		broken := errors.New("no space")
		disk.outcome <- broken
		synctest.Wait()
		if yields.Load() != 1 || !closed(fails) {
			t.Errorf("Raft was called for %d times, the log says that it fails: %v", yields.Load(), closed(fails))
		}
		if err := a.StoreLogs(entriesOf(3, 3, 1)); !errors.Is(err, broken) {
			t.Errorf("the next write: %v", err)
		}
		leads.Store(false) // as Raft does with such an answer
		time.Sleep(retryWrite)
		synctest.Wait()
		if len(there) != 0 || a.durable(2) != 0 {
			t.Fatal("entries whose write failed are said to be on the disk")
		}
		disk.outcome <- broken
		synctest.Wait()
		leads.Store(true) // of another term
		mustHave(t, a, 1, 2)
		time.Sleep(retryWrite)
		disk.outcome <- nil
		if !<-there || a.durable(2) != 2 || closed(a.fails()) {
			t.Error("entries that were written again are not on the disk")
		}
		mustStore(t, a, entriesOf(3, 3, 2)) // the error was of an office that is over
		disk.outcome <- nil
		synctest.Wait()
		mustHave(t, disk.LogStore, 1, 3)
		a.close()
	})
}

// Entries that another leader replaces are written, and then removed: none of
// them comes back.
func TestEntriesOnTheirWayAreRemovedAfterTheyAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newSlowDisk()
		a, leads, _ := aheadOf(t, disk)
		mustStore(t, a, entriesOf(1, 3, 1))
		<-disk.begun
		mustStore(t, a, entriesOf(4, 5, 1))
		leads.Store(false)
		deleted := make(chan error, 1)
		go func() { deleted <- a.DeleteRange(3, 5) }()
		synctest.Wait()
		if len(deleted) != 0 {
			t.Fatal("removed while they are written")
		}
		disk.outcome <- nil
		disk.outcome <- nil
		if err := <-deleted; err != nil {
			t.Fatal(err)
		}
		mustHave(t, a, 1, 2)
		mustHave(t, disk.LogStore, 1, 2)
		a.close()
	})
}

// More than the bound waits for the disk, as all did.
// By entries, and by calls: each may become a step of the commit index, of which
// Raft's loop may not have to hand on so many that it waits.
func TestWhatRunsAheadOfTheDiskIsBounded(t *testing.T) {
	for at, want := range map[uint64]uint64{100: aheadEntries, 1: aheadCalls} {
		boundedAhead(t, at, want)
	}
}

func boundedAhead(t *testing.T, at, want uint64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		disk := newSlowDisk()
		a, leads, _ := aheadOf(t, disk)
		var accepted atomic.Uint64
		var stop atomic.Bool
		var done sync.WaitGroup
		done.Go(func() {
			for i := uint64(1); !stop.Load(); i += at {
				mustStore(t, a, entriesOf(i, i+at-1, 1))
				accepted.Add(at)
			}
		})
		synctest.Wait()
		if got := accepted.Load(); got < want || got >= want+at {
			t.Errorf("%d entries, %d at a time, run ahead of a disk that hangs, want %d", got, at, want)
		}
		leads.Store(false)
		stop.Store(true)
		close(disk.outcome) // the disk is well
		done.Wait()
		a.close()
	})
}

// No state has an entry that is not on this server's disk, and no answer is given
// for it; when Raft is stopped before, nothing behind it is applied either, nor is
// there a snapshot that pretends so.
func TestStateWaitsForTheLeadersOwnDisk(t *testing.T) {
	replica := state.New()
	f := &fsm{state: replica, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	onDisk := make(chan bool)
	var told []entryID
	f.attach(func(uint64) bool { return <-onDisk }, func(c entryID) { told = append(told, c) })
	entry := func(index uint64) *raft.Log {
		data, err := state.Encode(state.KV{Verb: state.Set, Entry: state.Entry{Key: fmt.Sprint("k", index)}})
		if err != nil {
			t.Fatal(err)
		}
		return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
	}
	answered := make(chan any, 1)
	go func() { answered <- f.Apply(entry(1)) }()
	select {
	case <-answered:
		t.Fatal("answered for an entry that is not on the disk")
	case onDisk <- true:
	}
	if r := (<-answered).(result); r.err != nil {
		t.Fatal(r.err)
	}
	go func() { onDisk <- false }() // stopped
	if r := f.Apply(entry(2)).(result); !errors.Is(r.err, state.ErrUnknownOutcome) {
		t.Errorf("an entry that is not on the disk: %v", r.err)
	}
	if r := f.Apply(entry(3)).(result); !errors.Is(r.err, state.ErrUnknownOutcome) {
		t.Errorf("an entry after it: %v", r.err)
	}
	if applied, _ := f.progress(); applied != 1 || len(told) != 1 {
		t.Errorf("applied up to %d, told %v", applied, told)
	}
	if _, err := f.Snapshot(); err == nil {
		t.Error("a snapshot was made that lacks what Raft says it has")
	}
	f.attach(func(uint64) bool { return true }, func(entryID) {}) // the next Run
	f.ApplyBatch([]*raft.Log{entry(2), entry(3)})
	if applied, _ := f.progress(); applied != 3 {
		t.Errorf("the next Run applied up to %d", applied)
	}
	if _, err := f.Snapshot(); err != nil {
		t.Error(err)
	}
}

// pendingOf is a log of which entries 1 to last are on the disk, and one more is
// not until the test says so.
func pendingOf(t *testing.T, last uint64) (*aheadLog, *slowDisk) {
	t.Helper()
	disk := newSlowDisk()
	a, leads, _ := aheadOf(t, disk)
	mustStore(t, a, entriesOf(1, last, 1))
	disk.outcome <- nil
	if !a.await(last) {
		t.Fatal("not written")
	}
	mustStore(t, a, entriesOf(last+1, last+1, 1))
	leads.Store(false)
	for range 2 {
		<-disk.begun
	}
	return a, disk
}

// finish ends with a disk that is well.
func (d *slowDisk) finish(a *aheadLog) {
	close(d.outcome)
	a.close()
}

// A follower must not apply what only a copy that is not written yet makes a
// majority: neither a message with entries nor one of the pipeline says so.
func TestFollowersAreToldOfNoCommitBeyondTheLeadersDisk(t *testing.T) {
	a, disk := pendingOf(t, 9)
	w, d := newWirePipe(t)
	d.durable = a.durable
	raftSends(t, d, 1, 11, 10)
	w.wants(t, "while entry 10 is written", 1, 10, 9)
	w.answers <- nil
	leader := newPlainTransport(t)
	leader.wire = func(string, func() error) error { return nil }
	leader.ahead = a
	args := &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 11, PrevLogTerm: 1, LeaderCommitIndex: 11}
	if err := leader.AppendEntries("id", "", args, new(raft.AppendEntriesResponse)); err != nil {
		t.Fatal(err)
	}
	if sent := args.LeaderCommitIndex; sent != 9 {
		t.Errorf("a message tells of commit %d, and 9 is on the disk", sent)
	}
	disk.outcome <- nil
	defer disk.finish(a)
	if !a.await(10) {
		t.Fatal("not written")
	}
	raftSends(t, d, 1, 12, 10)
	w.wants(t, "when it is", 1, 11, 10)
}

// A server that led answers its successor for an entry when it is on its disk,
// and not otherwise: the successor counts the answer. It asks for no votes by
// such an entry either.
func TestFormerLeaderAnswersForItsEntriesOnceTheyAreOnItsDisk(t *testing.T) {
	for name, c := range map[string]struct {
		prev, entries uint64
		broken        error
	}{
		"entry, the disk is slow":        {9, 1, nil},
		"entry before, the disk is slow": {10, 0, nil},
		"entry, the disk errs":           {9, 1, errors.New("no space")},
		"entry before, the disk errs":    {10, 0, errors.New("no space")},
	} {
		t.Run(name, func(t *testing.T) {
			a, disk := pendingOf(t, 9)
			defer disk.finish(a)
			leader, former := newPlainTransport(t), newPlainTransport(t)
			former.ahead = a
			raftHas := former.Consumer()
			appended := func(prev, entries uint64) chan *raft.AppendEntriesResponse {
				args := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3}, Term: 2, PrevLogEntry: prev, PrevLogTerm: 1}
				if entries > 0 {
					args.Entries = entriesOf(prev+1, prev+entries, 1)
				}
				answer := make(chan *raft.AppendEntriesResponse, 1)
				go func() {
					resp := new(raft.AppendEntriesResponse)
					if err := leader.AppendEntries("id", former.LocalAddr(), args, resp); err != nil {
						t.Error(err)
					}
					answer <- resp
				}()
				return answer
			}
			arrives := func(reaches uint64) {
				t.Helper()
				select {
				case rpc := <-raftHas:
					if got := reach(rpc.Command.(*raft.AppendEntriesRequest)); got != reaches {
						t.Fatalf("Raft gets a message up to entry %d, want that up to %d", got, reaches)
					}
					rpc.Respond(&raft.AppendEntriesResponse{Term: 2, Success: true}, nil)
				case <-time.After(soon):
					t.Fatal("Raft gets nothing")
				}
			}
			held := appended(c.prev, c.entries)
			lower := appended(8, 1) // is answered meanwhile
			arrives(9)
			<-lower
			if c.broken == nil {
				select {
				case <-raftHas:
					t.Fatal("Raft answers for what is not on the disk")
				case <-held:
					t.Fatal("answered for what is not on the disk")
				case disk.outcome <- nil:
				}
				arrives(10)
				<-held
				return
			}
			failUntil(t, disk, c.broken, held, func(resp *raft.AppendEntriesResponse) {
				if resp.Success || resp.LastLog != 9 || resp.Term != 2 {
					t.Errorf("answered for what is not on the disk: %+v", resp)
				}
			})
			asked := make(chan error, 1)
			go func() {
				asked <- former.RequestVote("id", leader.LocalAddr(), &raft.RequestVoteRequest{LastLogIndex: 10}, new(raft.RequestVoteResponse))
			}()
			failUntil(t, disk, c.broken, asked, func(err error) {
				if !errors.Is(err, c.broken) {
					t.Errorf("it asks for votes by an entry that is not on its disk: %v", err)
				}
			})
		})
	}
}

// failUntil has all writes fail until there is an answer.
func failUntil[T any](t *testing.T, d *slowDisk, err error, answer <-chan T, check func(T)) {
	t.Helper()
	deadline := time.After(soon)
	for {
		select {
		case got := <-answer:
			check(got)
			return
		case d.outcome <- err:
		case <-deadline:
			t.Fatal("no answer")
		}
	}
}
