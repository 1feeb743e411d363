package raftstore

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// freshness knows whether a follower's state is as new as its last contact
// with the leader. A heartbeat alone does not say so: after a start, an
// election or a cut cable the follower hears its leader before it has the log,
// and what it still lacks would be denied to those who ask.
type freshness struct {
	mu       sync.Mutex
	caughtUp reign     // under which the state caught up; zero: it has not
	contact  time.Time // the last one that counted
	asking   bool      // catchUp is under way
}

// reign is one leader in one term.
type reign struct {
	leader string
	term   uint64
}

// noteContact touches the state when it is known to be as new as the contact,
// and finds that out when it is not.
func (e *engine) noteContact(ctx context.Context, now reign, contact time.Time) {
	f := &e.fresh
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.caughtUp == now && contact.Sub(f.contact) <= e.store.times.heartbeat {
		f.contact = contact
		e.store.state.Touch(contact)
		return
	}
	f.caughtUp = reign{}
	if !f.asking {
		f.asking = true
		e.group.Go(func() { e.catchUp(ctx, now) })
	}
}

// catchUp waits until everything that was committed before the call is in the
// state. When it fails, the next contact asks again.
func (e *engine) catchUp(ctx context.Context, now reign) {
	asked := time.Now()
	err := e.store.ReadBarrier(ctx)
	f := &e.fresh
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asking = false
	if err == nil {
		f.caughtUp, f.contact = now, asked
		e.store.state.Touch(asked)
	}
}

// leadsFor implements transport.leads.
func (e *engine) leadsFor(term uint64, id raft.ServerID) bool {
	r := e.running.Load()
	if r == nil || r.State() != raft.Leader || r.CurrentTerm() != term {
		return false
	}
	for _, server := range r.GetConfiguration().Configuration().Servers {
		if server.ID == id {
			return true
		}
	}
	return false
}
