package discovery

import (
	"context"
	"fmt"
	"time"

	"holdfast/internal/state"
)

// ttlFactor is how many TTLs a session lives without a renewal. Consul takes
// two, and clients count on it (Patroni asks for half of what it needs): a
// holder that counts one TTL from before it asked for its last renewal has let
// go before anybody else can have the lock.
const ttlFactor = 2

// leases measures how long sessions went without a renewal and how long keys
// are under a lock-delay, on this node's monotonic clock. Only what it saw
// counts: a session that it has never seen begins now. So a new leader, or one
// that was paused, gives everybody at least his full time. It is not safe for
// concurrent use.
type leases struct {
	sessions map[string]lease // by ID
	delays   map[string]lease // by key
}

// lease is something that ends a while after it was seen.
type lease struct {
	index uint64 // the session's last renewal, or the delay's begin
	until time.Time
}

func newLeases() *leases {
	return &leases{sessions: map[string]lease{}, delays: map[string]lease{}}
}

// observe takes the sessions and delays of this moment and returns what has
// run out, and when the next will; ok is false when there is none.
func (l *leases) observe(now time.Time, snapshot *state.Snapshot) (due []state.Command, next time.Time, ok bool) {
	sessions, _ := snapshot.Sessions(nil)
	current := make(map[string]lease, len(sessions))
	soonest := func(at time.Time) {
		if !ok || at.Before(next) {
			next, ok = at, true
		}
	}
	for _, s := range sessions {
		if s.TTL == 0 {
			continue
		}
		known := l.sessions[s.ID]
		if known.index != s.RenewIndex {
			known = lease{s.RenewIndex, now.Add(ttlFactor * s.TTL)}
		}
		current[s.ID] = known
		if now.Before(known.until) {
			soonest(known.until)
			continue
		}
		due = append(due, state.DestroySession{ID: s.ID, RenewIndex: s.RenewIndex})
	}
	l.sessions = current
	delays := map[string]lease{}
	for _, d := range snapshot.LockDelays() {
		known := l.delays[d.Key]
		if known.index != d.Index {
			known = lease{d.Index, now.Add(d.Delay)}
		}
		delays[d.Key] = known
		if now.Before(known.until) {
			soonest(known.until)
			continue
		}
		due = append(due, state.EndDelay{Key: d.Key, Index: d.Index})
	}
	l.delays = delays
	return due, next, ok
}

// forget is for a node that does not lead: what it measured says nothing about
// the times in between.
func (l *leases) forget() {
	clear(l.sessions)
	clear(l.delays)
}

// keepLeases ends sessions and lock-delays whose time is over, while this node
// is the leader.
func (a *Agent) keepLeases(ctx context.Context, _ *gossip) {
	measured := newLeases()
	retry := backoff{}
	for {
		ledBy := a.deps.Leadership.LeaderChanged()
		next := time.Hour
		if a.deps.Leadership.IsLeader() {
			due, at, ok := measured.observe(time.Now(), a.deps.State.Snapshot())
			if ok {
				next = max(time.Until(at), time.Millisecond)
			}
			if err := a.endLeases(ctx, due); err != nil {
				next = retry.after(err)
				a.logRetry("sessions and locks whose time is over were not ended", err, &retry)
			} else {
				retry = backoff{}
			}
		} else {
			measured.forget()
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-ledBy:
		case <-a.leaseNow:
		}
		timer.Stop()
	}
}

func (a *Agent) endLeases(ctx context.Context, due []state.Command) error {
	for _, command := range due {
		snapshot := a.deps.State.Snapshot()
		if err := a.propose(ctx, byLease, command); err != nil {
			return fmt.Errorf("%s: %w", describe(command), err)
		}
		if c, isSession := command.(state.DestroySession); isSession {
			if s, _ := snapshot.Session(nil, c.ID); s != nil {
				a.log.Info("session expired: it was not renewed", "id", s.ID, "name", s.Name, "node", s.Node, "ttl", s.TTL)
			}
		}
	}
	return nil
}
