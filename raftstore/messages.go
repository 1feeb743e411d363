package raftstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// What a message between servers may say. hashicorp/raft (1.8.0) lets it say more than
// is true in three ways, each of which can make one server's state differ from the
// others' for good.

// isHeartbeat knows the messages that carry no place in the log.
func isHeartbeat(args *raft.AppendEntriesRequest) bool {
	return len(args.Entries) == 0 && args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && args.LeaderCommitIndex == 0
}

// errDeposed is the error of a message that was made of a log that may be a
// successor's by now.
var errDeposed = errors.New("this server no longer leads in the term of the message")

// mine tells whether what a sender has read from the log for a message of the term is
// this leader's log. It must be asked after it was read.
//
// Raft has a goroutine for each follower that reads the log entry by entry. It goes on
// for a moment after the office is lost, while Raft's loop replaces entries by the
// successor's: the entry before may be of this log and the first to be sent of the
// other. A follower that does not know of the successor takes them, and then has an
// entry that it agrees upon with everybody behind one that nobody else has. The terms
// need not show it, since the successor's entries may be older ones. But Raft's loop
// is no leader any more before it replaces the first, and never one of this term again.
func (t *transport) mine(term uint64) bool { return t.leads == nil || t.leads(term) }

// leadsIn implements transport.leads.
func (e *engine) leadsIn(term uint64) bool {
	r := e.running.Load()
	return r != nil && r.State() == raft.Leader && r.CurrentTerm() == term
}

// ofOneLog refuses a message whose terms no log can have. In a log they never fall, and
// none is later than that of the leader. A server of an earlier version may send one (see
// mine); not all that are mixed can be told by it.
func ofOneLog(args *raft.AppendEntriesRequest) error {
	last := entryID{args.PrevLogEntry, args.PrevLogTerm}
	for _, entry := range args.Entries {
		if entry.Term < last.term {
			return fmt.Errorf("entry %d is of term %d and the one before of %d: want terms that do not fall, as in one log", entry.Index, entry.Term, last.term)
		}
		last = entryID{entry.Index, entry.Term}
	}
	if last.term > args.Term {
		return fmt.Errorf("entry %d is of term %d: want no later term than that of the message, %d", last.index, last.term, args.Term)
	}
	return nil
}

// withinReach keeps a message from telling of a commit beyond its last entry, as the
// Raft paper has it (figure 2: "min(leaderCommit, index of last new entry)").
//
// hashicorp/raft commits up to the last entry of the follower's own log instead. A
// leader takes the commit index for a message after it chose the last entry, so that a
// message can have a newer commit index than entry. A server that led before, and has
// entries behind that one which nobody else has, would take those for what is
// committed, and apply them.
func withinReach(args *raft.AppendEntriesRequest) {
	args.LeaderCommitIndex = min(args.LeaderCommitIndex, reach(args))
}

// reach is the last entry that an answer to a message is for.
func reach(args *raft.AppendEntriesRequest) uint64 {
	if n := len(args.Entries); n > 0 {
		return args.Entries[n-1].Index
	}
	return args.PrevLogEntry
}

// SetHeartbeatHandler implements raft.Transport; Raft calls it once, after Consumer.
// Heartbeats are taken up beside Raft's own goroutine, so that a follower whose disk
// is slow answers them, but only those that are from its leader; the others wait for
// that goroutine as all messages do, for as long as who sent them waits.
//
// hashicorp/raft (its issue 695) would change term and state from here: the loop of a
// leader that was stopped, and is deposed so, waits for work meanwhile, and appends
// what it is given next in the term of its successor; two logs then differ in an entry
// of one index and one term, which nothing repairs. A candidate can become a second
// leader of the term.
func (t *transport) SetHeartbeatHandler(handle func(raft.RPC)) {
	if t.beside == nil || t.ahead == nil {
		return // without a handler they are like other messages
	}
	t.NetworkTransport.SetHeartbeatHandler(func(rpc raft.RPC) {
		if args, ok := rpc.Command.(*raft.AppendEntriesRequest); ok {
			if done, ok := t.beside(args.Term); ok {
				defer done()
				handle(rpc)
				return
			}
		}
		limit := time.NewTimer(t.patience)
		defer limit.Stop()
		select {
		case t.arrivals <- rpc:
		case <-limit.C:
			rpc.Respond(nil, fmt.Errorf("this server's Raft takes up no message for %v: look at the disk of its log (holdfast status there)", t.patience))
		case <-t.ahead.ended:
			rpc.Respond(nil, raft.ErrTransportShutdown)
		}
	})
}
