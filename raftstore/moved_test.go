package raftstore

import (
	"errors"
	"testing"

	"holdfast/internal/state"
)

// What an admin said of a server holds when it moves; of one that leaves for good
// nothing stays.
func TestDemotedServerThatMovesGetsNoVote(t *testing.T) {
	h := newHosts(t, 4, 4)
	h.timing = calm // the leader is not demoted
	h.startAll()
	h.settled("fb1 fb2 fb3 fb4", "")
	moved := h.follower()
	eventually(t, "its name is written down", func() error { // by the leader, before the admin comes
		if documented(h.leader().state.Snapshot(), moved.id) == "" {
			return errors.New("it is not")
		}
		return nil
	})
	if _, err := moved.operation(opDemote, "server="+moved.name); err != nil {
		t.Fatal(err)
	}
	moved.stop()
	moved.address = freePort(t)
	moved.start()
	demoted := func(o *host) bool { return serverNote(o.state.Snapshot(), moved.id).Demoted }
	eventually(t, "the new address in the configuration", func() error {
		for _, s := range h.leader().store.Status().Servers {
			if s.Name == moved.name && s.Address == moved.address.String() {
				return nil
			}
		}
		return errors.New("it is not there")
	})
	if !demoted(h.leader()) {
		t.Error("what the admin said was forgotten")
	}
	moved.stop()
	moved.down(state.Left)
	eventually(t, "a server that left is forgotten", func() error {
		if demoted(h.leader()) {
			return errors.New("its note is there")
		}
		return nil
	})
}
