package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/check"
	"holdfast/internal/health"
	"holdfast/internal/kernel/command"
	"holdfast/internal/state"
)

// State is this node's replica, as discovery uses it: *state.Store.
type State interface {
	state.Reader
	SetMembers([]state.Member)
}

// Leadership tells whether this node leads: *raftstore.Store.
type Leadership interface {
	IsLeader() bool
	// LeaderChanged is closed at the next change of leader, whoever it is.
	LeaderChanged() <-chan struct{}
}

// Deps is what an Agent needs.
type Deps struct {
	State      State
	Proposer   state.Proposer
	Leadership Leadership
	Commands   *command.Runner // for script checks; nil allows none
	// Scripts may have a script check's probe made elsewhere; nil: it is not.
	Scripts func(d check.Definition, here check.Probe) check.Probe
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: not registered
	Board   *health.Board
}

// Agent takes part in the gossip, runs the checks of this node and keeps its
// part of the catalog. It is a run.Task; its other methods may be called from
// any goroutine, before and while it runs.
type Agent struct {
	config  Config
	deps    Deps
	log     *slog.Logger
	metrics *metrics
	local   *local
	checks  *check.Runner
	doorman *doorman
	updates *updates
	events  *events

	// mu guards the definitions and, in its order, what follows from them.
	mu         sync.Mutex
	file       []ServiceDefinition
	registered registrations

	tagsMu  sync.Mutex
	self    state.Member
	retag   chan struct{} // has an element when self changed
	gossip  atomic.Pointer[gossip]
	leaving atomic.Bool
	leadNow chan struct{} // has an element when the leader has to look

	leaseNow chan struct{} // likewise, at sessions and locks
}

// New makes an agent of a valid Config. It reads the registrations that the
// API left in the data directory; a file that can't be read is put aside and
// raises a condition.
func New(config Config, deps Deps) (*Agent, error) {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	config = config.withDefaults()
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("discovery: %s", flat(err))
	}
	a := &Agent{
		config:  config,
		deps:    deps,
		log:     deps.Log.With("service", "discovery"),
		metrics: newMetrics(deps.Metrics),
		local:   newLocal(config.node()),
		events:  newEvents(),
		retag:   make(chan struct{}, 1),
		leadNow: make(chan struct{}, 1),

		leaseNow: make(chan struct{}, 1),
		self: state.Member{
			Name: config.Node, ID: config.NodeID, Server: config.Server, RPC: config.RPC,
			Version: config.Version, Feature: config.Feature, ConfigSum: config.ConfigSum,
		},
	}
	if err := rehearse(a.local.view()); err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	a.doorman = newDoorman(config.Cluster, a.log, a.countRefusal)
	var commander check.Commander
	if deps.Commands != nil {
		commander = deps.Commands
	}
	var err error
	if a.updates, err = loadUpdates(config.DataDir); err != nil {
		a.log.Warn("when TTL checks were last updated is not known; their time starts again", "error", err)
	}
	a.checks = check.NewRunner(check.Deps{Commands: commander, Report: a.report, LastUpdate: a.updates.of, Log: a.log, NewProbe: a.newProbe})
	if err := a.restore(); err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	if err := a.SetServices(config.Services); err != nil {
		return nil, err
	}
	return a, nil
}

// String is "discovery".
func (a *Agent) String() string { return "discovery" }

// Run takes part until ctx ends; the others then see this node fail, and its
// services stay in the catalog: see Leave. It calls ready when gossip listens.
// It fails when the port can't be had or when the gossip ends by itself.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, err := startGossip(ctx, a.config, a.tags(), a.doorman, a.log)
	if err != nil {
		return fmt.Errorf("discovery: %w", err)
	}
	a.leaving.Store(false)
	a.gossip.Store(g)
	defer a.judge(nil) // nobody is known any more
	a.refresh(g)
	a.log.Info("gossip listens", "node", a.config.Node, "address", a.config.Address, "port", g.port, "encrypted", len(a.config.Key) > 0)
	if len(a.config.Key) == 0 {
		a.log.Warn("GOSSIP IS NOT ENCRYPTED: anybody on the network can take part; for labs only")
	}

	var tasks sync.WaitGroup
	for _, task := range []func(context.Context, *gossip){
		a.followMembers, a.publishTags, a.search, a.followState, a.synchronise, a.lead, a.keepLeases, a.keepUpdates,
		func(ctx context.Context, _ *gossip) { a.checks.Run(ctx) },
	} {
		tasks.Go(func() { task(ctx, g) })
	}
	ready()
	select {
	case <-ctx.Done():
	case <-g.serf.ShutdownCh():
		err = errors.New("discovery: the gossip ended by itself")
	}
	cancel()
	a.gossip.Store(nil)
	err = errors.Join(err, g.stop())
	tasks.Wait()
	return err
}

// SetClusterID puts the UUID of the store that this server belongs to into the
// gossip. It does not block.
func (a *Agent) SetClusterID(id string) { a.retagWith(func(m *state.Member) { m.ClusterID = id }) }

// SetConfigSum puts the sum of the cluster file that this node runs into the
// gossip. It does not block.
func (a *Agent) SetConfigSum(sum string) { a.retagWith(func(m *state.Member) { m.ConfigSum = sum }) }

func (a *Agent) retagWith(change func(*state.Member)) {
	a.tagsMu.Lock()
	defer a.tagsMu.Unlock()
	change(&a.self)
	poke(a.retag)
}

func (a *Agent) tags() map[string]string {
	a.tagsMu.Lock()
	defer a.tagsMu.Unlock()
	return encodeTags(a.config.Cluster, a.self)
}

// publishTags tells the others what changed about us; the latest counts.
func (a *Agent) publishTags(ctx context.Context, g *gossip) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.retag:
		}
		if err := g.serf.SetTags(a.tags()); err != nil && ctx.Err() == nil {
			// Set all the same; the next full exchange carries them.
			a.log.Debug("tags were not confirmed by another member", "error", err)
		}
	}
}

// newProbe is check.NewProbe, with the catalog for aliases, and scripts where
// they are to run. While no leader has confirmed the replica, an alias says
// nothing.
func (a *Agent) newProbe(d check.Definition, commands check.Commander) (check.Probe, error) {
	if d.Alias == nil {
		probe, err := check.NewProbe(d, commands)
		if err == nil && len(d.Script) > 0 && a.deps.Scripts != nil {
			probe = a.deps.Scripts(d, probe)
		}
		return probe, err
	}
	return check.NewAliasProbe(d, a.config.Node, func() (*state.Snapshot, bool) {
		snapshot := a.deps.State.Snapshot()
		_, confirmed := snapshot.Age(time.Now())
		return snapshot, confirmed
	}), nil
}

// report takes what a check has come to.
func (a *Agent) report(r check.Report) {
	if !a.local.report(r) {
		return
	}
	a.metrics.setChecks(a.local.count())
	if !r.Transition {
		return
	}
	a.metrics.transitions.WithLabelValues(string(r.Status)).Inc()
	level := slog.LevelInfo
	if r.Status != state.Passing {
		level = slog.LevelWarn
	}
	a.log.Log(context.Background(), level, "check changed", "check", r.ID, "status", r.Status, "output", r.Output)
}

func (a *Agent) countRefusal(reason refusal) {
	a.metrics.refused.WithLabelValues(string(reason)).Inc()
}

// propose writes a command, bounded in time.
func (a *Agent) propose(ctx context.Context, by string, c state.Command) error {
	ctx, cancel := context.WithTimeout(ctx, a.times(proposeTimeout))
	defer cancel()
	_, err := a.deps.Proposer.Propose(ctx, c)
	a.metrics.commands.WithLabelValues(by, resultLabel(err)).Inc()
	return err
}

// times applies Config.Timing.
func (a *Agent) times(d time.Duration) time.Duration {
	return time.Duration(float64(d) * a.config.Timing)
}

// poke puts an element into a channel of one, unless it has one.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
