package raftstore

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// The senders of who no longer leads send nothing that they read from the log, and
// heartbeats as before: there is nothing of it in them (mutations: any of the three
// ways does not ask, or heartbeats do).
func TestWhoWasDeposedSendsNothingOfItsLog(t *testing.T) {
	former := newPlainTransport(t)
	sent := 0
	former.wire = func(string, func() error) error {
		sent++
		return nil
	}
	former.leads = func(term uint64) bool { return term == 3 }
	for name, send := range map[string]func(term uint64) error{
		"entries": func(term uint64) error {
			args := &raft.AppendEntriesRequest{Term: term, PrevLogEntry: 4, PrevLogTerm: 2, Entries: entriesOf(5, 5, 2)}
			return former.AppendEntries("id", "", args, new(raft.AppendEntriesResponse))
		},
		"the entry before": func(term uint64) error {
			args := &raft.AppendEntriesRequest{Term: term, PrevLogEntry: 4, PrevLogTerm: 2}
			return former.AppendEntries("id", "", args, new(raft.AppendEntriesResponse))
		},
		"a snapshot": func(term uint64) error {
			return former.InstallSnapshot("id", "", &raft.InstallSnapshotRequest{Term: term}, new(raft.InstallSnapshotResponse), strings.NewReader(""))
		},
		"entries by a pipeline": func(term uint64) error {
			w, d := newWirePipe(t)
			d.mine = former.mine
			_, err := d.AppendEntries(&raft.AppendEntriesRequest{Term: term, PrevLogEntry: 4, PrevLogTerm: 2, Entries: entriesOf(5, 5, 2)}, nil)
			sent += len(w.sent)
			return err
		},
	} {
		sent = 0
		if err := send(3); err != nil || sent != 1 {
			t.Errorf("%s, as the leader: %v, sent %d times", name, err, sent)
		}
		sent = 0
		if err := send(2); !errors.Is(err, errDeposed) || sent != 0 {
			t.Errorf("%s, when another leads: %v, sent %d times", name, err, sent)
		}
	}
	sent = 0
	if err := former.AppendEntries("id", "", &raft.AppendEntriesRequest{Term: 2}, new(raft.AppendEntriesResponse)); err != nil || sent != 1 {
		t.Errorf("a heartbeat: %v, sent %d times", err, sent)
	}
}

// Another may lead by the time the sender has its turn, so that is when it asks
// (mutation: it asks before).
func TestASenderAsksWhetherItLeadsWhenItHasItsTurn(t *testing.T) {
	w, d := newWirePipe(t)
	asked := 0
	d.mine = func(uint64) bool {
		if asked++; d.sending.TryLock() {
			d.sending.Unlock()
			t.Error("another message may be sent between the question and this one")
		}
		return false
	}
	_, err := d.AppendEntries(&raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 4, PrevLogTerm: 2}, nil)
	if !errors.Is(err, errDeposed) || asked != 1 || len(w.sent) != 0 {
		t.Errorf("%v, asked %d times, %d messages were sent", err, asked, len(w.sent))
	}
}

// guarded is a transport as an engine has it, whose Raft takes up what the test reads
// from loop. It follows nobody.
func guarded(t *testing.T) (server *transport, loop <-chan raft.RPC) {
	t.Helper()
	server = newPlainTransport(t)
	ended := make(chan struct{})
	server.ahead = newAheadLog(raft.NewInmemStore(), func() bool { return false }, func() {}, ended)
	server.beside = func(uint64) (func(), bool) { return nil, false }
	server.patience = soon
	loop = server.Consumer()
	server.SetHeartbeatHandler(func(rpc raft.RPC) {
		t.Error("a heartbeat is taken up beside Raft's loop")
		rpc.Respond(new(raft.AppendEntriesResponse), nil)
	})
	t.Cleanup(func() {
		close(ended)
		server.ahead.close()
	})
	return server, loop
}

// What a server of an earlier version sends of two logs does not reach Raft, as far as
// it can be told (mutations: either look at the terms is left out).
func TestAMessageThatIsNotOfOneLogDoesNotReachRaft(t *testing.T) {
	former := newPlainTransport(t)
	server, loop := guarded(t)
	for name, c := range map[string]struct {
		args *raft.AppendEntriesRequest
		want string // "": it is one
	}{
		"an entry of a later term":         {&raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 4, PrevLogTerm: 2, Entries: entriesOf(5, 6, 3)}, "entry 6 is of term 3: want no later term than that of the message, 2"},
		"the entry before of a later term": {&raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 4, PrevLogTerm: 3}, "entry 4 is of term 3: want no later term than that of the message, 2"},
		"a term that falls":                {&raft.AppendEntriesRequest{Term: 5, PrevLogEntry: 4, PrevLogTerm: 2, Entries: append(entriesOf(5, 5, 4), entriesOf(6, 6, 3)...)}, "entry 6 is of term 3 and the one before of 4: want terms that do not fall, as in one log"},
		"a term below that before":         {&raft.AppendEntriesRequest{Term: 5, PrevLogEntry: 4, PrevLogTerm: 2, Entries: entriesOf(5, 6, 1)}, "entry 5 is of term 1 and the one before of 2: want terms that do not fall, as in one log"},
		"one log":                          {&raft.AppendEntriesRequest{Term: 5, PrevLogEntry: 4, PrevLogTerm: 2, Entries: append(entriesOf(5, 5, 2), entriesOf(6, 6, 5)...)}, ""},
	} {
		outcome := make(chan error, 1)
		go func() {
			outcome <- former.NetworkTransport.AppendEntries("id", "id@"+server.LocalAddr(), c.args, new(raft.AppendEntriesResponse))
		}()
		select {
		case rpc := <-loop:
			if c.want != "" {
				t.Errorf("%s reaches Raft", name)
			}
			rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
			<-outcome
		case err := <-outcome:
			if err == nil || c.want == "" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
		case <-time.After(soon):
			t.Fatal("no answer")
		}
	}
}

// A heartbeat that waits for Raft's loop does so no longer than its sender: while a
// disk takes no term for hours, each would leave a connection behind.
func TestAHeartbeatDoesNotWaitForRaftWithoutEnd(t *testing.T) {
	leader := newPlainTransport(t)
	server, _ := guarded(t)
	server.patience = time.Millisecond
	args := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{Addr: []byte("leader")}, Term: 2}
	if err := leader.AppendEntries("id", server.LocalAddr(), args, new(raft.AppendEntriesResponse)); err == nil || !strings.Contains(err.Error(), "takes up no message for 1ms") {
		t.Errorf("%v", err)
	}
}
