package raftstore

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A follower that forwarded a write, or asked for an index to read at, knows by
// the leader's answer that the entry is committed. Raft itself would tell it
// with the next entries or, when nobody writes, after the commit time-out, up
// to 40 ms later: that long would every write on a quiet cluster take, but on
// the leader. So the follower tells its own Raft: by a message as the leader
// sends it, without entries, that names the entry by index and term. An entry
// of that index and term is the committed one, and all before it are what the
// leader has (Raft's log matching); Raft checks the term as it always does.

// committed names an entry that is committed.
type committed struct{ index, term uint64 }

// learner tells Raft of what is committed, once for many who wait.
type learner struct {
	mu    sync.Mutex
	want  committed
	poked chan struct{} // capacity 1
}

func newLearner() *learner { return &learner{poked: make(chan struct{}, 1)} }

// learn notes that an entry is committed; it never blocks. Term 0: unknown,
// as older leaders don't tell it; then Raft has to find out.
func (l *learner) learn(c committed) {
	if c.term == 0 {
		return
	}
	l.mu.Lock()
	if c.index > l.want.index {
		l.want = c
	}
	l.mu.Unlock()
	select {
	case l.poked <- struct{}{}:
	default:
	}
}

func (l *learner) target() committed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.want
}

const (
	// The entry itself may still be on its way: so often it is looked for, and
	// after so long Raft's own message has come.
	learnLook  = 100 * time.Microsecond
	learnLimit = 50 * time.Millisecond
)

// passOn tells Raft until ctx ends.
func (e *engine) passOn(ctx context.Context) {
	for {
		select {
		case <-e.learner.poked:
		case <-ctx.Done():
			return
		}
		for start := time.Now(); time.Since(start) < learnLimit; {
			c := e.learner.target()
			if e.raft.CommitIndex() >= c.index {
				break
			}
			if e.raft.LastIndex() >= c.index {
				e.tellRaft(ctx, c)
				break
			}
			if !sleep(ctx, learnLook) {
				return
			}
		}
	}
}

// tellRaft gives Raft the leader's message and waits until it is processed.
// Only a follower that knows its leader is told: to any other state a message
// means more.
func (e *engine) tellRaft(ctx context.Context, c committed) {
	term := e.raft.CurrentTerm()
	address, id := e.raft.LeaderWithID()
	if e.raft.State() != raft.Follower || id == "" || string(id) == e.store.config.NodeID || e.raft.CurrentTerm() != term {
		return
	}
	answer := make(chan raft.RPCResponse, 1)
	e.trans.deliver(ctx, raft.RPC{RespChan: answer, Command: &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(address)},
		Term:      term, PrevLogEntry: c.index, PrevLogTerm: c.term, LeaderCommitIndex: c.index,
	}})
	select {
	case <-answer:
	case <-ctx.Done():
	}
}

// termAt is the term of an entry in this server's log; 0 when it is not there.
func (s *Store) termAt(index uint64) uint64 {
	e := s.engine.Load()
	var entry raft.Log
	if e == nil || index == 0 || e.logs.GetLog(index, &entry) != nil {
		return 0
	}
	return entry.Term
}

// inbox is what Raft gets its messages from: the network's, and this server's
// own.
type inbox struct {
	messages chan raft.RPC
	closed   chan struct{}
	once     sync.Once
}

func newInbox(from <-chan raft.RPC) *inbox {
	in := &inbox{messages: make(chan raft.RPC), closed: make(chan struct{})}
	go func() {
		for {
			select {
			case m := <-from:
				select {
				case in.messages <- m:
				case <-in.closed:
					m.Respond(nil, raft.ErrTransportShutdown)
				}
			case <-in.closed:
				return
			}
		}
	}()
	return in
}

func (in *inbox) close() { in.once.Do(func() { close(in.closed) }) }

// deliver gives Raft a message, or gives up when ctx or the transport ends.
func (t *transport) deliver(ctx context.Context, m raft.RPC) {
	select {
	case t.inbox.messages <- m:
	case <-t.inbox.closed:
	case <-ctx.Done():
	}
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC {
	if t.inbox == nil { // some tests have the network's alone
		return t.NetworkTransport.Consumer()
	}
	return t.inbox.messages
}

// Close implements raft.WithClose.
func (t *transport) Close() error {
	if t.inbox != nil {
		t.inbox.close()
	}
	return t.NetworkTransport.Close()
}
