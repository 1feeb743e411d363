package raftstore

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// pipeline is Raft's, with three additions.
//
// It has room for answers that nobody takes. When a follower answers with a
// newer term or refuses an entry, the goroutine of hashicorp/raft (1.8.0) that
// takes the answers ends. The one that sends may be inside AppendEntries by
// then, and waits for its request to be taken, which waits for an earlier
// answer to be taken, which nobody does any more: the leader sends that
// follower nothing until it loses its office, and Raft can't be stopped
// afterwards. With room for some answers AppendEntries returns, and the sender
// sees that its companion is gone.
//
// It tells the follower at once what is committed, if it waited for an answer of
// the leader when that was known, and a moment later if not: by then the next
// entries may say it. Raft itself does it after its commit time-out when nobody
// writes: that long every write through a follower of a quiet cluster would take.
// Who waits is told while its answer to the entries is under way, too: it takes
// both up one after the other, and needs no answer of ours in between.
//
// It sends no message that repeats the one before, but now and then: Raft sends
// one for every commit time-out.
type pipeline struct {
	raft.AppendPipeline
	answers chan raft.AppendFuture
	done    chan struct{}
	close   func()
	durable func(commit uint64) uint64 // see transport
	mine    func(term uint64) bool     // see transport; nil: not asked

	pace    pace
	room    chan struct{} // an answer to Raft came; for its sender
	senders chan bool     // of each message without an answer: whether Raft sent it
	appends atomic.Int64  // how many of these Raft sent
	armed   atomic.Bool   // the follower will be told after a moment
	owed    atomic.Uint64 // the entry up to which the follower should hear of the commit
	urgent  atomic.Uint64 // up to which it waits for that
	told    atomic.Uint64 // up to which entry it was told; changed while sending is held
	term    atomic.Uint64 // of the leader that sends
	pending atomic.Int64  // messages without an answer yet

	sending sync.Mutex // held while a message is sent; guards what follows
	header  raft.RPCHeader
	last    entryID // the last entry that was sent, or before what was sent
	sentAt  time.Time
}

// pace is how soon a follower is told what.
type pace struct {
	repeat time.Duration // how often a message that says nothing new is sent
	linger time.Duration // until a follower that waits for nothing is told of a commit
	waits  func() bool   // whether it waits; nil: it does
	id     raft.ServerID // which follower
}

// entryID names an entry of the log: two logs that have it are the same up to
// there (Raft's log matching).
type entryID struct{ index, term uint64 }

// underWay is how many messages Raft has without an answer, one more for the
// moment in which it is sent: what comes meanwhile shares the next. Of commits
// there is one beside these.
const underWay = 1

// rpcsInFlight is what raft.NetworkTransport must carry without blocking: those,
// and some to spare.
const rpcsInFlight = underWay + 7

// spareAnswers is far more than the sender can have under way before it looks
// whether its companion is still there.
const spareAnswers = 128

func newPipeline(p raft.AppendPipeline, pace pace, onClose func(*pipeline)) *pipeline {
	d := &pipeline{AppendPipeline: p, answers: make(chan raft.AppendFuture, spareAnswers), done: make(chan struct{}), pace: pace, room: make(chan struct{}, 1), senders: make(chan bool, rpcsInFlight)}
	d.close = sync.OnceFunc(func() {
		close(d.done)
		onClose(d)
	})
	go d.forward()
	return d
}

// forward ends when the pipeline is closed.
func (d *pipeline) forward() {
	for {
		select {
		case answer := <-d.AppendPipeline.Consumer():
			d.pending.Add(-1)
			select {
			case fromRaft := <-d.senders: // at once: it is noted when the message is sent
				d.answered(fromRaft)
			case <-d.done:
				return
			}
			select {
			case d.answers <- answer:
			case <-d.done:
				return
			}
			d.nudge()
		case <-d.done:
			return
		}
	}
}

// answered makes room for Raft's next message.
func (d *pipeline) answered(fromRaft bool) {
	if !fromRaft {
		return
	}
	d.appends.Add(-1)
	select {
	case d.room <- struct{}{}:
	default:
	}
}

// AppendEntries implements raft.AppendPipeline; the future is nil, and there
// will be no answer, when nothing had to be sent.
func (d *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	future, repeats, err := d.send(args, resp)
	d.nudge()
	switch {
	case repeats:
		d.rest()
	case err == nil:
		d.holdBack()
	}
	return future, err
}

// rest keeps Raft's sender for a moment when what it sends says nothing new and
// an answer is awaited. Who hands over the leadership asks it to send again and
// again until the follower has answered for everything, and would keep a
// processor busy that the follower needs.
func (d *pipeline) rest() {
	if d.appends.Load() == 0 {
		return
	}
	moment := time.NewTimer(time.Millisecond)
	defer moment.Stop()
	select {
	case <-d.room:
	case <-moment.C:
	case <-d.done:
	}
}

// holdBack has Raft's sender wait until few of its messages are without an answer, so
// that entries which come while the follower syncs share a message and a sync.
func (d *pipeline) holdBack() {
	for d.appends.Load() > underWay {
		select {
		case <-d.room:
		case <-d.done:
			return
		}
	}
}

// send sends, unless that would repeat the message before.
func (d *pipeline) send(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (future raft.AppendFuture, repeats bool, err error) {
	d.sending.Lock()
	defer d.sending.Unlock()
	last := lastOf(args)
	if d.durable != nil {
		args.LeaderCommitIndex = d.durable(args.LeaderCommitIndex)
	}
	withinReach(args)
	if d.mine != nil && !d.mine(args.Term) {
		return nil, false, errDeposed
	}
	tells, now := args.LeaderCommitIndex, time.Now()
	if len(args.Entries) == 0 && last == d.last && tells <= d.told.Load() && args.Term == d.term.Load() && now.Sub(d.sentAt) < d.pace.repeat {
		return nil, true, nil
	}
	d.header, d.last, d.sentAt = args.RPCHeader, last, now
	d.told.Store(max(d.told.Load(), tells))
	d.term.Store(args.Term)
	future, err = d.pass(args, resp, true)
	return future, false, err
}

// pass sends; the caller holds sending.
func (d *pipeline) pass(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, fromRaft bool) (raft.AppendFuture, error) {
	d.pending.Add(1)
	future, err := d.AppendPipeline.AppendEntries(args, resp)
	if err != nil {
		d.pending.Add(-1)
		return nil, err
	}
	if fromRaft {
		d.appends.Add(1)
	}
	select {
	case d.senders <- fromRaft:
	case <-d.done:
	}
	return future, nil
}

// tell sees to it that the follower hears that an entry is committed. It never
// waits for the follower. An entry of another term than the sender's is left to
// Raft: that a leader has an entry of its own term is certain, however long ago
// it lost its office, and what it sent up to there is what is committed.
func (d *pipeline) tell(c entryID) {
	if c.term != d.term.Load() {
		return
	}
	raise(&d.owed, c.index)
	if d.awaited() { // by the time it is told the leader may have answered it
		raise(&d.urgent, c.index)
	}
	d.nudge()
}

// begin has a new pipeline go on behind a message that the follower has taken
// before there was one.
func (d *pipeline) begin(taken *raft.AppendEntriesRequest) {
	if taken == nil {
		return
	}
	d.sending.Lock()
	defer d.sending.Unlock()
	d.header, d.last, d.sentAt = taken.RPCHeader, lastOf(taken), time.Now()
	d.told.Store(min(taken.LeaderCommitIndex, d.last.index))
	d.term.Store(taken.Term)
}

// catchUp tells the follower at once of what was committed before there was the
// pipeline: it may wait for that, and nobody else tells it before Raft's commit
// time-out.
func (d *pipeline) catchUp(c entryID) {
	if c.term == d.term.Load() {
		raise(&d.urgent, c.index)
	}
	d.tell(c)
}

// lastOf names the last entry of a message, or that before what it has.
func lastOf(args *raft.AppendEntriesRequest) entryID {
	if n := len(args.Entries); n > 0 {
		return entryID{args.Entries[n-1].Index, args.Entries[n-1].Term}
	}
	return entryID{args.PrevLogEntry, args.PrevLogTerm}
}

func raise(to *atomic.Uint64, index uint64) {
	for {
		old := to.Load()
		if index <= old || to.CompareAndSwap(old, index) {
			return
		}
	}
}

// awaited tells whether the follower waits for an answer of ours.
func (d *pipeline) awaited() bool { return d.pace.waits == nil || d.pace.waits() }

// presses tells whether the follower waits for a commit that it was not told.
func (d *pipeline) presses() bool { return d.urgent.Load() > d.told.Load() }

// nudge settles now or in a moment.
func (d *pipeline) nudge() {
	if d.presses() || d.awaited() {
		d.settle()
		return
	}
	if d.owed.Load() > d.told.Load() && d.armed.CompareAndSwap(false, true) {
		time.AfterFunc(d.pace.linger, func() {
			d.armed.Store(false) // what comes while this settles arms it anew
			d.settle()
		})
	}
}

// settle tells the follower what it should hear, unless a message is under way,
// or more than one if the follower waits: then that is done after an answer, or
// the next message says it. Who finds the lock taken leaves it to its holder, who
// therefore looks again.
func (d *pipeline) settle() {
	for d.mayTell() && d.sending.TryLock() {
		seen := d.pay()
		d.sending.Unlock()
		if d.owed.Load() == seen {
			return
		}
	}
}

func (d *pipeline) mayTell() bool {
	pending := d.pending.Load()
	return pending == 0 || pending <= underWay && d.presses()
}

// pay sends what is owed, if it may be sent now, and returns up to which entry
// that was; the caller holds sending. An error will meet Raft too, which then
// begins anew with another pipeline.
func (d *pipeline) pay() (owed uint64) {
	owed = d.owed.Load()
	if !d.mayTell() || owed <= d.told.Load() || owed > d.last.index {
		return owed
	}
	d.told.Store(owed)
	d.sentAt = time.Now()
	_, _ = d.pass(&raft.AppendEntriesRequest{
		RPCHeader: d.header, Term: d.term.Load(),
		PrevLogEntry: d.last.index, PrevLogTerm: d.last.term, LeaderCommitIndex: owed,
	}, new(raft.AppendEntriesResponse), false)
	return owed
}

// Consumer implements raft.AppendPipeline.
func (d *pipeline) Consumer() <-chan raft.AppendFuture { return d.answers }

// Close implements raft.AppendPipeline.
func (d *pipeline) Close() error {
	d.close()
	return d.AppendPipeline.Close()
}

// pipelines are those that are open.
type pipelines struct {
	mu     sync.Mutex
	open   map[*pipeline]struct{}
	newest entryID                                      // the last that was told
	taken  map[raft.ServerID]*raft.AppendEntriesRequest // the last message outside of a pipeline, without its entries
	term   uint64                                       // the highest of these
}

// add gives the last commit that was told to the others.
func (p *pipelines) add(d *pipeline) entryID {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = map[*pipeline]struct{}{}
	}
	p.open[d] = struct{}{}
	return p.newest
}

// note remembers a message that a follower has taken outside of a pipeline. One of
// an earlier leadership, whose sender is late, is not: a pipeline would go on
// behind it in its term, and to be refused for that term costs the office.
func (p *pipelines) note(id raft.ServerID, args *raft.AppendEntriesRequest) {
	last := lastOf(args)
	p.mu.Lock()
	defer p.mu.Unlock()
	if args.Term < p.term {
		return
	}
	p.term = args.Term
	if p.taken == nil {
		p.taken = map[raft.ServerID]*raft.AppendEntriesRequest{}
	}
	p.taken[id] = &raft.AppendEntriesRequest{RPCHeader: args.RPCHeader, Term: args.Term, PrevLogEntry: last.index, PrevLogTerm: last.term, LeaderCommitIndex: args.LeaderCommitIndex}
}

// answered gives what note remembers of the newest leadership, and forgets it.
func (p *pipelines) answered(id raft.ServerID) *raft.AppendEntriesRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.taken[id]
	delete(p.taken, id)
	if taken != nil && taken.Term < p.term {
		return nil
	}
	return taken
}

func (p *pipelines) remove(d *pipeline) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, d)
}

// settle tells a follower what is committed, without lingering.
func (p *pipelines) settle(id raft.ServerID) {
	p.mu.Lock()
	list := slices.Collect(maps.Keys(p.open))
	p.mu.Unlock()
	for _, d := range list {
		if d.pace.id == id {
			d.settle()
		}
	}
}

// tell tells all followers that an entry is committed.
func (p *pipelines) tell(c entryID) {
	p.mu.Lock()
	p.newest = c
	list := slices.Collect(maps.Keys(p.open))
	p.mu.Unlock()
	for _, d := range list {
		d.tell(c)
	}
}
