package raftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// raised asks for a level (0: the highest) through a server.
func (o *host) raise(to int) (LevelState, error) {
	args := url.Values{}
	if to > 0 {
		args.Set("to", fmt.Sprint(to))
	}
	answer, err := o.store.Operation(o.hosts.t.Context(), "feature-level", args, true)
	var st LevelState
	if err == nil {
		err = json.Unmarshal(answer.(json.RawMessage), &st)
	}
	return st, err
}

func (h *hosts) refusesToRaise(to int, words string) {
	h.t.Helper()
	eventually(h.t, "not raised: "+words, func() error {
		st, err := h.leader().raise(to)
		if err == nil {
			h.t.Fatalf("raised to %+v, want a refusal: %s", st, words)
		}
		if !errors.Is(err, state.ErrInvalid) || !strings.Contains(err.Error(), words) {
			return err
		}
		return nil
	})
}

func (h *hosts) read(level int) {
	for _, o := range h.all {
		o.feature = level
	}
}

// The level is raised by an explicit command, and only when every server reads
// it: one without a vote, and one that is down, count.
func TestLevelIsRaisedOnlyWhenEveryServerReadsIt(t *testing.T) {
	h := newHosts(t, 4, 3)
	h.read(2)
	late := h.all["fb4"]
	late.feature = 1
	h.startAll()
	h.settled("fb1 fb2 fb3", "fb4")
	if level := h.leader().state.Snapshot().Level(); level != 1 {
		t.Errorf("a new store is at level %d", level)
	}
	h.refusesToRaise(2, "fb4 reads 1")
	h.refusesToRaise(3, "fb1 reads 2")
	late.stop()
	h.refusesToRaise(2, "fb4 does not answer")
	late.feature = 2
	late.start()
	eventually(t, "raised", func() error {
		st, err := h.follower().raise(0)
		if err == nil && (st.Store != 2 || st.Possible != 2 || st.Reads["fb4"] != 2) {
			err = fmt.Errorf("%+v", st)
		}
		return err
	})
	eventually(t, "level 2 everywhere", func() error {
		for _, o := range h.running() {
			if level := o.state.Snapshot().Level(); level != 2 {
				return fmt.Errorf("%s is at %d", o.name, level)
			}
		}
		return nil
	})
	h.refusesToRaise(1, "can't go back")
	eventually(t, "level 2 is shown of all", func() error {
		peers, err := late.store.Peers(t.Context())
		if err != nil || len(peers) != 4 {
			return fmt.Errorf("%d peers, %w", len(peers), err)
		}
		for _, p := range peers {
			if p.Level != 2 { // or it did not answer in time
				return fmt.Errorf("%s is shown with level %d", p.Name, p.Level)
			}
		}
		return nil
	})
}

// A server whose program is too old for the store is given nothing of the log,
// takes part in no election, and both sides say why; with the new program it has
// everything.
func TestServerTooOldForTheStoreIsRefusedWithASentence(t *testing.T) {
	h := newHosts(t, 4, 3)
	h.read(2)
	for _, name := range []string{"fb1", "fb2", "fb3"} {
		h.all[name].start()
	}
	h.settled("fb1 fb2 fb3", "")
	eventually(t, "raised", func() error { _, err := h.leader().raise(2); return err })
	old := h.follower()
	old.stop()
	old.feature = 1
	old.start()
	leads := h.leaderBut(old)
	leads.put("above", "it")
	tells := func(words string) {
		t.Helper()
		eventually(t, "the leader says: "+words, func() error {
			for _, c := range h.leaderBut(old).board.Conditions() {
				if c.Name == conditionRefused && strings.Contains(c.Message, words) {
					return nil
				}
			}
			return fmt.Errorf("%+v", h.leaderBut(old).board.Conditions())
		})
	}
	tells(old.name + " gets nothing of the log: its program reads feature level 1 and the store is at 2")
	eventually(t, "the refusal is counted", func() error {
		if refusedBy(old, refusedLevel) == 0 {
			return errors.New("not by the old one")
		}
		return nil
	})
	newcomer := h.all["fb4"]
	newcomer.feature = 1
	newcomer.start()
	tells("fb4 (" + newcomer.address.String() + ") is not taken in: its program reads feature level 1")
	if got := old.get("above"); got != "" {
		t.Errorf("the old one has %q", got)
	}
	for _, o := range []*host{old, newcomer} {
		o.stop()
		o.feature = 2
		o.start()
	}
	h.settled("fb1 fb2 fb3", "fb4")
	h.everywhere("above", "it")
}

// leaderBut waits until all but one agree on a leader.
func (h *hosts) leaderBut(out *host) (leader *host) {
	h.t.Helper()
	eventually(h.t, "a leader among the others", func() error {
		for _, o := range h.running() {
			if o != out && o.store.IsLeader() {
				leader = o
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return leader
}

// A command above the store's level, and one that the leader does not know, are
// refused before they are in the log, also when a follower brings them.
func TestCommandAboveTheLevelIsNeverProposed(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	leader := h.leader()
	follower := h.besides(leader)[0]
	before := map[*host]uint64{}
	for _, o := range h.running() {
		before[o] = o.store.engine.Load().raft.LastIndex()
	}
	unknown := []byte{1, 0xfa, 0x01, 0, 0x80} // kind 250
	here := func(ctx context.Context, o *host) (uint64, error) { return o.store.proposeHere(ctx, unknown) }
	for name, propose := range map[string]func() error{
		"the leader": func() error { _, err := here(t.Context(), leader); return err },
		"a follower": func() error {
			_, err := follower.store.viaLeader(t.Context(), request{
				path: pathPropose, body: unknown, write: true,
				here: func(ctx context.Context) (uint64, error) { return here(ctx, follower) }, // if it is elected meanwhile
			})
			return err
		},
	} {
		err := asked(propose)
		if !errors.Is(err, state.ErrInvalid) || !strings.Contains(err.Error(), "kind 250") {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.leader().put("still", "here") // behind all that was proposed
	h.everywhere("still", "here")
	for _, o := range h.running() {
		e := o.store.engine.Load()
		for i := before[o] + 1; i <= e.raft.LastIndex(); i++ {
			var entry raft.Log
			if err := e.logs.GetLog(i, &entry); err == nil && string(entry.Data) == string(unknown) {
				t.Errorf("%s: entry %d is the command", o.name, i)
			}
		}
	}
}
