// Package logrelay takes the lines of a cluster's nodes, acknowledges them
// once they are on the disk, and puts them into per-host files and onward.
//
// Inputs append to a journal; outputs read it, each with a cursor of its own.
// Neither waits for the other but through the disk's size.
package logrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// Config is what a Server is told.
type Config struct {
	Node    string // this node's name
	DataDir string // the journal is in its folder "logs"
	// Listen replaces the addresses of an input ("relp", "relp-tls", "udp",
	// "tcp", "tls") in the cluster file; port 0 takes a free one.
	Listen map[string][]netip.AddrPort
	// Dir replaces the cluster file's folder of the per-host files.
	Dir string
}

// Deps is what a Server needs.
type Deps struct {
	File    *cluster.File
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Board   *health.Board // nil: conditions go nowhere
	// ServerTLS is for relp-tls and tls inputs, ClientTLS for tls targets; nil:
	// there are none.
	ServerTLS, ClientTLS *tls.Config
	// For replicas: ReplicaTLS takes servers of our cluster alone, PeerTLS
	// dials the one of that name, Others lists those that are alive and run
	// logs. nil: there can be none.
	ReplicaTLS *tls.Config
	PeerTLS    func(name string) *tls.Config
	Others     func() []Other
	// Peers lists all nodes that run logs, for those who ask all of them.
	Peers func() []Peer
}

// Server relays logs. Its methods may be called from any goroutine.
type Server struct {
	config          Config
	deps            Deps
	settings        settings
	table           atomic.Pointer[table] // who the nodes are
	log             *slog.Logger
	board           *health.Board
	metrics         *metrics
	tls             [2]*tls.Config // server, client
	gate            *gate
	kept            atomic.Int64 // bytes of stream inputs that wait for the disk
	visits          visits
	space           func(dir string) (float64, error)
	short           atomic.Bool                     // so little is free that backlogs are let go
	quiet           time.Duration                   // see quietFor and hearOutMost
	wrap            func(journal.File) journal.File // a disk of tests; nil: the file itself
	tap             func(net.Conn) net.Conn         // stands before a sender's connection in tests; nil: nothing does
	patience        time.Duration
	endWithin       time.Duration // see streamsEnd
	catchUp         time.Duration // of tests; 0: catchUpMost
	connections     int           // see maxConnections
	openWithin      time.Duration // see the constant
	returnAfter     time.Duration // see firstReturn
	dialer          dialer
	journalArgs     []string // of journalctl, in tests
	replicaPatience time.Duration
	replicaPort     uint16

	current atomic.Pointer[journal.Journal]
	journal *journal.Journal // of this Run
	// ending is over endWithin after the end of this Run's inputs: what they have
	// brought and is not on the disk by then is waited for no more. reading is over after
	// half of that: streams are read no more, so that what was read last is stored.
	reading, ending context.Context
	lastLosses      lastLosses
	recent          *recent // likewise
	held            *heldReplicas
	arrivals        *arrivals
	replicas        *replicas // nil: lines are acknowledged without
	owed            sync.Pool // of *owed that were answered
	doubled         atomic.Uint64
	refusals        refusals // of other nodes
	bugs            *bugs
	blind           atomic.Bool // what the sockets of UDP lose can't be seen, and the log says so

	mu      sync.Mutex
	addrs   map[string][]netip.AddrPort
	outputs map[string]*outputState
	lost    map[string]*lostLines // by targets' names

	silence  *silence
	gaps     *gaps
	flushing asked // of the files
	ages     ages
	sessions sessions
	// interfaces are this machine's addresses, with their prefixes.
	interfaces func() ([]net.Addr, error)
}

// New makes a server from a cluster file that Parse accepted with
// ValidateSection. It starts nothing.
func New(config Config, deps Deps) (*Server, error) {
	set, err := decode(deps.File.Section(Section))
	if err != nil {
		return nil, fmt.Errorf("logrelay: section of %s: %w", deps.File.Path, err)
	}
	for via := viaRELP; via <= viaReplica; via++ {
		if list, ok := config.Listen[inputName(via)]; ok {
			set.listen[via] = list
		}
	}
	if config.Dir != "" {
		set.dir = config.Dir
	}
	s := &Server{
		config: config, deps: deps, settings: set, log: deps.Log.With("service", "logs"), board: deps.Board,
		tls: [2]*tls.Config{deps.ServerTLS, deps.ClientTLS}, gate: newGate(), space: freePercent, quiet: quietFor, patience: hearOutMost, endWithin: streamsEnd, reading: context.Background(), ending: context.Background(),
		connections: maxConnections, openWithin: openWithin, returnAfter: firstReturn, dialer: (&net.Dialer{}).DialContext,
		replicaPatience: replicaPatience, replicaPort: replicaPort,
		addrs: map[string][]netip.AddrPort{}, outputs: map[string]*outputState{},
		silence: newSilence(), gaps: newGaps(), arrivals: newArrivals(),
		interfaces: net.InterfaceAddrs,
	}
	s.refusals.board, s.refusals.log = s.board, s.log
	s.SetFile(deps.File)
	if s.tls[0] == nil && len(set.listen[viaTLS])+len(set.listen[viaRELPTLS]) > 0 {
		return nil, errors.New("logrelay: logs.tls and logs.relp_tls need this node's certificate, and --insecure forbids one")
	}
	if set.replicas > 1 && (deps.ReplicaTLS == nil || deps.PeerTLS == nil || deps.Others == nil) {
		return nil, errors.New("logrelay: logs.replicas needs this node's certificate and the other nodes, and --insecure forbids them")
	}
	s.metrics, err = newMetrics(deps.Metrics, func() float64 {
		if j := s.current.Load(); j != nil {
			return float64(j.Bytes())
		}
		return 0
	})
	if err != nil {
		return nil, err
	}
	s.bugs = &bugs{log: s.log, board: s.board, inputs: s.metrics.panics}
	return s, deps.Metrics.Register(outlook{s})
}

// String is the task's name.
func (s *Server) String() string { return "logs" }

func (s *Server) dir() string { return filepath.Join(s.config.DataDir, "logs") }

// Addrs are the addresses of an input that Run listens on.
func (s *Server) Addrs(input string) []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addrs[input]
}

// Conditions of the service.
const (
	conditionDamaged = "logs.damaged"
	conditionFull    = "logs.disk-full"
	conditionStuck   = "logs.disk-stuck"
	conditionJournal = "logs.journal"
	conditionOutput  = "logs.output." // and the output's name
)

// Run serves until ctx ends, then returns nil. It calls ready when all
// addresses are served. It ends in order: inputs, journal, outputs.
func (s *Server) Run(ctx context.Context, ready func()) error {
	j, err := journal.OpenContext(ctx, journal.Config{Dir: s.dir(), Keep: s.settings.replay, Committed: s.committed, Wrap: s.wrap})
	if err != nil && errors.Is(err, ctx.Err()) {
		return nil // told to end while the disk refused to read
	}
	if err != nil {
		return fmt.Errorf("logrelay: %w", err)
	}
	s.journal = j
	s.current.Store(j)
	s.recent = newRecent()
	s.recent.pairs = s.settings.replicas > 1
	s.arrivals.reset(time.Now())
	if s.held, err = openReplicas(s.dir(), j, s.recent); err != nil {
		return err
	}
	s.tellDamage(j)
	outputs, err := s.newOutputs(j)
	if err != nil {
		return err
	}
	listeners, err := s.listen(ctx)
	if err != nil {
		return err
	}
	background := context.WithoutCancel(ctx)
	writer := begin(background, func(ctx context.Context) { _ = j.Run(ctx) })
	s.look() // before outputs look at what is free
	readers := begin(background, func(ctx context.Context) { s.runOutputs(ctx, outputs) })
	watch := begin(background, s.watch)
	keep := begin(background, s.keepHeld)
	own := func() {}
	if s.settings.journald {
		own = begin(background, s.followJournald)
	}
	hear := begin(background, func(ctx context.Context) { s.silence.listen(ctx, s.board, s.metrics.silent) })
	s.log.Info("serving", "journal", s.dir(), "files", s.settings.dir, "next", j.End())
	err = s.accept(ctx, listeners, ready)
	own()
	watch()
	keep()
	hear()
	writer()
	readers()
	s.setAddrs(nil)
	return err
}

// begin runs f beside; end ends it and waits for it.
func begin(ctx context.Context, f func(context.Context)) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// committed hears of each write of the journal.
func (s *Server) committed(lines, bytes int, took time.Duration, err error) {
	s.metrics.committed(lines, bytes, took, err)
	if err != nil {
		s.board.Raise(conditionJournal, health.Error, fmt.Sprintf(
			"lines can't be stored, and are not acknowledged: %v; make room below %s, or replace the disk", err, s.dir()))
		return
	}
	s.board.Clear(conditionJournal)
}

// watchEvery is how often the disk is looked at.
const watchEvery = time.Second

// watch looks at the disk, and at what time changes, until ctx ends. A disk that
// stands still may keep each look at it for ever, and is then told of by what looks
// at none.
func (s *Server) watch(ctx context.Context) {
	defer begin(ctx, func(ctx context.Context) {
		everySoOften(ctx, func() {
			s.tellStuck(time.Now())
			s.refusals.expire(time.Now())
			s.bugs.expire(time.Now())
		})
	})()
	s.beginAges()
	everySoOften(ctx, func() {
		s.look()
		s.tellDamage(s.journal)
		s.noteAges()
		s.noteAddresses()
	})
}

// everySoOften calls f at once and then every watchEvery, until ctx ends.
func everySoOften(ctx context.Context, f func()) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look sets the gate, and what is kept for targets, by what is free on the
// journal's disk.
func (s *Server) look() {
	free, err := s.space(s.dir())
	if err != nil {
		s.log.Error("how full the disk is can't be seen", "dir", s.dir(), "error", err)
		return
	}
	if j := s.current.Load(); j != nil {
		s.bound(j, free)
	}
	switch full, shedding := s.gate.disk(100 - free); {
	case shedding:
		s.board.Raise(conditionFull, health.Error, fmt.Sprintf(
			"%.1f %% of the disk of %s is used: RELP and TCP wait in their senders, and UDP debug lines are dropped; make room", 100-free, s.dir()))
	case full:
		s.board.Raise(conditionFull, health.Error, fmt.Sprintf(
			"%.1f %% of the disk of %s is used: RELP and TCP wait in their senders; make room", 100-free, s.dir()))
	default:
		s.board.Clear(conditionFull)
	}
}

// listener is a socket of an input.
type listener struct {
	via uint8
	// One of these.
	tcp  net.Listener
	udp  *net.UDPConn
	unix *net.UnixConn
}

func (l listener) close() {
	switch {
	case l.tcp != nil:
		_ = l.tcp.Close()
	case l.unix != nil:
		_ = l.unix.Close()
		_ = os.Remove(l.unix.LocalAddr().String())
	default:
		_ = l.udp.Close()
	}
}

func (s *Server) setAddrs(addrs map[string][]netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addrs = addrs
}

func itoa(i int) string { return strconv.Itoa(i) }
