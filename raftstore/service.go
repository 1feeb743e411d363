// Package raftstore keeps the replicated state in order: Raft among the
// servers of a cluster, its log and snapshots on disk, the port they speak on,
// the forming of a store, and who of them votes.
//
// A Store implements state.Proposer on every server: writes go to the leader,
// wherever it is, and are visible on this node when Propose returns.
package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// Names of the conditions that a Store raises.
const (
	conditionNoLeader   = "raftstore.no-leader"
	conditionHalted     = "raftstore.halted"
	conditionOtherStore = "raftstore.other-store"
	conditionDisk       = "raftstore.disk"
	conditionInsecure   = "raftstore.insecure"
	conditionRestore    = "raftstore.restore"
)

// Store is one server of the replicated store. Its methods may be called from
// any goroutine, also before and after Run: they then answer ErrNoLeader.
type Store struct {
	config  Config
	times   timings
	state   *state.Store
	log     *slog.Logger
	board   *health.Board
	metrics *metrics
	fsm     *fsm

	verifier *verifier

	backingUp sync.Mutex

	disk func(raft.LogStore) raft.LogStore // tests put a disk in between that hangs
	wire wire                              // and a network that loses messages
	look func(dir string) look             // and a disk that fills; probeDisk otherwise

	engine     atomic.Pointer[engine]    // nil unless Run is running
	strangerAt atomic.Pointer[time.Time] // when a server of another store was last met

	stallLimit   *limiter
	distrustedAt atomic.Pointer[time.Time] // when one of another authority was

	mu      sync.Mutex
	leader  leadership
	changed chan struct{} // closed when leader changes
	halt    chan error    // tells Run
}

// leadership is who leads, as this server knows it.
type leadership struct {
	id      string // "" nobody
	address string
	self    bool // this server leads and has applied everything before its term
}

// New prepares a server; it starts nothing and touches no file.
func New(c Config, s *state.Store, d Deps) (*Store, error) {
	c, err := c.complete()
	if err != nil {
		return nil, err
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	m, err := newMetrics(d.Metrics)
	if err != nil {
		return nil, fmt.Errorf("raftstore: register metrics: %w", err)
	}
	store := &Store{
		config: c, times: c.timings(), state: s, board: d.Board, metrics: m,
		log:     d.Log.With("service", "raftstore"),
		changed: make(chan struct{}), halt: make(chan error, 1), look: probeDisk, stallLimit: newLimiter(time.Minute),
	}
	store.verifier = newVerifier()
	store.fsm = &fsm{state: s, log: store.log, halt: store.halted, mark: store.verifier.mark}
	return store, nil
}

// String names the task.
func (s *Store) String() string { return "raftstore" }

// Run opens the log, joins the other servers and serves until ctx ends; a
// leader hands its office over first. It returns an error when the files or
// the port can't be had, and when the log holds an entry that this program
// cannot apply. ready is called once this server answers others, which does
// not mean that there is a leader.
func (s *Store) Run(ctx context.Context, ready func()) error {
	if err := s.run(ctx, ready); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	return nil
}

func (s *Store) run(ctx context.Context, ready func()) (err error) {
	s.warnInsecure()
	if _, err := s.fsm.progress(); err != nil {
		return err // the entry is still there, and so is the program
	}
	e, err := s.open(ctx)
	if errors.Is(err, ErrDamaged) {
		return s.rejoin(ctx, err)
	}
	if err != nil {
		return err
	}
	s.engine.Store(e)
	s.tellAside()
	s.log.Info("store open", "address", e.advertise, "store", e.record.get().ClusterID, "voters", s.config.Voters, "servers", s.config.Servers)
	failed := e.start(ctx)
	ready()
	select {
	case <-ctx.Done():
		s.handOver(e)
		e.drain()
	case err = <-failed:
	case err = <-s.halt:
	}
	s.engine.Store(nil)
	err = errors.Join(err, e.stop())
	s.setLeader(leadership{})
	s.board.Clear(conditionNoLeader)
	return err
}

// halted is called by the fsm, inside Raft: it must not block.
func (s *Store) halted(err error) {
	s.log.Error("store halted", "error", err)
	s.board.Raise(conditionHalted, health.Error, err.Error()+
		"; nothing was skipped. Install the version of Holdfast that the other servers run and start it again")
	select {
	case s.halt <- err:
	default:
	}
}

func (s *Store) warnInsecure() {
	if !s.config.Insecure {
		return
	}
	s.log.Warn("INSECURE: the servers talk in plain text and trust everybody who can connect; never do this outside a lab", "listen", s.config.Listen)
	s.board.Raise(conditionInsecure, health.Warning, fmt.Sprintf(
		"the servers talk in plain text on %v and trust everybody who can connect: make certificates with \"holdfast pki\"", s.config.Listen))
}

// handOver transfers the leadership before a stop, so that the cluster does
// not have to notice our absence.
func (s *Store) handOver(e *engine) {
	if e.raft.State() != raft.Leader || e.voters() < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.times.transfer)
	defer cancel()
	to, found := e.view().successor()
	if !found { // we lead only since a moment, or were cut off
		e.poll(ctx)
		to, found = e.view().successor()
	}
	if !found {
		s.log.Warn("stopping as leader: no other voter answers")
		return
	}
	if err := e.transfer(ctx, to); err != nil {
		s.log.Warn("stopping as leader: the others will have to elect one", "error", err)
		return
	}
	s.log.Info("leadership handed over before the stop", "to", to.Name)
}

// ClusterID is the UUID of the store that this server belongs to; "" while
// none was formed or joined, and before Run.
func (s *Store) ClusterID() string {
	if e := s.engine.Load(); e != nil {
		return e.record.get().ClusterID
	}
	return ""
}

// Leader tells who leads, as far as this server knows: its name ("" when only
// the address is known) and its RPC address.
func (s *Store) Leader() (name string, address netip.AddrPort, ok bool) {
	s.mu.Lock()
	l := s.leader
	s.mu.Unlock()
	if l.id == "" {
		return "", netip.AddrPort{}, false
	}
	address, err := netip.ParseAddrPort(l.address)
	if err != nil {
		return "", netip.AddrPort{}, false
	}
	return s.nameOf(l.id), address, true
}

// IsLeader tells whether this server leads and its state holds everything
// that was committed before it was elected.
func (s *Store) IsLeader() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leader.self
}

// LeaderChanged is closed at the next change of Leader or IsLeader: take it
// before asking them.
func (s *Store) LeaderChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// setLeader publishes who leads.
func (s *Store) setLeader(l leadership) {
	s.mu.Lock()
	old := s.leader
	if old != l {
		s.leader = l
		close(s.changed)
		s.changed = make(chan struct{})
	}
	s.mu.Unlock()
	if old.id != l.id {
		s.metrics.elections.Inc()
	}
	s.metrics.leader.Set(oneIf(l.self))
	s.metrics.leaderKnown.Set(oneIf(l.id != ""))
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// await runs f, which cannot be interrupted, and stops waiting for it when
// ctx ends. f ends by itself, at the latest when Raft is shut down.
func await(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dir is where the store keeps its files.
func (c Config) dir() string { return filepath.Join(c.DataDir, "raft") }

// sleep waits for d or the end of ctx, and tells whether it was d.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
