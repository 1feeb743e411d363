package raftstore

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// plainLayer is a stream layer without greetings.
type plainLayer struct{ net.Listener }

func (plainLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	_, target, _ := strings.Cut(string(address), "@")
	return net.DialTimeout("tcp", target, timeout)
}

func newPlainTransport(t *testing.T) *transport {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: plainLayer{l}, MaxPool: 1, MaxRPCsInFlight: rpcsInFlight, Timeout: soon, Logger: hclog.NewNullLogger()}),
		locate:           func(string) string { return "" },
	}
	t.Cleanup(func() {
		n.Close()
		n.CloseStreams()
	})
	return n
}

// A sender must not hang when nobody takes the answers any more.
func TestPipelineOutlivesItsConsumer(t *testing.T) {
	leader, follower := newPlainTransport(t), newPlainTransport(t)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case rpc := <-follower.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Term: 9}, nil)
			case <-done:
				return
			}
		}
	}()
	p, err := leader.AppendEntriesPipeline("id", follower.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	sent := make(chan error, 1)
	go func() {
		for range 20 { // raft's consumer would have gone after the first answer
			if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 1}, new(raft.AppendEntriesResponse)); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	if first := <-p.Consumer(); first.Response().Term != 9 {
		t.Errorf("the first answer has term %d", first.Response().Term)
	}
	select {
	case err := <-sent:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(soon):
		t.Fatal("AppendEntries hangs because nobody takes the answers")
	}
}

// wirePipe stands for Raft's pipeline: it keeps what is sent, and answers when
// the test lets it.
type wirePipe struct {
	sent    chan *raft.AppendEntriesRequest
	answers chan raft.AppendFuture
}

func (w *wirePipe) AppendEntries(args *raft.AppendEntriesRequest, _ *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	w.sent <- args
	return nil, nil
}
func (w *wirePipe) Consumer() <-chan raft.AppendFuture { return w.answers }
func (w *wirePipe) Close() error                       { return nil }

func newWirePipe(t *testing.T) (*wirePipe, *pipeline) {
	t.Helper()
	w := &wirePipe{sent: make(chan *raft.AppendEntriesRequest, 100), answers: make(chan raft.AppendFuture)}
	d := newPipeline(w, pace{repeat: time.Hour}, func(*pipeline) {})
	t.Cleanup(func() { d.Close() })
	return w, d
}

// raftSends has Raft send entries up to last of term 3, and says what it knows
// to be committed.
func raftSends(t *testing.T, d *pipeline, entries int, last, commit uint64) {
	t.Helper()
	r := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: last - uint64(entries), PrevLogTerm: 3, LeaderCommitIndex: commit}
	for i := range entries {
		r.Entries = append(r.Entries, &raft.Log{Index: r.PrevLogEntry + uint64(i) + 1, Term: 3})
	}
	sent := make(chan error, 1)
	go func() {
		_, err := d.AppendEntries(r, nil)
		sent <- err
	}()
	select {
	case err := <-sent:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(soon):
		t.Fatal("Raft's sender is held back")
	}
}

func (w *wirePipe) wants(t *testing.T, what string, entries int, prev, commit uint64) {
	t.Helper()
	select {
	case r := <-w.sent:
		if len(r.Entries) != entries || r.PrevLogEntry != prev || r.LeaderCommitIndex != commit || r.Term != 3 || r.PrevLogTerm != 3 {
			t.Errorf("%s: %d entries after %d of term %d, commit %d, in term %d", what, len(r.Entries), r.PrevLogEntry, r.PrevLogTerm, r.LeaderCommitIndex, r.Term)
		}
	case <-time.After(soon):
		t.Fatalf("%s: nothing was sent", what)
	}
}

func (w *wirePipe) silent(t *testing.T, what string) {
	t.Helper()
	select {
	case r := <-w.sent:
		t.Errorf("%s: sent %d entries after %d, commit %d", what, len(r.Entries), r.PrevLogEntry, r.LeaderCommitIndex)
	default:
	}
}

func TestPipelineTellsACommitAtOnceAndNeverMoreThanTheLeaderSent(t *testing.T) {
	w, d := newWirePipe(t)
	d.tell(entryID{5, 3})
	w.silent(t, "before anything was sent")
	raftSends(t, d, 2, 10, 7)
	w.wants(t, "Raft's entries", 2, 8, 7)
	d.tell(entryID{9, 3})
	w.wants(t, "while the entries are not answered: it waits", 0, 10, 9)
	d.tell(entryID{10, 3})
	w.silent(t, "while that is not answered either")
	w.answers <- nil
	w.wants(t, "after an answer", 0, 10, 10)
	for range 2 {
		w.answers <- nil
	}
	for range 3 {
		<-d.Consumer()
	}
	d.tell(entryID{10, 3})
	w.silent(t, "the same again")
	d.tell(entryID{12, 3})
	w.silent(t, "an entry that this follower was not sent")
	raftSends(t, d, 2, 12, 12)
	w.wants(t, "Raft's own message says it", 2, 10, 12)
	w.answers <- nil
	<-d.Consumer()
	w.silent(t, "it was told by Raft")
}

// Who waits for nothing is told a little later, unless the next entries say it
// before; who waits, at once.
func TestPipelineIsInAHurryOnlyForWhoWaits(t *testing.T) {
	w := &wirePipe{sent: make(chan *raft.AppendEntriesRequest, 100), answers: make(chan raft.AppendFuture)}
	var waits atomic.Bool
	d := newPipeline(w, pace{repeat: time.Hour, linger: time.Hour, waits: waits.Load}, func(*pipeline) {})
	t.Cleanup(func() { d.Close() })
	answered := func() {
		w.answers <- nil
		<-d.Consumer()
	}
	raftSends(t, d, 2, 10, 7)
	w.wants(t, "Raft's entries", 2, 8, 7)
	d.tell(entryID{10, 3})
	answered()
	w.silent(t, "a commit that nobody waits for")
	raftSends(t, d, 1, 11, 10)
	w.wants(t, "the next entries say it", 1, 10, 10)
	answered()
	waits.Store(true)
	d.tell(entryID{11, 3})
	w.wants(t, "a commit that the follower waits for", 0, 11, 11)
	answered()
	waits.Store(false)
	raftSends(t, d, 1, 12, 11)
	w.wants(t, "Raft's entry", 1, 11, 11)
	d.armed.Store(false) // the hour is over
	d.pace.linger = time.Millisecond
	d.tell(entryID{12, 3})
	answered()
	w.wants(t, "a moment later", 0, 12, 12)
}

// The leader answers a follower's write when a majority has it, which may be
// without that follower: it then has its own copy to write, and waits for the
// commit, though for no answer any more.
func TestPipelineIsInAHurryForWhoWasAnswered(t *testing.T) {
	w := &wirePipe{sent: make(chan *raft.AppendEntriesRequest, 100), answers: make(chan raft.AppendFuture)}
	var waits atomic.Bool
	d := newPipeline(w, pace{repeat: time.Hour, linger: time.Hour, waits: waits.Load}, func(*pipeline) {})
	t.Cleanup(func() { d.Close() })
	raftSends(t, d, 1, 10, 9)
	w.wants(t, "Raft's entry", 1, 9, 9)
	waits.Store(true)
	d.tell(entryID{10, 3})
	w.wants(t, "its disk still writes", 0, 10, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		raftSends(t, d, 1, 11, 10) // returns when the first is answered
	}()
	w.wants(t, "Raft's next entry", 1, 10, 10)
	d.tell(entryID{11, 3})
	waits.Store(false)
	w.silent(t, "with three messages under way")
	for range 2 {
		w.answers <- nil
		<-d.Consumer()
	}
	w.wants(t, "when there is room, though it is answered by now", 0, 11, 11)
	select {
	case <-done: // what tells of commits does not count against Raft
	case <-time.After(soon):
		t.Fatal("Raft's sender waits with one message of its own under way")
	}
}

// Raft's sender sends while one message is without an answer, and then waits, so
// that entries which come meanwhile share the next message and its sync.
func TestPipelineHoldsRaftBackWhileMessagesAreUnderWay(t *testing.T) {
	w, d := newWirePipe(t)
	raftSends(t, d, 1, 10, 9)
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		raftSends(t, d, 1, 11, 9)
	}()
	w.wants(t, "Raft's entry", 1, 9, 9)
	w.wants(t, "another, while one is under way", 1, 10, 9)
	select {
	case <-returned:
		t.Error("Raft is not held back with two messages under way")
	case <-time.After(20 * time.Millisecond): // no more than this can be seen of what never happens
	}
	w.answers <- nil
	select {
	case <-returned:
	case <-time.After(soon):
		t.Fatal("Raft's sender still waits after an answer")
	}
}

// A leader that hands over sends again and again until the follower has answered
// for all entries; it must wait for that, and not longer than a moment.
func TestPipelineTakesAMomentForARepetitionWhileAnAnswerIsAwaited(t *testing.T) {
	w, d := newWirePipe(t)
	raftSends(t, d, 1, 10, 10)
	w.wants(t, "Raft's entry", 1, 9, 10)
	start := time.Now()
	for range 20 {
		raftSends(t, d, 0, 10, 10)
	}
	if took := time.Since(start); took < 15*time.Millisecond {
		t.Errorf("20 repetitions took %v: they kept a processor busy", took)
	}
	w.silent(t, "repetitions")
	w.answers <- nil
	<-d.Consumer()
	raftSends(t, d, 1, 11, 10)
	w.wants(t, "Raft's next entry", 1, 10, 10)
}

// Raft sends message by message until a follower has answered, and opens the
// pipeline then. What is committed in between nobody has told it.
func TestNewPipelineTellsWhatWasCommittedBeforeItWasThere(t *testing.T) {
	leader, follower := newPlainTransport(t), newPlainTransport(t)
	leader.pace = pace{repeat: time.Hour, linger: time.Hour, waits: func() bool { return false }}
	leader.expects = func(string) bool { return false } // it was answered
	got := make(chan *raft.AppendEntriesRequest, 10)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case rpc := <-follower.Consumer():
				got <- rpc.Command.(*raft.AppendEntriesRequest)
				rpc.Respond(&raft.AppendEntriesResponse{Term: 3, Success: true}, nil)
			case <-done:
				return
			}
		}
	}()
	for name, c := range map[string]struct {
		commit entryID
		told   bool
	}{
		"of its term":                {entryID{11, 3}, true},
		"of another term":            {entryID{11, 4}, false},
		"not sent to this follower":  {entryID{20, 3}, false},
		"told by the message itself": {entryID{10, 3}, false},
	} {
		args := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 10, PrevLogTerm: 2, LeaderCommitIndex: 10, Entries: []*raft.Log{{Index: 11, Term: 3}}}
		if err := leader.AppendEntries("id", follower.LocalAddr(), args, new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		<-got
		leader.pipes.tell(c.commit)
		p, err := leader.AppendEntriesPipeline("id", follower.LocalAddr())
		if err != nil {
			t.Fatal(err)
		}
		if c.told {
			select {
			case r := <-got:
				if r.Term != 3 || r.PrevLogEntry != 11 || r.PrevLogTerm != 3 || r.LeaderCommitIndex != 11 || len(r.Entries) != 0 {
					t.Errorf("commit %s: told %+v", name, r)
				}
			case <-time.After(soon):
				t.Fatalf("commit %s: not told", name)
			}
		}
		// What Raft sends next is the next to arrive, if nothing was told.
		next := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 11, PrevLogTerm: 3, LeaderCommitIndex: 10, Entries: []*raft.Log{{Index: 12, Term: 3}}}
		if _, err := p.AppendEntries(next, new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		if r := <-got; len(r.Entries) != 1 {
			t.Errorf("commit %s: told %d", name, r.LeaderCommitIndex)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		for len(got) > 0 {
			<-got
		}
	}
}

// A leader that lost its office still has its pipelines for a moment, and
// applies what its successor commits: in other places of its log than where it
// sent its own.
func TestPipelineOfAFormerLeaderTellsNothingOfItsSuccessor(t *testing.T) {
	w, d := newWirePipe(t)
	raftSends(t, d, 3, 10, 7)
	w.wants(t, "Raft's entries", 3, 7, 7)
	w.answers <- nil
	<-d.Consumer()
	d.tell(entryID{10, 4})
	d.tell(entryID{9, 2})
	w.silent(t, "entries of other terms")
}

func TestPipelineRepeatsItselfRarely(t *testing.T) {
	w, d := newWirePipe(t)
	d.pace.repeat = 50 * time.Millisecond
	raftSends(t, d, 1, 10, 10)
	w.wants(t, "Raft's entry", 1, 9, 10)
	w.answers <- nil
	<-d.Consumer()
	d.sending.Lock()
	d.sentAt = time.Now().Add(time.Hour) // as if it were this moment for long
	d.sending.Unlock()
	for range 10 {
		raftSends(t, d, 0, 10, 10)
	}
	w.silent(t, "messages that say nothing new")
	raftSends(t, d, 0, 10, 11)
	w.silent(t, "a commit that is beyond what it was sent")
	d.sending.Lock()
	d.sentAt = time.Now().Add(-time.Second)
	d.sending.Unlock()
	raftSends(t, d, 0, 10, 10)
	w.wants(t, "after a while, so that a lost connection is found", 0, 10, 10)
}

// A burst of commits and of entries from two sides ends with all told.
func TestPipelineOwesNothingInTheEnd(t *testing.T) {
	w, d := newWirePipe(t)
	told := make(chan uint64, 1000)
	go func() { // a follower that answers
		for {
			select {
			case r := <-w.sent:
				told <- r.LeaderCommitIndex // has room for all
			case <-d.done:
				return
			}
			select {
			case w.answers <- nil:
			case <-d.done:
				return
			}
		}
	}()
	go func() {
		for {
			select {
			case <-d.Consumer():
			case <-d.done:
				return
			}
		}
	}()
	const last = 300
	for i := uint64(1); i <= last; i++ {
		raftSends(t, d, 1, i, i-1)
		go d.tell(entryID{i, 3})
	}
	deadline := time.After(soon)
	for {
		select {
		case c := <-told:
			if c == last {
				return
			}
		case <-deadline:
			t.Fatal("the last commit was never told")
		}
	}
}

// A sender of an earlier leadership may be late: what it brought must not be what
// the next one goes on behind, in a term that is over.
func TestPipelineGoesOnBehindNoMessageOfAnEarlierTerm(t *testing.T) {
	var p pipelines
	message := func(term, index uint64) *raft.AppendEntriesRequest {
		return &raft.AppendEntriesRequest{Term: term, Entries: []*raft.Log{{Index: index, Term: term}}}
	}
	is := func(what string, id raft.ServerID, term, index uint64) {
		t.Helper()
		got := p.answered(id)
		switch {
		case got == nil && term != 0:
			t.Errorf("%s: nothing, want entry %d of term %d", what, index, term)
		case got != nil && (got.Term != term || got.PrevLogEntry != index):
			t.Errorf("%s: entry %d of term %d, want %d of %d", what, got.PrevLogEntry, got.Term, index, term)
		}
	}
	p.note("a", message(5, 10))
	p.note("b", message(5, 10))
	p.note("a", message(5, 11))
	is("one leadership", "a", 5, 11)
	is("it is forgotten", "a", 0, 0)
	p.note("a", message(7, 20))
	is("of the earlier term, to another", "b", 0, 0)
	p.note("a", message(5, 12)) // late
	is("one is late", "a", 7, 20)
	p.note("a", message(5, 13))
	is("one is late, when nothing else is there", "a", 0, 0)
	p.note("b", message(7, 21))
	is("the newer term", "b", 7, 21)
}
