package raftstore

import (
	"fmt"
	"testing"
	"time"
)

func TestThreeServersFormOneStore(t *testing.T) {
	h := newHosts(t, 3, 3)
	start := time.Now()
	h.startAll()
	leader := h.leader()
	t.Logf("first leader after %v", time.Since(start))
	id := leader.store.ClusterID()
	for _, o := range h.running() {
		if o.store.ClusterID() != id {
			t.Errorf("%s has store %s, the leader has %s", o.name, o.store.ClusterID(), id)
		}
	}
	h.settled("fb1 fb2 fb3", "")
	h.follower().put("k", "v")
	h.everywhere("k", "v")
	eventually(t, "the record of the store", func() error {
		if c := leader.state.Snapshot().Cluster(); c == nil || c.ID != id || c.Name != "foobar" {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}
