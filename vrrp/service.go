package vrrp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/check"
	"holdfast/internal/health"
)

// Config is what a Service is told.
type Config struct {
	Node   string // this node's name
	RunDir string // of the process, below /run: what must outlive it but not the boot is kept in its "vrrp" folder
	// Guard is the command line of the guard without the program, which is
	// this very one: {"vip", "guard"}. Empty: none is run, and a crash
	// leaves addresses behind.
	Guard    []string
	Settings Settings
}

// Deps is what a Service needs.
type Deps struct {
	// Commands runs hooks and script checks; nil: none is run.
	Commands check.Commander
	Log      *slog.Logger
	Metrics  prometheus.Registerer
	Board    *health.Board // nil: conditions go nowhere
	// Holds is told that a router's addresses are about to be put on the
	// interface, or to be taken away. It is called on the loop's thread and
	// must return within microseconds; nil: nobody is told.
	Holds func(router string, holds bool)
	// Keeps tells whether the node goes on taking packets for an address that
	// leaves the interface, as a real server does that has it on lo, silent to
	// ARP: then it need not linger for the one who takes it over. Called like
	// Holds; nil: it does for none.
	Keeps func(netip.Addr) bool
	// Store is where fenced routers have their leases; the zero Store: they
	// hold nothing.
	Store Store
}

// Service is the virtual routers of a node. It is a run.Task; its methods may
// be called from any goroutine.
type Service struct {
	config   Config
	commands check.Commander
	log      *slog.Logger
	metrics  *metrics
	board    *health.Board
	guard    atomic.Pointer[GuardReport]
	holds    func(router string, holds bool)
	keeps    func(netip.Addr) bool
	store    Store

	mu       sync.Mutex
	settings Settings
	live     *session      // of Run; nil while it does not
	wanted   chan struct{} // closed when there are routers to run

	suspended atomic.Bool // the last Run left its addresses to a successor
}

// New makes a service of settings that Validate accepted. It starts nothing.
// The error is metrics that are registered already, or no RunDir.
func New(config Config, deps Deps) (*Service, error) {
	if config.RunDir == "" {
		return nil, errors.New("vrrp: no run directory given")
	}
	s := &Service{
		config: config, commands: deps.Commands, log: deps.Log.With("service", "vrrp"),
		board: deps.Board, settings: config.Settings, holds: deps.Holds, keeps: deps.Keeps, store: deps.Store,
	}
	s.guard.Store(&GuardReport{})
	s.wanted = make(chan struct{})
	s.want()
	var err error
	s.metrics, err = newMetrics(deps.Metrics)
	return s, err
}

// String is the task's name.
func (s *Service) String() string { return "vrrp" }

// Reconfigure makes these the settings. Routers whose settings stay keep their
// state, sockets and addresses; those that are gone hand over with priority 0.
// It may be called while the service does not run.
func (s *Service) Reconfigure(settings Settings) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings = settings
	s.want()
	if s.live == nil {
		return nil
	}
	return s.live.reconfigure(settings)
}

// want ends the wait for routers. s.mu is held, or s is new.
func (s *Service) want() {
	select {
	case <-s.wanted:
	default:
		if len(s.settings.Routers) > 0 {
			close(s.wanted)
		}
	}
}

// session gives the running session.
func (s *Service) session() (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live == nil {
		return nil, ErrStopped
	}
	return s.live, nil
}

// Suspended tells whether the last Run ended as for a restart: the process
// should end with a status that has it started again.
func (s *Service) Suspended() bool { return s.suspended.Load() }

// Guard reports on the guard.
func (s *Service) Guard() GuardReport { return *s.guard.Load() }

// Status reports on every router, in the order of the settings.
func (s *Service) Status(ctx context.Context) ([]RouterReport, error) {
	live, err := s.session()
	if err != nil {
		return nil, err
	}
	return live.reports(ctx)
}

// Yield hands a router over to a peer without loss: it goes on answering until
// a peer has taken it. That no peer does is seen in the status: the router is
// Active again after three intervals.
func (s *Service) Yield(ctx context.Context, router string) error { return s.order(ctx, router, Yield) }

// Pull takes a router over now and keeps it until Release, over restarts of
// the process but not of the machine.
func (s *Service) Pull(ctx context.Context, router string) error { return s.order(ctx, router, Pull) }

// Release ends a Yield or a Pull: priorities decide again.
func (s *Service) Release(ctx context.Context, router string) error {
	return s.order(ctx, router, Release)
}

func (s *Service) order(ctx context.Context, router string, kind EventKind) error {
	live, err := s.session()
	if err == nil {
		err = live.order(ctx, router, kind)
	}
	if err != nil {
		return fmt.Errorf("vrrp: router %s: %w", router, err)
	}
	return nil
}

// Plan compares what should be with what the kernel has, and touches nothing.
func (s *Service) Plan(ctx context.Context) ([]Change, error) {
	live, err := s.session()
	if err != nil {
		return nil, err
	}
	return live.plan(ctx)
}
