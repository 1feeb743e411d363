package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"holdfast/internal/state"
)

const (
	// syncInterval is how often a node compares itself with the catalog
	// though nothing seems to have changed.
	syncInterval = time.Minute
	// proposeTimeout bounds one write; the proposer itself holds it for a
	// while during an election.
	proposeTimeout = 5 * time.Second

	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second

	// followPause is how long a change that somebody else made may wait.
	followPause = 50 * time.Millisecond

	// confirmPoll is how often a replica that no leader has confirmed yet is
	// looked at.
	confirmPoll = 20 * time.Millisecond

	// leadInterval is how often the leader looks without being told to.
	leadInterval = 5 * time.Second
)

// followState watches the replica and tells the three loops below what concerns
// them, at most every followPause: nothing urgent comes this way, and a store
// that is written thousands of times a second must not be followed step by
// step.
func (a *Agent) followState(ctx context.Context, _ *gossip) {
	var seen uint64 // nothing: the first look tells all
	for {
		changed := a.deps.State.Changed()
		version := a.deps.State.Snapshot().Version()
		keys, ok := a.deps.State.Since(seen)
		mine, leader, leases := !ok, !ok, !ok
		for _, k := range keys {
			mine = mine || concernsNode(k, a.config.Node)
			leader = leader || k.Table == state.TableNode || k.Table == state.TableCheck || k.Table == state.TableMember
			leases = leases || k.Table == state.TableSession || k.Table == state.TableDelay
		}
		seen = version
		if mine {
			a.local.changed()
		}
		if leader {
			poke(a.leadNow)
		}
		if leases {
			poke(a.leaseNow)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		if !sleep(ctx, followPause) {
			return
		}
	}
}

// concernsNode tells whether rows of the node may have changed. A service's
// key does not say on which node.
func concernsNode(k state.Key, node string) bool {
	switch k.Table {
	case state.TableService:
		return true
	case state.TableNode, state.TableCheck:
		return state.Fold(k.Name) == state.Fold(node)
	}
	return false
}

// synchronise keeps the catalog's rows of this node equal to what it knows.
// It compares states and not events: a check's transition, a registration, a
// row that somebody removed and a write that failed are all a difference, and
// are written until there is none. What changed while a write was under way is
// in the next one, so that the latest value is never lost and many are one.
//
// It begins when a leader has confirmed the replica. After a start the replica
// is empty or old: compared with that, everything of this node would look
// missing, and be written in a state that the checks have not come to yet.
func (a *Agent) synchronise(ctx context.Context, _ *gossip) {
	if !a.awaitReplica(ctx) {
		return
	}
	retry := backoff{}
	for {
		ledBy := a.deps.Leadership.LeaderChanged()
		next, err := a.syncOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		a.metrics.syncRuns.WithLabelValues(resultLabel(err)).Inc()
		if err != nil {
			next = retry.after(err)
			a.logRetry("catalog not up to date with this node", err, &retry)
		} else {
			retry = backoff{}
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-ledBy:
		case <-a.local.poke:
		}
		timer.Stop()
	}
}

// awaitReplica waits until the replica was once as new as a leader's; it is
// false when ctx ended. A confirmation wakes nobody, hence the polling.
func (a *Agent) awaitReplica(ctx context.Context) bool {
	for {
		if _, confirmed := a.deps.State.Snapshot().Age(time.Now()); confirmed {
			return true
		}
		if !sleep(ctx, confirmPoll) {
			return false
		}
	}
}

var errNameTaken = errors.New("the catalog has another node under our name")

// standsBack tells whether the node that the catalog has under our name is the
// other one of a conflict. The leader goes by the gossip, which has one of the
// two; if the other insisted, they would write over each other for ever.
func (a *Agent) standsBack(catalog rows) bool {
	_, conflict := a.doorman.conflictNow(a.times(conflictSpan), a.times(conflictMemory))
	return conflict && catalog.node != nil && catalog.node.ID != a.config.NodeID
}

// syncOnce compares, and writes the difference. It returns when to look again.
func (a *Agent) syncOnce(ctx context.Context) (next time.Duration, err error) {
	if a.leaving.Load() {
		return syncInterval, nil
	}
	next = a.removeExpired()
	local := a.local.view()
	catalog := rowsOf(a.deps.State.Snapshot(), a.config.Node)
	if a.standsBack(catalog) {
		return 0, errNameTaken
	}
	plan := inPieces(diff(local, catalog), maxPiece)
	for _, command := range plan {
		if a.leaving.Load() {
			return next, nil
		}
		if err := a.propose(ctx, bySync, command); err != nil {
			return 0, fmt.Errorf("%s: %w", describe(command), err)
		}
	}
	for _, took := range a.local.stored(local, time.Now()) {
		a.metrics.observeStored(took)
	}
	return min(next, spread(syncInterval)), nil
}

// removeExpired deregisters the services of the API whose checks have been
// critical for as long as they said, and returns when the next may be.
func (a *Agent) removeExpired() time.Duration {
	ids, next := a.local.expired(time.Now())
	for _, id := range ids {
		if err := a.DeregisterService(id); err != nil {
			a.log.Warn("service was not deregistered though its check says so", "id", id, "error", err)
			continue
		}
		a.log.Info("service deregistered: its check was critical for too long", "id", id)
	}
	return next
}

// lead makes the catalog agree with the gossip while this node is the leader.
// Every agent remembers who is absent, leader or not.
func (a *Agent) lead(ctx context.Context, _ *gossip) {
	missing := newAbsences()
	retry := backoff{}
	for {
		ledBy := a.deps.Leadership.LeaderChanged()
		snapshot := a.deps.State.Snapshot()
		absent := missing.observe(time.Now(), snapshot)
		next := spread(a.times(leadInterval))
		if a.deps.Leadership.IsLeader() && !a.leaving.Load() {
			err := a.leadOnce(ctx, snapshot, absent)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				next = retry.after(err)
				a.logRetry("catalog not up to date with the gossip", err, &retry)
			default:
				retry = backoff{}
			}
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-ledBy:
		case <-a.leadNow:
		}
		timer.Stop()
	}
}

// leadOnce writes what is to be written. One command that fails does not keep
// the others from being tried, unless there is no leader to write them.
func (a *Agent) leadOnce(ctx context.Context, snapshot *state.Snapshot, absent map[string]absence) error {
	var failed []error
	for _, command := range reconcile(snapshot, absent, a.times(missingGrace)) {
		err := a.propose(ctx, byLead, command)
		if err == nil {
			a.log.Debug("catalog follows the gossip", "change", describe(command))
			continue
		}
		failed = append(failed, fmt.Errorf("%s: %w", describe(command), err))
		if !errors.Is(err, state.ErrInvalid) {
			break
		}
	}
	return errors.Join(failed...)
}

// logRetry says why a write failed, once for the same reason in a row. That
// there is no leader is said by the store.
func (a *Agent) logRetry(message string, err error, retry *backoff) {
	level := slog.LevelWarn
	reason := flat(err)
	if retry.reason == reason || errors.Is(err, state.ErrNoLeader) || errors.Is(err, state.ErrUnknownOutcome) || errors.Is(err, context.DeadlineExceeded) {
		level = slog.LevelDebug
	}
	retry.reason = reason
	a.log.Log(context.Background(), level, message, "error", reason, "retry_in", retry.last)
}

// backoff doubles the time between attempts that fail. The zero value starts
// at retryFirst.
type backoff struct {
	last   time.Duration
	reason string // of the failure that was last logged
}

func (b *backoff) after(err error) time.Duration {
	b.last = min(max(2*b.last, retryFirst), retryMost)
	if errors.Is(err, state.ErrInvalid) {
		b.last = retryMost // the same again will be refused again
	}
	return spread(b.last)
}

// describe names a command for the log and for errors.
func describe(c state.Command) string {
	switch c := c.(type) {
	case state.Register:
		return fmt.Sprintf("register node %s, %d services, %d checks", c.Node.Name, len(c.Services), len(c.Checks))
	case state.Deregister:
		if len(c.Services) == 0 && len(c.Checks) == 0 {
			return fmt.Sprintf("deregister node %s", c.Node)
		}
		return fmt.Sprintf("deregister %d services, %d checks of node %s", len(c.Services), len(c.Checks), c.Node)
	case state.UpdateCheck:
		return fmt.Sprintf("update %d checks of node %s", len(c.Updates), c.Node)
	case state.DestroySession:
		return fmt.Sprintf("end session %s", c.ID)
	case state.EndDelay:
		return fmt.Sprintf("end the lock-delay of key %q", c.Key)
	}
	return fmt.Sprintf("%T", c)
}
