package raftstore

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func TestTallyEndsWithTheVoteThatDecides(t *testing.T) {
	for _, c := range []struct {
		voters   int
		votes    string
		open     bool
		won      bool
		whatIsIt string
	}{
		{1, "", true, false, "nobody was asked"},
		{1, "y", false, true, "alone"},
		{2, "y", true, false, "half is no majority"},
		{2, "yn", false, false, "half is no majority, and nobody is left"},
		{3, "yy", false, true, "the third does not matter"},
		{3, "nn", false, false, "the third does not matter"},
		{4, "yy", true, false, "half of four"},
		{4, "nn", false, false, "half of four can't be made up for"},
		{5, "ynyn", true, false, "the fifth decides"},
		{0, "", false, false, "no voters, no majority"},
	} {
		v := tally{voters: c.voters}
		for _, vote := range c.votes {
			v.count(vote == 'y')
		}
		if v.open() != c.open || v.won() != c.won {
			t.Errorf("%s (%d voters, votes %q): open %v, won %v; want %v, %v", c.whatIsIt, c.voters, c.votes, v.open(), v.won(), c.open, c.won)
		}
	}
}

// Who asks while a round is under way must not share its answer: it began
// before the question.
func TestNoRoundIsSharedThatBeganBeforeTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rounds
		var began, ended atomic.Int32
		ask := func() error {
			began.Add(1)
			time.Sleep(time.Second) // in virtual time
			ended.Add(1)
			return nil
		}
		var group sync.WaitGroup
		join := func(begunAtMost int32) {
			before := began.Load()
			group.Go(func() {
				if err := r.join(t.Context(), ask); err != nil {
					t.Error(err)
				}
				if ended.Load() <= before {
					t.Errorf("answered by round %d, but %d had begun before the question", ended.Load(), before)
				}
			})
			synctest.Wait()
		}
		join(0)
		join(1)
		join(1)
		group.Wait()
		if began.Load() != 2 {
			t.Errorf("%d rounds for one caller and two later ones, want 2", began.Load())
		}
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := r.join(short, ask); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller that was in a hurry got %v", err)
		}
		time.Sleep(2 * time.Second)
	})
}

// The question is about a term: who comes later asks about a newer one.
func TestRoundAsksWhatThoseWhoWaitForItAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rounds
		old, now := errors.New("the old term"), errors.New("the new term")
		var group sync.WaitGroup
		for _, want := range []error{old, now} {
			group.Go(func() {
				err := r.join(t.Context(), func() error {
					time.Sleep(time.Second) // in virtual time
					return want
				})
				if err != want {
					t.Errorf("asked about %v, answered about %v", want, err)
				}
			})
			synctest.Wait()
		}
		group.Wait()
	})
}

// Why prove exists: the library's own proof counts a follower's answer to a
// heartbeat that was sent before the question. Two scripted followers show it;
// when this fails the library was mended.
func TestLibraryProvesLeadershipByAnswersOlderThanTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no lease and no heartbeat ends because the machine stands still
		leader, followers := scriptedFollowers(t)
		var pending []raft.RPC
		for _, f := range followers { // a heartbeat of each is under way
			pending = append(pending, nextHeartbeat(t, f))
		}
		proof := leader.VerifyLeader() // by now both may have elected another
		for range 20 {                 // through the loop that takes the question up; it chooses at random
			_ = leader.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a"}}}).Error()
		}
		for _, rpc := range pending {
			accept(rpc)
		}
		if err := proof.Error(); err != nil {
			t.Errorf("the library asked anew: %v; is askElectorate still needed?", err)
		}
	})
}

// accept answers as a follower that agrees to everything.
func accept(rpc raft.RPC) {
	switch r := rpc.Command.(type) {
	case *raft.RequestPreVoteRequest:
		rpc.Respond(&raft.RequestPreVoteResponse{Term: r.Term, Granted: true}, nil)
	case *raft.RequestVoteRequest:
		rpc.Respond(&raft.RequestVoteResponse{Term: r.Term, Granted: true}, nil)
	case *raft.AppendEntriesRequest:
		last := r.PrevLogEntry + uint64(len(r.Entries))
		rpc.Respond(&raft.AppendEntriesResponse{Term: r.Term, LastLog: last, Success: true}, nil)
	}
}

func nextHeartbeat(t *testing.T, f *raft.InmemTransport) raft.RPC {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case rpc := <-f.Consumer():
			if r, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && isHeartbeat(r) {
				return rpc
			}
			accept(rpc)
		case <-deadline:
			t.Fatal("no heartbeat after 20 s")
		}
	}
}

// Heartbeats that are answered are no proof: only an answer to the question is.
func TestReadNeedsAnAnswerToItsQuestionNotToAHeartbeat(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = calm
	var deaf atomic.Bool
	for _, o := range h.all {
		o.wire = func(to string, send func() error) error {
			if _, err := netip.ParseAddrPort(to); err == nil && deaf.Load() { // no Raft message
				return errors.New("lost by the test")
			}
			return send()
		}
	}
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	leader := h.leader()
	if _, err := leader.store.readIndexHere(t.Context()); err != nil {
		t.Fatalf("before anything is lost: %v", err)
	}
	deaf.Store(true)
	if _, err := leader.store.readIndexHere(t.Context()); !errors.Is(err, errUnproven) {
		t.Errorf("nobody answered the question, the read got: %v", err)
	}
	if !leader.store.IsLeader() {
		t.Error("the leader lost its office: the test shows nothing")
	}
	deaf.Store(false)
	if _, err := leader.store.readIndexHere(t.Context()); err != nil {
		t.Errorf("after all is well again: %v", err)
	}
}
