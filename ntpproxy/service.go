// Package ntpproxy is the cluster's NTP server.
//
// A worker for each socket receives requests in batches, with the kernel's
// time of arrival, and answers each alone. What an answer depends on, the
// clock's standing above all, is behind one atomic pointer.
package ntpproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/internal/state"
	"holdfast/ntpproxy/discipline"
)

// Config is what a Server is told.
type Config struct {
	Node string // this node's name; its own clock is not compared with itself
	// Listen are the addresses served; port 0 takes a free one. Empty: those
	// of the cluster file's `ntp: listen:`, or port 123 of all addresses.
	Listen []netip.AddrPort
	// StateDir is where the drift of the oscillator is remembered, RunDir
	// where it is noted, until the machine restarts, that the clock is ours.
	// Empty: they are not.
	StateDir, RunDir string
}

// Deps is what a Server needs.
type Deps struct {
	File    *cluster.File
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Board   *health.Board               // nil: conditions go nowhere
	Now     func() time.Time            // the clock that is served; nil: time.Now
	Kernel  func() (clock.State, error) // nil: clock.Read
	Clock   Steered                     // the clock that is disciplined; nil: KernelClock
	State   *state.Store                // the catalog, for what forbids steps; nil: nothing does
	Leader  func() string               // of the store, a node's name, "" unknown; nil: none ever
	Chrony  netip.AddrPort              // where a chronyd answers commands; zero: its own default
}

// Server answers NTP clients. Its methods may be called from any goroutine.
type Server struct {
	config  Config
	log     *slog.Logger
	board   *health.Board
	metrics *metrics
	now     func() time.Time
	kernel  func() (clock.State, error)
	clock   Steered
	stepNow chan bool // forced
	state   *state.Store
	kept    atomic.Pointer[Kept]
	seen    atomic.Pointer[[]Peer] // in the last round of comparing; nil: none
	leader  func() string
	chrony  netip.AddrPort
	ask     func(ctx context.Context, server string) (ntp.Answer, error)
	started time.Time
	files   saver
	reads   saver // likewise, of what the loop has read again
	// What a test puts its own in the place of: the resolver, who waits between
	// attempts to steer, and whether the kernel lets us.
	resolve     func(ctx context.Context, network, host string) ([]netip.Addr, error)
	pause       func(ctx context.Context, d time.Duration) bool
	permitted   func() error
	catalogWait time.Duration

	policy   atomic.Pointer[policy]
	settings atomic.Pointer[settings]
	ran      atomic.Pointer[settings] // that Run began with; nil: it does not run
	pairs    pairs
	clients  clients

	leaps    atomic.Pointer[[]discipline.LeapSecond] // that are known without a source
	begun    atomic.Pointer[discipline.LeapSecond]   // whose smear was remembered
	loads    atomic.Uint64                           // of leaps, that have begun
	loaded   sync.Mutex                              // held while one takes effect
	leapsAt  time.Duration                           // by elapsed, when they were looked up; the watcher's
	spreader spreader                                // the watcher's

	mu    sync.Mutex // below, and whoever replaces the policy
	addrs []netip.AddrPort
}

// New makes a server from a cluster file that Parse accepted with
// ValidateSection. It starts nothing. The error is a section that can't be
// served, or metrics that are registered already.
func New(config Config, deps Deps) (*Server, error) {
	s := &Server{
		config: config, log: deps.Log.With("service", "ntp"), board: deps.Board,
		now: deps.Now, clock: deps.Clock, stepNow: make(chan bool, 1), kernel: deps.Kernel, state: deps.State, chrony: deps.Chrony, ask: ntp.Query, started: time.Now(),
		resolve: net.DefaultResolver.LookupNetIP, pause: pause, permitted: func() error { return nil }, catalogWait: catalogWait,
	}
	s.files.log, s.reads.log = s.log, s.log
	if !s.chrony.IsValid() {
		s.chrony = chronyAddr
	}
	if s.clock == nil {
		s.clock, s.permitted = KernelClock{}, clock.Permitted
	}
	if s.leader = deps.Leader; s.leader == nil {
		s.leader = func() string { return "" }
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.kernel == nil {
		s.kernel = clock.Read
	}
	var err error
	if s.metrics, err = newMetrics(deps.Metrics, s.Standing, s.now, s.countClients, s.Kept); err != nil {
		return nil, err
	}
	s.clients.seed = rand.Uint64()
	s.policy.Store(&policy{standing: unsynchronised(s.now()), precision: precision(s.now)})
	if err := s.use(deps.File); err != nil {
		return nil, err
	}
	return s, nil
}

// String is the task's name.
func (s *Server) String() string { return "ntp" }

// elapsed is a time that never goes back, whatever the clock does.
func (s *Server) elapsed() time.Duration { return time.Since(s.started) }

// SetFile makes the server follow another cluster file at once. A file that
// can't be served is logged and the one before stays. Listening addresses
// change at the next Run: see Waiting.
func (s *Server) SetFile(file *cluster.File) {
	if err := s.use(file); err != nil {
		s.log.Error("cluster file not taken over; the one before stays in use", "sum", file.Sum, "error", err)
		return
	}
	if keys := s.Waiting(); len(keys) > 0 {
		s.log.Warn("changed in the cluster file: takes effect when the server is restarted", "keys", keys)
	}
}

// Waiting are the keys of the cluster file that differ from what the server
// runs with, and take effect when it is restarted; empty while it does not run.
func (s *Server) Waiting() []string {
	ran := s.ran.Load()
	if ran == nil || len(s.config.Listen) > 0 || slices.Equal(ran.listen, s.settings.Load().listen) {
		return nil
	}
	return []string{"ntp.listen"}
}

func (s *Server) use(file *cluster.File) error {
	set, err := decode(file, file.Section(Section))
	if err != nil {
		return fmt.Errorf("ntpproxy: section of %s: %w", file.Path, err)
	}
	set.peers = peersOf(file, s.config.Node)
	set.self = referencesOf(file, s.config.Node)
	set.names = namesOf(file)
	for _, peer := range set.peers {
		set.nodes = append(set.nodes, referencesOf(file, peer.node)...)
	}
	old := s.settings.Swap(&set)
	s.loadLeaps(s.now())
	s.replace(func(p *policy) {
		p.access = set.access
		if old == nil || old.limit != set.limit {
			p.limiter = newLimiter(set.limit.Interval, set.limit.Burst, rand.Uint64())
		}
	})
	return nil
}

// replace puts a changed copy of the policy in use.
func (s *Server) replace(change func(*policy)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := *s.policy.Load()
	change(&p)
	s.policy.Store(&p)
}

// Standing is what the server says of its clock now.
func (s *Server) Standing() Standing { return s.policy.Load().standing }

// Addrs are the addresses that Run listens on; empty unless it serves.
func (s *Server) Addrs() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.addrs)
}

func (s *Server) setAddrs(addrs []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addrs = addrs
}

// Run serves until ctx ends, then returns nil. It calls ready when all
// addresses are served; that one can't be is an error.
func (s *Server) Run(ctx context.Context, ready func()) error {
	s.ran.Store(s.settings.Load())
	defer s.ran.Store(nil)
	sockets, err := s.listen(ctx)
	if err != nil {
		return err
	}
	var workers []*worker
	var addrs []netip.AddrPort
	defer func() {
		for _, w := range workers {
			_ = w.batch.Close() // nothing is left to be lost
		}
	}()
	for _, socket := range sockets {
		w, failed := s.newWorker(socket.conn)
		if err = errors.Join(err, failed); failed == nil {
			workers = append(workers, w)
		}
		if !slices.Contains(addrs, socket.addr) {
			addrs = append(addrs, socket.addr)
		}
	}
	if err != nil {
		return fmt.Errorf("ntpproxy: %w", err)
	}
	defer spare()()
	s.observe()
	s.setAddrs(addrs)
	defer s.setAddrs(nil)
	s.log.Info("serving", "addresses", addrs, "stratum", s.Standing().Stratum)
	return s.work(ctx, workers, ready)
}

// work runs the workers until ctx ends or one fails.
func (s *Server) work(ctx context.Context, workers []*worker, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	failed := make(chan error, len(workers)+3)
	run := func(what string, f func() error) {
		group.Go(func() {
			if err := s.guard(what, f); err != nil {
				failed <- err
				cancel()
			}
		})
	}
	for _, w := range workers {
		run("serving", w.serve)
	}
	for what, f := range map[string]func(context.Context){"watching the clock": s.watch, "comparing the nodes": s.compare, "steering the clock": s.steer} {
		run(what, func() error { f(ctx); return nil })
	}
	ready()
	<-ctx.Done()
	for _, w := range workers {
		w.batch.Stop()
	}
	group.Wait()
	if err := s.files.wait(saveGrace); err != nil {
		s.log.Warn("the end does not wait for the disk", "error", err)
	}
	if s.reads.wait(saveGrace) != nil {
		s.log.Warn("the end does not wait for a list of leap seconds, which the disk does not give", "path", s.settings.Load().leap.list)
	}
	close(failed)
	return <-failed
}

// watchEvery is how often the kernel's clock is looked at.
const watchEvery = time.Second

// watch keeps the standing up with the kernel's clock until ctx ends.
func (s *Server) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.observe()
		}
	}
}

// leapsEvery is how often the list of leap seconds is read again.
const leapsEvery = time.Hour

// conditionUnsynchronised: nobody sets the clock that is served.
const conditionUnsynchronised = "ntp.unsynchronised"

// observe takes the kernel's word on how the clock stands, and chronyd's if
// there is one.
func (s *Server) observe() {
	now := s.now()
	k, err := s.kernel()
	if elapsed := s.elapsed(); elapsed-s.leapsAt >= leapsEvery {
		s.reads.save("leap seconds", func() error {
			return s.guard("reading what is known of leap seconds", func() error { s.loadLeaps(now); return nil })
		})
		s.leapsAt = elapsed
	}
	standing, smear := unsynchronised(now), (*smearing)(nil)
	if kept := s.Kept(); kept != nil {
		standing = kept.standing(now)
		s.board.Clear(conditionLeapDaemon) // there is none
	} else if err != nil {
		s.log.Error("the kernel does not tell how its clock stands: not synchronised is what clients are told", "error", err)
	} else {
		standing = fromKernel(k, s.settings.Load().stratum, now)
		if t, err := askChrony(s.chrony, rand.Uint32()); err == nil { // else another daemon keeps the clock, or none
			standing = standing.with(t)
		}
		standing, smear = s.spread(standing, k, now)
	}
	was := s.Standing()
	s.replace(func(p *policy) { p.standing, p.smear = standing, smear })
	if was.Leap != standing.Leap || was.Stratum != standing.Stratum {
		s.log.Info("the clock's standing changed", "leap", standing.Leap.String(), "stratum", standing.Stratum, "root_dispersion", standing.RootDispersion)
	}
	if header := standing.header(now); header.Stratum == 0 { // as clients see it, who may have lost it by its dispersion alone
		s.board.Raise(conditionUnsynchronised, health.Warning,
			"the clock of this node is not synchronised, and clients are told so: start the daemon that keeps it (chronyd ...), or see that it, or this node, reaches its sources")
		return
	}
	s.board.Clear(conditionUnsynchronised)
}

// precision is how exactly the clock can be read, in log2 seconds (RFC 5905
// §7.3): the least that two readings in a row differ.
func precision(now func() time.Time) int8 {
	least := time.Second
	for range 100 {
		first := now()
		for range 100 {
			if step := now().Sub(first); step > 0 {
				least = min(least, step)
				break
			}
		}
	}
	return int8(math.Round(math.Log2(least.Seconds())))
}
