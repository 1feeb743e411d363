package raftstore

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// Raft alone tells followers of a commit after one or two of its commit
// time-outs, and the leader's pipelines linger when nobody waits; both are made so
// long here that a busy machine does not matter.
func TestWriteOnAFollowerDoesNotWaitForTheCommitTimeout(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.commit = 3 * time.Second
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	o := h.follower()
	var writes, reads []time.Duration
	for i := range 11 {
		start := time.Now()
		o.put(fmt.Sprint("k", i), "v")
		writes = append(writes, time.Since(start))
		h.leader().put("other", fmt.Sprint(i))
		start = time.Now()
		o.barrier()
		reads = append(reads, time.Since(start))
		if got := o.get("other"); got != fmt.Sprint(i) {
			t.Fatalf("after a read barrier: %q, want %d", got, i)
		}
	}
	slices.Sort(writes)
	slices.Sort(reads)
	if writes[5] >= h.commit || reads[5] >= h.commit {
		t.Errorf("median write %v, read %v on a follower: Raft's own %v was waited for", writes[5], reads[5], h.commit)
	}
}

// A leader that is cut off has an entry that nobody else has. Its successor's first
// message ends before that entry, and tells of a commit that is further: it is of
// entries that the message does not have. This is what hashicorp/raft sends when its
// commit index grows between the choice of the last entry and the rest.
func TestADeposedLeaderCommitsNothingOfItsOwn(t *testing.T) {
	h := newHosts(t, 3, 3)
	net := h.cuttable()
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	var deposed *host
	var common uint64
	eventually(t, "a leader has an entry that nobody else has", func() error {
		deposed = h.leader()
		deposed.put("k", "before")
		h.everywhere("k", "before")
		r := deposed.store.engine.Load().raft
		lost := map[[2]string]bool{}
		for _, other := range h.besides(deposed) {
			lost[[2]string{deposed.name, other.name}] = true
			lost[[2]string{other.name, deposed.name}] = true
		}
		net.set(lost)
		if common = r.LastIndex(); r.State() == raft.Leader {
			_, err := deposed.tryPut("orphan", "1")
			if err == nil {
				t.Fatal("a write that no other server has is acknowledged")
			}
		}
		if r.LastIndex() == common {
			net.set(nil) // it had lost its office already
			return errors.New("it has none")
		}
		return nil
	})
	others := h.besides(deposed)
	var successor *host
	eventually(t, "the others have a leader with newer entries", func() error {
		for _, o := range others {
			if o.store.engine.Load().raft.State() == raft.Leader {
				successor = o
				successor.put("k", "after")
				return nil
			}
		}
		return errors.New("none")
	})
	e, was := successor.store.engine.Load(), deposed.store.engine.Load()
	for ; termAt(t, e, common) != termAt(t, was, common); common-- { // what it wrote by itself before it was cut off
	}
	eventually(t, "a message that it takes", func() error {
		args := &raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(successor.id), Addr: []byte(successor.address.String())},
			Term:      e.raft.CurrentTerm(), PrevLogEntry: common, PrevLogTerm: termAt(t, e, common), LeaderCommitIndex: e.raft.CommitIndex(),
		}
		if args.LeaderCommitIndex <= common {
			t.Fatalf("entry %d is committed, want one behind %d", args.LeaderCommitIndex, common)
		}
		id, resp := raft.ServerID(deposed.id), new(raft.AppendEntriesResponse)
		err := e.trans.NetworkTransport.AppendEntries(id, e.trans.at(id, raft.ServerAddress(deposed.address.String())), args, resp)
		if err == nil && !resp.Success {
			err = fmt.Errorf("%+v", resp)
		}
		return err
	})
	if got := was.raft.CommitIndex(); got > common {
		t.Errorf("it holds entry %d for committed, and has none but its own behind %d", got, common)
	}
	net.set(nil)
	h.everywhere("k", "after")
	if got := deposed.get("orphan"); got != "" {
		t.Errorf("it has %q, which nobody else has", got)
	}
}

// termAt is the term of an entry that a server has.
func termAt(t *testing.T, e *engine, index uint64) uint64 {
	t.Helper()
	var entry raft.Log
	if err := e.logs.GetLog(index, &entry); err != nil {
		t.Fatal(err)
	}
	return entry.Term
}

// No server tells of a commit beyond what its message has: not all versions look.
func TestNoMessageTellsOfACommitBeyondItsLastEntry(t *testing.T) {
	w, d := newWirePipe(t)
	raftSends(t, d, 0, 10, 12)
	w.wants(t, "by the pipeline, without entries", 0, 10, 10)
	w.answers <- nil
	<-d.Consumer()
	raftSends(t, d, 1, 11, 12)
	w.wants(t, "by the pipeline, with one", 1, 10, 11)
	leader := newPlainTransport(t)
	leader.wire = func(string, func() error) error { return nil }
	for entries, want := range map[uint64]uint64{0: 10, 1: 11, 2: 12, 3: 12} {
		args := &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 10, PrevLogTerm: 1, Entries: entriesOf(11, 10+entries, 1), LeaderCommitIndex: 12}
		if err := leader.AppendEntries("id", "", args, new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		if got := args.LeaderCommitIndex; got != want {
			t.Errorf("a message with %d entries behind 10 tells of commit %d, want %d", entries, got, want)
		}
	}
}

// unreadableLog has command 5, nothing before it, and fails with an error for what is
// behind it.
type unreadableLog struct {
	raft.LogStore
	err error
}

func (l unreadableLog) GetLog(index uint64, entry *raft.Log) error {
	switch {
	case index < 5:
		return raft.ErrLogNotFound
	case index > 5:
		return l.err
	}
	*entry = raft.Log{Index: index, Type: raft.LogCommand}
	return nil
}

// A consistent read waits for an entry that can't be read: it may be a write. One that
// is not in the log is in a snapshot, and will not come.
func TestAReadWaitsForAnEntryThatCanNotBeRead(t *testing.T) {
	for name, c := range map[string]struct {
		err            error
		index, applied uint64
		want           uint64
	}{
		"a command":                   {nil, 5, 3, 5},
		"in an older snapshot":        {nil, 4, 3, 3},
		"in one that was restored":    {raft.ErrLogNotFound, 6, 3, 3},
		"not readable":                {errors.New("input/output error"), 6, 3, 6},
		"not readable, and not asked": {errors.New("input/output error"), 5, 5, 5},
	} {
		e := &engine{logs: unreadableLog{err: c.err}}
		if got := e.lastCommand(c.index, c.applied); got != c.want {
			t.Errorf("%s: the last command up to %d is said to be %d, want %d", name, c.index, got, c.want)
		}
	}
}
