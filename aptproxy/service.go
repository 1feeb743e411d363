// Package aptproxy is the cluster's package proxy: a cache for APT repositories
// that proves what it serves.
//
// What a repository's signature vouches for is known before it is fetched
// (deb reads it); it is kept under its hash (cas). A request becomes a hash by
// way of generations (resolve.go), and a hash becomes bytes from the store or
// from a download that all who want it share (flight.go).
package aptproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/aptproxy/cas"
	"holdfast/aptproxy/deb"
	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/run"
	"holdfast/internal/state"
)

// Config is what a Server is told.
type Config struct {
	Node string // this node's name
	Dir  string // where packages are kept
	// Listen are the addresses served; port 0 takes a free one. Empty: those
	// of the cluster file's `apt: listen:`, or port 3142 of all addresses.
	Listen []netip.AddrPort
}

// Deps is what a Server needs.
type Deps struct {
	File     *cluster.File
	Log      *slog.Logger
	Metrics  prometheus.Registerer
	Board    *health.Board    // nil: conditions go nowhere
	Now      func() time.Time // nil: time.Now
	State    state.Reader     // nil: nothing can be frozen
	Proposer state.Proposer   // likewise
}

// Server serves packages. Its methods may be called from any goroutine.
type Server struct {
	config   Config
	log      *slog.Logger
	board    *health.Board
	metrics  *metrics
	now      func() time.Time
	fresh    time.Duration
	stall    time.Duration
	pause    time.Duration
	state    state.Reader
	proposer state.Proposer

	store     *cas.Store                // while Run runs
	room      atomic.Pointer[cas.Store] // the same, for those who need its room
	active    atomic.Pointer[active]
	flights   flights
	sightings sightings
	buffers   sync.Pool
	work      sync.WaitGroup // what goes on when its client is gone
	lifetime  context.Context
	recent    recent
	memory    memory
	hot       hot
	ranks     ranks
	views     atomic.Pointer[views]

	compiling  sync.Mutex // of views; and below
	viewsIndex uint64     // of what views were made from

	mu    sync.Mutex // below
	addrs []netip.AddrPort
}

// active is what follows from the cluster file. It is replaced whole.
type active struct {
	settings     settings
	file         *cluster.File
	repositories []*repository
	upstream     *upstream
	peers        []*mirror             // the other nodes that serve packages
	nodes        map[netip.Addr]string // the cluster's nodes by address
}

// New makes a server from a cluster file that Parse accepted with
// ValidateSection. It starts nothing. The error is a section that can't be
// served, or metrics that are registered already.
func New(config Config, deps Deps) (*Server, error) {
	s := &Server{
		config: config, log: deps.Log.With("service", "apt"), board: deps.Board, now: deps.Now,
		fresh: freshFor, stall: stallTimeout, pause: pushPause, state: deps.State, proposer: deps.Proposer,
		flights: flights{by: map[string]*flight{}}, lifetime: context.Background(),
	}
	s.buffers.New = func() any { return new([chunk]byte) }
	if s.now == nil {
		s.now = time.Now
	}
	var err error
	if s.metrics, err = newMetrics(deps.Metrics, s.gauges); err != nil {
		return nil, err
	}
	if err := s.use(deps.File); err != nil {
		return nil, err
	}
	return s, nil
}

// pushPause is how long a mirror that changes meanwhile is given before it is
// asked again; twice as long the second time.
const pushPause = time.Second

// String is the task's name.
func (s *Server) String() string { return "apt" }

// life is the context of what outlives its client.
func (s *Server) life() context.Context { return s.lifetime }

func (s *Server) upstream() *upstream { return s.active.Load().upstream }

// SetFile makes the server follow another cluster file at once. A file that
// can't be served is logged and the one before stays. Listening addresses and
// sizes change at the next Run.
func (s *Server) SetFile(file *cluster.File) {
	if err := s.use(file); err != nil {
		s.log.Error("cluster file not taken over; the one before stays in use", "sum", file.Sum, "error", err)
	}
}

func (s *Server) use(file *cluster.File) error {
	set, err := decode(file, file.Section(Section))
	if err != nil {
		return fmt.Errorf("aptproxy: section of %s: %w", file.Path, err)
	}
	a := &active{settings: set, file: file, nodes: map[netip.Addr]string{}, peers: peersOf(file, s.config.Node)}
	a.upstream = newUpstream(set, a.peers, s.stall)
	for _, node := range file.Nodes {
		for _, addr := range node.Addresses {
			a.nodes[addr] = node.Name
		}
	}
	old := s.active.Load()
	for _, r := range set.repositories {
		a.repositories = append(a.repositories, s.newRepository(r, old))
	}
	s.active.Store(a)
	if old != nil {
		old.upstream.close()
	}
	return nil
}

// newRepository makes a repository, with the suites that the one of its name had.
func (s *Server) newRepository(set repositorySettings, old *active) *repository {
	r := &repository{name: set.name, keep: set.keep, max: set.max, aliases: set.aliases, suites: map[string]*suite{}, validators: map[string]validator{}}
	for _, base := range set.mirrors {
		r.mirrors = append(r.mirrors, &mirror{base: base})
	}
	keyring, err := loadKeyring(set.keyring)
	r.keyring = keyring
	if err != nil {
		// An empty keyring vouches for nothing: requests fail, and say so.
		r.keyring = deb.NoKeys()
		s.board.Raise(conditionKeyring+set.name, health.Error, fmt.Sprintf(
			"the keyring of repository %s can't be read, so nothing of it is served: %v (install debian-archive-keyring, or name apt.repositories.%s.keyring)", set.name, err, set.name))
	} else {
		s.board.Clear(conditionKeyring + set.name)
	}
	if old != nil {
		i := slices.IndexFunc(old.repositories, func(o *repository) bool { return o.name == set.name })
		if i >= 0 {
			for _, su := range old.repositories[i].all() {
				r.suites[su.dir] = su
			}
		}
	}
	return r
}

// Addrs are the addresses that Run listens on; empty unless it serves.
func (s *Server) Addrs() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.addrs)
}

// Bounds on clients.
const (
	clientHeaderTimeout = 10 * time.Second
	clientIdleTimeout   = 2 * time.Minute
	maxClientHeader     = 32 << 10
	stopTimeout         = 2 * time.Second
)

// Run serves until ctx ends, then returns nil. It calls ready when all
// addresses are served; that one can't be, or that the store can't be opened,
// is an error.
func (s *Server) Run(ctx context.Context, ready func()) error {
	set := s.active.Load().settings
	store, err := cas.Open(filepath.Join(s.config.Dir), cas.Options{
		Max: set.max, Reserve: set.reserve, Rank: s.rank, Log: s.log, Now: s.now,
	})
	if err != nil {
		return fmt.Errorf("aptproxy: %w", err)
	}
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	clients := new(run.Gate) // requests of net/http, which waits for none that it broke
	s.store, s.lifetime = store, life
	s.room.Store(store)
	defer func() {
		end(errors.New("the proxy is being stopped"))
		clients.Close() // they begin work, and read the store
		s.work.Wait()
		if err := store.Close(); err != nil {
			s.log.Error("the store can't be closed", "error", err)
		}
	}()
	s.load()
	listeners, err := s.listen(ctx)
	if err != nil {
		return err
	}
	return s.serve(ctx, life, clients, listeners, ready)
}

// listen opens the sockets.
func (s *Server) listen(ctx context.Context) (list []net.Listener, err error) {
	addrs := s.config.Listen
	if len(addrs) == 0 {
		addrs = s.active.Load().settings.listen
	}
	if len(addrs) == 0 {
		addrs = []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Unspecified(), Port)}
	}
	var bound []netip.AddrPort
	for _, addr := range addrs {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr.String())
		if err != nil {
			for _, open := range list {
				_ = open.Close()
			}
			return nil, fmt.Errorf("aptproxy: %w", err)
		}
		list = append(list, l)
		bound = append(bound, l.Addr().(*net.TCPAddr).AddrPort())
	}
	s.mu.Lock()
	s.addrs = bound
	s.mu.Unlock()
	return list, nil
}

func (s *Server) serve(ctx, life context.Context, clients *run.Gate, listeners []net.Listener, ready func()) error {
	server := &http.Server{
		Handler: clients.Handler(s), ReadHeaderTimeout: clientHeaderTimeout, IdleTimeout: clientIdleTimeout, MaxHeaderBytes: maxClientHeader,
		BaseContext: func(net.Listener) context.Context { return life },
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	var group sync.WaitGroup
	failed := make(chan error, len(listeners)+1)
	quick := newQuick(s)
	for _, l := range listeners {
		group.Go(func() {
			if err := quick.serve(l); err != nil {
				failed <- err
			}
		})
	}
	group.Go(func() {
		if err := server.Serve(quick); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			failed <- fmt.Errorf("aptproxy: serve: %w", err)
		}
	})
	keeping, stop := context.WithCancel(ctx)
	group.Go(func() { s.keep(keeping) })
	group.Go(func() { s.followViews(keeping) })
	s.log.Info("serving", "addresses", s.Addrs(), "dir", s.config.Dir)
	ready()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stop()
	quick.halt()
	for _, l := range listeners {
		_ = l.Close()
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if server.Shutdown(grace) != nil {
		_ = server.Close() // clients that are in the middle of something
	}
	group.Wait()
	quick.wait(grace)
	s.mu.Lock()
	s.addrs = nil
	s.mu.Unlock()
	return err
}

// Times of what is done now and then.
const (
	flushEvery = 5 * time.Second
	quotaEvery = time.Minute
	scrubEvery = 24 * time.Hour
	scrubRate  = 20 << 20 // bytes per second
)

// keep writes the index, watches the disk and reads all blobs anew once a day,
// until ctx ends.
func (s *Server) keep(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	scrub := time.NewTicker(scrubEvery)
	defer scrub.Stop()
	quota := time.NewTicker(quotaEvery)
	defer quota.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.store.Flush()
			s.observe()
		case <-quota.C:
			s.quotas()
		case <-scrub.C:
			s.work.Go(func() {
				if report, err := s.store.Verify(ctx, scrubRate); err == nil {
					s.log.Info("all blobs were read anew", "blobs", report.Checked, "bytes", report.Bytes, "bad", len(report.Bad), "took", report.Took)
				}
			})
		}
	}
}
