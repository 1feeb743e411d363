package discovery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// Conditions that discovery raises.
const (
	conditionSkew          = "config.skew"
	conditionConflict      = "discovery.name-conflict"
	conditionSplit         = "discovery.split"
	conditionTwins         = "discovery.same-id"
	conditionAlone         = "discovery.alone"
	conditionRegistrations = "discovery.registrations"
)

const (
	// refreshInterval is how often the members are read without an event.
	refreshInterval = 5 * time.Second
	// aloneAfter is when it is a condition that nobody else is there.
	aloneAfter = 15 * time.Second

	searchFirst = 250 * time.Millisecond // between attempts while alone, doubling
	searchAlone = 4 * time.Second        // to this
	searchIdle  = 15 * time.Second       // while some are there and others are missing
)

// followMembers brings every change of the gossip into the state. Events say
// only that something changed; the truth is read from Serf, so that none can be
// lost, and any number of them is one change.
func (a *Agent) followMembers(ctx context.Context, g *gossip) {
	tick := time.NewTicker(a.times(refreshInterval))
	defer tick.Stop()
	for {
		a.refresh(g)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.doorman.noticed:
		case e := <-g.events:
			a.heard(e)
			a.drain(g)
		}
	}
}

func (a *Agent) drain(g *gossip) {
	for {
		select {
		case e := <-g.events:
			a.heard(e)
		default:
			return
		}
	}
}

// refresh reads the members and tells the state, the metrics, the board and
// the log.
func (a *Agent) refresh(g *gossip) {
	members := g.members()
	before := a.deps.State.Snapshot()
	a.deps.State.SetMembers(members)
	if a.deps.State.Snapshot().Version() != before.Version() {
		poke(a.leadNow) // a death is not to wait
	}
	a.metrics.setMembers(members)
	if err := copyKeyring(a.config.DataDir); err != nil {
		a.log.Warn("the gossip's keys were not copied", "error", err)
	}
	a.logChanges(before, members)
	a.judge(members)
}

func (a *Agent) logChanges(before *state.Snapshot, members []state.Member) {
	for _, m := range members {
		old, known := before.Member(m.Name)
		if known && old.Liveness == m.Liveness && old.ID == m.ID {
			continue
		}
		fields := []any{"member", m.Name, "address", m.Address, "id", m.ID, "version", m.Version}
		switch {
		case m.Liveness == state.Failed:
			a.log.Warn("member failed", fields...)
		case m.Liveness == state.Alive && known && old.ID != m.ID:
			a.log.Info("member came back with another disk", append(fields, "old_id", old.ID)...)
		case m.Liveness == state.Alive:
			a.log.Info("member is alive", fields...)
		default:
			a.log.Info("member is "+string(m.Liveness), fields...)
		}
	}
}

// judge raises and clears the conditions that follow from the members.
func (a *Agent) judge(members []state.Member) {
	a.condition(conditionSkew, health.Warning, skew(members),
		"the nodes run different cluster files (%s); bring the same file to all and reload")
	a.condition(conditionSplit, health.Error, split(members),
		"the servers belong to different stores (%s); wipe the data directory of those that are wrong")
	a.condition(conditionTwins, health.Error, twins(members),
		"nodes have the same ID, as if one's disk were a copy of the other's (%s); wipe the data directory of all but the original")
	other, conflict := a.doorman.conflictNow(a.times(conflictSpan), a.times(conflictMemory))
	what := ""
	if conflict {
		what = fmt.Sprintf("%s, also at %s", a.config.Node, other)
	}
	a.condition(conditionConflict, health.Error, what,
		"two nodes use the same name (%s); stop or rename one of them")
}

// condition raises the named condition with what filled into the format, or
// clears it when what is empty.
func (a *Agent) condition(name string, severity health.Severity, what, format string) {
	if what == "" {
		a.deps.Board.Clear(name)
		return
	}
	a.deps.Board.Raise(name, severity, fmt.Sprintf(format, what))
}

// search looks for the nodes of Config.Join that are not alive in the gossip:
// eagerly while nobody is there, and for ever, as two halves of a cluster that
// started apart must find each other.
func (a *Agent) search(ctx context.Context, g *gossip) {
	defer a.deps.Board.Clear(conditionAlone)
	began := time.Now()
	wait := searchFirst
	for {
		if a.leaving.Load() {
			return
		}
		missing := a.missing(g)
		reached := a.reach(ctx, g, missing)
		alone := reached == 0 && len(g.reachable()) <= 1
		switch {
		case !alone:
			wait, began = searchIdle, time.Now()
			a.deps.Board.Clear(conditionAlone)
		case wait == searchIdle:
			wait = searchFirst
		default:
			wait = min(2*wait, searchAlone)
		}
		if alone && len(missing) > 0 && time.Since(began) >= a.times(aloneAfter) {
			a.deps.Board.Raise(conditionAlone, health.Warning, fmt.Sprintf(
				"none of the other %d nodes answers the gossip on %s; look at the network, the firewall (TCP and UDP) and the gossip key",
				len(missing), netip.AddrPortFrom(a.config.Address, g.port)))
		}
		if !sleep(ctx, spread(a.times(wait))) {
			return
		}
	}
}

func (a *Agent) missing(g *gossip) []netip.AddrPort {
	alive := g.reachable()
	var missing []netip.AddrPort
	for _, address := range a.config.Join {
		if !alive[address] && address != netip.AddrPortFrom(a.config.Address, g.port) {
			missing = append(missing, address)
		}
	}
	return missing
}

// reach tries all addresses at the same time, for a host that is off answers
// nothing for seconds; it returns how many answered.
func (a *Agent) reach(ctx context.Context, g *gossip, addresses []netip.AddrPort) int {
	var tries sync.WaitGroup
	results := make([]error, len(addresses))
	for i, address := range addresses {
		tries.Go(func() { _, results[i] = g.serf.Memberlist().Join([]string{address.String()}) })
	}
	tries.Wait()
	reached := 0
	for i, err := range results {
		if ctx.Err() != nil {
			return reached
		}
		a.metrics.joins.WithLabelValues(resultLabel(err)).Inc()
		if err == nil {
			reached++
			continue
		}
		a.log.Debug("no gossip with a node", "address", addresses[i], "error", err)
	}
	return reached
}

// Join asks the nodes at the given addresses (host or host:port) to take this
// one in, and returns how many answered. It fails when none did.
func (a *Agent) Join(ctx context.Context, addresses []string) (int, error) {
	n, err := withGossip(ctx, a, func(g *gossip) (int, error) { return g.serf.Join(addresses, true) })
	if err != nil {
		return n, fmt.Errorf("discovery: join: %w", err)
	}
	return n, nil
}

// ForceLeave turns a failed member into one that left, so that it leaves the
// catalog at once. A member that is alive is refused: it would come back. The
// error wraps state.ErrNotFound or state.ErrInvalid for those two.
func (a *Agent) ForceLeave(ctx context.Context, node string) error {
	m, ok := a.deps.State.Snapshot().Member(node)
	switch {
	case !ok:
		return fmt.Errorf("discovery: force %q to leave: %w: no such member", node, state.ErrNotFound)
	case m.Liveness == state.Alive:
		return fmt.Errorf("discovery: force %q to leave: %w: it is alive; stop it there", node, state.ErrInvalid)
	case m.Liveness == state.Left:
		return nil
	}
	_, err := withGossip(ctx, a, func(g *gossip) (int, error) { return 0, g.serf.RemoveFailedNode(m.Name) })
	if err != nil {
		return fmt.Errorf("discovery: force %q to leave: %w", node, err)
	}
	return nil
}

// Leave takes this node out of the cluster for good: its services leave the
// catalog, the others are told, and the leader removes the node. Nothing of it
// comes back before the program is started again. It returns after some
// seconds at most, when the others had time to hear of it; the agent may then
// be stopped. Services that could not be deregistered go with the node, when
// there is a leader to remove it.
//
// There is no way back, so that the end of ctx does not break it off: a node
// that has half left would answer nobody and be missed by nobody.
func (a *Agent) Leave(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	a.leaving.Store(true)
	if err := a.withdraw(ctx); err != nil {
		a.log.Info("this node's services leave the catalog later: they could not be deregistered now", "error", err)
	}
	if _, err := withGossip(ctx, a, func(g *gossip) (int, error) { return 0, g.serf.Leave() }); err != nil {
		return fmt.Errorf("discovery: leave: %w", err)
	}
	return nil
}

func (a *Agent) withdraw(ctx context.Context) error {
	catalog := rowsOf(a.deps.State.Snapshot(), a.config.Node)
	if catalog.node == nil {
		return nil
	}
	gone := strangers(view{node: a.config.node()}, catalog, nil)
	if len(gone.Services) == 0 && len(gone.Checks) == 0 {
		return nil
	}
	return a.propose(ctx, byLeave, gone)
}

// withGossip calls f, which blocks, until ctx or the gossip ends. f is bounded by
// the gossip's own timeouts, and may outlive the call: what it finds out it returns,
// and leaves nowhere else.
func withGossip[T any](ctx context.Context, a *Agent, f func(*gossip) (T, error)) (found T, err error) {
	g := a.gossip.Load()
	if g == nil || !g.enter() {
		return found, errors.New("the gossip does not run")
	}
	type outcome struct {
		found T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		defer g.calls.Done()
		found, err := f(g)
		done <- outcome{found, err}
	}()
	select {
	case o := <-done:
		return o.found, o.err
	case <-ctx.Done():
		return found, ctx.Err()
	case <-g.ended:
	}
	select {
	case o := <-done: // before it ended
		return o.found, o.err
	default:
		return found, errors.New("the gossip ended before there was an answer")
	}
}

// sleep waits; it is false when ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// spread moves d by up to a quarter, so that nodes that started together do
// not stay in step.
func spread(d time.Duration) time.Duration { return d - d/8 + rand.N(d/4+1) }
