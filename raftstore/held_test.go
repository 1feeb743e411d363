package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"holdfast/internal/state"
)

// While there is no leader, reads and writes wait for the next: nobody is told
// that there is none. What was asked of the leader that died may be of unknown
// outcome, for writes alone.
func TestReadsAndWritesAreHeldAcrossAnElection(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = 8 // a machine that stands still for seconds must not lengthen the election beyond what is held
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	old := h.leader()
	old.put("before", "1")
	old.store.engine.Load().net.stop() // for the others, it died
	var group sync.WaitGroup
	for _, o := range h.besides(old) {
		for i := range 10 {
			group.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), soon)
				defer cancel()
				if err := o.store.ReadBarrier(ctx); err != nil {
					t.Errorf("%s: read %d: %v", o.name, i, err)
				}
				if got := o.get("before"); got != "1" {
					t.Errorf("%s: read %d found %q", o.name, i, got)
				}
			})
			group.Go(func() {
				_, err := o.tryPut(fmt.Sprintf("held/%s/%d", o.name, i), "1")
				if err != nil && !errors.Is(err, state.ErrUnknownOutcome) {
					t.Errorf("%s: write %d: %v", o.name, i, err)
				}
			})
		}
	}
	group.Wait()
	old.kill()
	if now := h.leader(); now == old {
		t.Error("the one that is cut off leads")
	}
}
