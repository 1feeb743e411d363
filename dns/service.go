// Package dns is the cluster's DNS server: the virtual zone whose names follow
// the catalog and the gossip, the cluster's own and the reverse zones from the
// cluster file, and the way to forwarders for everything else.
//
// What is answered is compiled beforehand into an immutable table; a query
// reads one pointer. No leader, no quorum and no other process is asked.
package dns

import (
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

// Config is what a Server is told.
type Config struct {
	Node string // this node's name, for those who ask which server answered
	// Listen are the addresses served, each over UDP and TCP; port 0 takes a
	// free one. They need not be on the machine (yet). Empty: those of the
	// cluster file's `dns: listen:`, or port 53 of all addresses.
	Listen []netip.AddrPort
}

// Deps is what a Server needs.
type Deps struct {
	State   state.Reader
	File    *cluster.File
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Board   *health.Board // nil: conditions go nowhere
	// Proposer writes records; nil: they can't be changed here.
	Proposer state.Proposer
	// Leads tells whether this node leads the store, and so sees to what
	// one node must: serials and notifications. nil: never.
	Leads func() bool
	// Explain tells in lines why a service's name gives what it gives; none:
	// there is no such service. nil: nobody here can.
	Explain func(service string) []string
	Now     func() time.Time   // nil: time.Now
	Rand    func() rand.Source // a new source for each worker; nil: seeded by the system
}

// Server answers DNS queries. Its methods may be called from any goroutine.
type Server struct {
	config    Config
	state     state.Reader
	log       *slog.Logger
	metrics   *metrics
	now       func() time.Time
	rand      func() rand.Source
	proposer  state.Proposer
	leads     func() bool
	tells     func(service string) []string
	telling   *rate.Limiter
	forwarder *forwarder
	cookies   *cookieJar
	stale     atomic.Pointer[extended] // nil while a leader confirms the state
	caching   atomic.Pointer[cache]
	flights   atomic.Pointer[flights] // of the Run under way; nil before the first
	transfers chan struct{}           // those under way
	notices   map[noticeKey]*notice   // of lead
	probe     loopProbe
	reprobe   chan struct{} // the forwarders changed
	rest      time.Duration // before forwarders are probed: probeAfter, but in tests that count their questions
	watches   watches
	queryLog  *watch
	logEvery  atomic.Uint32 // one of so many queries is logged; 0: none

	table atomic.Pointer[table]
	// A leader confirmed the state that tables from this version on are made
	// from, since the start; unconfirmed before.
	confirmed atomic.Uint64

	mu       sync.Mutex // below: whoever compiles
	compiler *compiler
	version  uint64 // of the state that the table was made from
	broken   bool   // compiling it panicked: what the compiler knows is not sure
	addrs    []netip.AddrPort
}

// New makes a server from a cluster file that Parse accepted with
// ValidateSection. It starts nothing. The error is a section or a name that
// can't be served, or metrics that are registered already.
func New(config Config, deps Deps) (*Server, error) {
	s := &Server{config: config, state: deps.State, log: deps.Log.With("service", "dns"), now: deps.Now, rand: deps.Rand,
		proposer: deps.Proposer, leads: deps.Leads, tells: deps.Explain, telling: rate.NewLimiter(toldPerSec, toldPerSec)}
	if s.now == nil {
		s.now = time.Now
	}
	if s.rand == nil {
		s.rand = systemRand
	}
	var err error
	if s.metrics, err = newMetrics(deps.Metrics, s.stateAge, func() (int, int) { return s.cache().usage() }); err != nil {
		return nil, err
	}
	s.forwarder = newForwarder(s.log, s.metrics, deps.Board, s.now, s.uses)
	s.cookies, s.probe, s.reprobe, s.rest = newCookieJar(), newLoopProbe(), make(chan struct{}, 1), probeAfter
	s.transfers, s.notices = make(chan struct{}, maxTransfers), map[noticeKey]*notice{}
	s.confirmed.Store(unconfirmed)
	s.queryLog = &watch{seen: make(chan observation, watchRoom)}
	if err := s.use(deps.File); err != nil {
		return nil, err
	}
	return s, nil
}

func systemRand() rand.Source {
	var seed [32]byte
	_, _ = cryptorand.Read(seed[:]) // never fails (crypto/rand)
	return rand.NewChaCha8(seed)
}

// String is the task's name.
func (s *Server) String() string { return "dns" }

// SetFile makes the server answer from another cluster file: at once, whole,
// and without losing a query. A file that can't be served is logged and the
// one before stays. Listening addresses change at the next Run.
func (s *Server) SetFile(file *cluster.File) {
	if err := s.use(file); err != nil {
		s.log.Error("cluster file not taken over; the one before stays in use", "sum", file.Sum, "error", err)
	}
}

func (s *Server) use(file *cluster.File) error {
	set, err := decode(file, file.Section(Section))
	if err != nil {
		return fmt.Errorf("dns: section of %s: %w", file.Path, err)
	}
	if err := set.transfer.loadKeys(); err != nil {
		return err
	}
	c, err := newCompiler(file, set, s.config.Node)
	if err != nil {
		return err
	}
	c.now = s.now
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.compiler != nil && len(s.config.Listen) == 0 && !slices.Equal(s.compiler.listen, set.listen) {
		s.log.Warn("dns.listen changed in the cluster file: it takes effect when the server is restarted")
	}
	if s.compiler != nil {
		c.good, c.beginning = s.compiler.good, s.compiler.beginning
	}
	if s.compiler == nil || s.compiler.cache != set.cache || !maps.EqualFunc(s.compiler.forward, set.forward, slices.Equal) {
		s.caching.Store(newCache(set.cache)) // others may say otherwise
	}
	s.compiler = c
	s.logEvery.Store(uint32(set.queryLog))
	s.rebuild(s.state.Snapshot())
	if s.table.Load() == nil {
		return errors.New("dns: the answers could not be compiled: see the log")
	}
	s.forwarder.forget()
	select {
	case s.reprobe <- struct{}{}:
	default:
	}
	return nil
}

func (s *Server) cache() *cache { return s.caching.Load() }

// uses tells whether questions go to a route, and not only did.
func (s *Server) uses(r *route) bool { return s.table.Load().cuts[r.domain].route == r }

// rebuild compiles everything; s.mu is held.
func (s *Server) rebuild(snap *state.Snapshot) {
	s.publish("full", snap, s.compiler.rebuild)
}

// refresh compiles what changed since the table in use.
func (s *Server) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := s.state.Snapshot()
	if snap.Version() == s.version {
		return
	}
	// Taken after the snapshot: keys of later changes may be among them,
	// and will be again the next time.
	changed, ok := s.state.Since(s.version)
	if !ok || s.broken {
		s.rebuild(snap)
		return
	}
	relevant := slices.ContainsFunc(changed, func(k state.Key) bool {
		return k.Table == state.TableService || k.Table == state.TableNode || k.Table == state.TableMember || isZoneKey(k)
	})
	if !relevant {
		t := *s.table.Load()
		t.version = snap.Version()
		s.table.Store(&t)
		s.version = t.version
		return
	}
	s.publish("changed", snap, func(snap *state.Snapshot) *table { return s.compiler.update(snap, changed) })
}

// publish puts a new table in use. A panic is a bug that costs this change
// only: the state is the same on all nodes, and none would answer any more.
func (s *Server) publish(kind string, snap *state.Snapshot, compile func(*state.Snapshot) *table) {
	defer func() {
		if bug := recover(); bug != nil {
			s.broken = true
			s.metrics.panics.Inc()
			s.log.Error("compiling the answers panicked: the ones before stay in use; please report this bug",
				"panic", bug, "index", snap.Index(), "stack", string(debug.Stack()))
		}
	}()
	started := time.Now()
	s.version, s.broken = snap.Version(), false
	s.table.Store(compile(snap))
	s.metrics.compiles.WithLabelValues(kind).Inc()
	s.metrics.compileDuration.Observe(time.Since(started).Seconds())
	s.metrics.names.Set(float64(s.compiler.names.size()))
}

// compilePause is the least time between two tables: a change after a quiet
// moment is answered at once, those of a storm are compiled together.
const compilePause = 5 * time.Millisecond

// follow keeps the table up with the state until ctx ends.
func (s *Server) follow(ctx context.Context) error {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var last time.Time
	for {
		if !pause(ctx, compilePause-time.Since(last)) {
			return nil
		}
		changed := s.state.Changed()
		s.refresh()
		last = time.Now()
		s.judgeAge()
		s.cache().sweep(s.now())
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-second.C:
		}
	}
}

// staleAfter is how long no leader may have confirmed the state before answers
// from it say so.
const staleAfter = 10 * time.Second

// judgeAge notes for how long no leader has confirmed what is answered.
func (s *Server) judgeAge() {
	age, ok := s.state.Snapshot().Age(s.now())
	switch {
	case !ok:
		s.stale.Store(reasonUnconfirmed)
	case age > staleAfter:
		s.stale.Store(newExtended(dns.ExtendedErrorCodeStaleAnswer, fmt.Sprintf("no leader has confirmed this for %v", age.Truncate(time.Second))))
	default:
		s.stale.Store(nil)
	}
}

// unconfirmed is above every version of the state.
const unconfirmed = math.MaxUint64

// isConfirmed tells whether a leader has confirmed, since the process started,
// the replica that a table was made from, or an earlier one: only then is a
// name that it lacks known not to exist. A replica is confirmed before the
// table of its last change is made: hence the versions.
func (s *Server) isConfirmed(t *table) bool {
	if t.version >= s.confirmed.Load() {
		return true
	}
	snap := s.state.Snapshot()
	if _, ok := snap.Age(s.now()); !ok {
		return false
	}
	s.confirmed.CompareAndSwap(unconfirmed, snap.Version())
	return t.version >= s.confirmed.Load()
}

func (s *Server) stateAge() float64 {
	age, ok := s.state.Snapshot().Age(s.now())
	if !ok {
		return math.NaN()
	}
	return age.Seconds()
}

// Addrs are the addresses that Run listens on; empty unless it serves.
func (s *Server) Addrs() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.addrs)
}

// Run serves until ctx ends, then returns nil. It calls ready when all
// addresses are served; that one can't be is an error.
func (s *Server) Run(ctx context.Context, ready func()) error {
	sockets, err := s.listen(ctx)
	if err != nil {
		return err
	}
	defer sockets.close()
	s.refresh()
	s.setAddrs(sockets.addrs)
	defer s.setAddrs(nil)
	s.log.Info("serving", "addresses", sockets.addrs)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, sockets.close)
	var group sync.WaitGroup
	var first sync.Once
	var failed error
	start := func(serve func(context.Context) error) {
		group.Go(func() {
			if err := serve(ctx); err != nil {
				first.Do(func() { failed = err })
				cancel()
			}
		})
	}
	forwarding := newFlights(ctx, &group, s)
	s.flights.Store(forwarding)
	start(s.follow)
	start(forwarding.awaitEnd)
	start(forwarding.probe)
	start(s.lead)
	start(s.logQueries)
	for _, conn := range sockets.udp {
		start(func(ctx context.Context) error { return s.serveUDP(ctx, conn, forwarding) })
	}
	for _, listener := range sockets.tcp {
		start(func(ctx context.Context) error { return s.serveTCP(ctx, listener, forwarding, &group) })
	}
	ready()
	group.Wait()
	return failed
}

func (s *Server) setAddrs(addrs []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addrs = addrs
}
