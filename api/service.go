// Package api speaks Consul's HTTP API over Holdfast's state: the paths, the
// JSON, the headers and the error texts that Consul's clients know, and a few
// paths of our own below /v1/holdfast/.
//
// A request is translated, nothing more: reads come from this node's replica
// (with the gossip of this moment laid over them), writes are proposed, and
// what concerns this node alone is asked of its agent.
package api

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/check"
	"holdfast/internal/health"
	"holdfast/internal/run"
	"holdfast/internal/state"
)

// The errors of what follows say what was being done to what. Those that wrap
// state.ErrInvalid, ErrNotFound, ErrConflict and ErrNoLeader get the HTTP status
// that belongs to them; others get 500.

// ServiceAgent keeps the services of this node.
type ServiceAgent interface {
	RegisterService(svc state.Service, checks []check.Definition) error
	DeregisterService(id string) error
	LocalServices() []state.Service
}

// CheckAgent keeps the checks of this node.
type CheckAgent interface {
	RegisterCheck(check.Definition) error
	DeregisterCheck(id string) error
	LocalChecks() []state.Check
}

// TTLAgent takes the reports of checks that a program makes itself.
type TTLAgent interface {
	UpdateTTL(id string, s state.Status, output string) error
}

// MemberAgent changes who is in the gossip.
type MemberAgent interface {
	Join(ctx context.Context, addresses []string) (int, error)
	Leave(ctx context.Context) error
	ForceLeave(ctx context.Context, node string) error
}

// EventAgent passes on what people tell the gossip.
type EventAgent interface {
	FireEvent(ctx context.Context, event state.UserEvent) (state.UserEvent, error)
	// Events are the latest that concern this node, and a channel that is
	// closed at the next.
	Events() (latest []state.UserEvent, changed <-chan struct{})
}

// KeyAgent changes the keys of the gossip on all living members. With an error
// that is not state.ErrInvalid some may have done it: the status tells.
type KeyAgent interface {
	ListKeys(ctx context.Context) (state.KeyringStatus, error)
	InstallKey(ctx context.Context, key string) (state.KeyringStatus, error)
	UseKey(ctx context.Context, key string) (state.KeyringStatus, error)
	RemoveKey(ctx context.Context, key string) (state.KeyringStatus, error)
}

// Agent is what this node knows and does for itself.
type Agent interface {
	ServiceAgent
	CheckAgent
	TTLAgent
	MemberAgent
	EventAgent
	KeyAgent
}

// LogSource tells what this agent logs from now on: each line once, as text or
// JSON, until stop is called. Lines that the reader is too slow for are lost.
type LogSource interface {
	Follow(level slog.Level, json bool) (lines <-chan []byte, stop func())
	// Recent are the last lines that it logged, the oldest first.
	Recent() [][]byte
}

// Autopilot is how the leader looks after Raft's servers.
type Autopilot interface {
	AutopilotConfig() AutopilotConfig
	// SetAutopilotConfig replaces it, if cas is not nil only while its
	// ModifyIndex is *cas; state.ErrConflict otherwise.
	SetAutopilotConfig(ctx context.Context, config AutopilotConfig, cas *uint64) error
}

// Leadership answers for the freshness of reads.
type Leadership interface {
	// Leader is the current leader; not ok when none is known.
	Leader() (name string, address netip.AddrPort, ok bool)
	// ReadBarrier returns when everything that was committed before the
	// call is in this node's replica.
	ReadBarrier(ctx context.Context) error
}

// RaftAdmin looks at Raft's servers and changes them.
type RaftAdmin interface {
	Status() state.RaftStatus
	RemovePeer(ctx context.Context, idOrName string) error
	TransferLeadership(ctx context.Context, to string) error // "": any follower
}

// SnapshotStore saves the whole state and replaces it.
type SnapshotStore interface {
	SaveSnapshot(ctx context.Context, w io.Writer) error
	RestoreSnapshot(ctx context.Context, r io.Reader) error
}

// RaftOperator does what else an admin asks of the store, by name: see
// raftstore.Store.Operation. The answer is what JSON is made of.
type RaftOperator interface {
	Operation(ctx context.Context, name string, args url.Values, write bool) (any, error)
}

// Raft is the store as seen from this node.
type Raft interface {
	Leadership
	RaftAdmin
	RaftOperator
	SnapshotStore
}

// ConfigSource is the cluster file as this node runs it.
type ConfigSource interface {
	ConfigStatus() ConfigStatus
	// ReloadConfig reads the file again and applies what can be. A file that
	// does not parse is a cluster.Errors and changes nothing.
	ReloadConfig(ctx context.Context) (ReloadReport, error)
}

// ConfigStatus tells which cluster file this node runs.
type ConfigStatus struct {
	Path     string    `json:"path"`
	Sum      string    `json:"sum"` // hex SHA-256
	Loaded   time.Time `json:"loaded"`
	LastGood bool      `json:"last_good"`          // the file at Path does not parse: this is the copy of the last that did
	Problems []string  `json:"problems,omitempty"` // why, one mistake each
}

// ReloadReport tells what a reload did.
type ReloadReport struct {
	Changed bool     `json:"changed"`
	Sum     string   `json:"sum"`
	Details []string `json:"details,omitempty"` // what differs, a line each
	Applied []string `json:"applied,omitempty"` // parts of the file that took effect
	Restart []string `json:"restart,omitempty"` // parts that take effect at the next start
}

// Deps are what a Server works with. TLS and Admin are needed for HTTPS only;
// Now is time.Now when nil; Conditions may be nil.
type Deps struct {
	State      state.Reader
	Outcomes   Outcomes
	Proposer   state.Proposer
	Agent      Agent
	Raft       Raft
	Config     ConfigSource
	Conditions func() []health.Condition
	Gatherer   prometheus.Gatherer // what /v1/agent/metrics shows
	Metrics    prometheus.Registerer
	Log        *slog.Logger
	Now        func() time.Time
	TLS        *tls.Config              // a certificate from the client must be optional in it, and verified
	Admin      func(*http.Request) bool // whether the request's verified certificate is an admin's
	// Member tells whether the request's verified certificate is that of a
	// node that may hold the virtual address of this name, and so may ask for
	// two things only: POST /v1/holdfast/vip/hold/NAME and .../leave/NAME. nil:
	// none is let in.
	Member func(r *http.Request, vip string) bool
	// Peer tells whether it is a server's, which may ask for log lines. nil:
	// none may.
	Peer func(*http.Request) bool
	// Autopilot may be nil: then its settings are shown and can't be changed.
	Autopilot Autopilot
	Logs      LogSource    // nil: the log can't be followed
	Joiner    Joiner       // nil: bare nodes are not let in here
	VIPs      http.Handler // the admin tree of the virtual addresses; nil: this agent moves none
	Relay     http.Handler // the tree of the log relay; nil: this agent has none
}

// Server answers the API. It is a run.Task.
type Server struct {
	config     Config
	state      state.Reader
	outcomes   Outcomes
	random     func([]byte) (int, error)
	proposer   state.Proposer
	agent      Agent
	raft       Raft
	file       ConfigSource
	conditions func() []health.Condition
	gatherer   prometheus.Gatherer
	log        *slog.Logger
	now        func() time.Time
	tls        *tls.Config
	admin      func(*http.Request) bool
	member     func(r *http.Request, vip string) bool
	peer       func(*http.Request) bool
	vips       http.Handler
	relay      http.Handler
	joiner     Joiner
	autopilot  Autopilot
	logs       LogSource
	registerer prometheus.Registerer

	metrics *metrics
	routes  *routeTable
	slots   chan struct{} // one for each blocking query

	monitors chan struct{} // one for each who follows the log
	watch    *watcher
	tokens   authorizers

	mu    sync.Mutex
	bound []net.Addr
}

// New makes a server that Run starts. It refuses a configuration that would
// let strangers in: a plain listener on an address that is not loopback, or
// HTTPS without a way to tell admins.
func New(config Config, deps Deps) (*Server, error) {
	config = config.withDefaults()
	if err := config.check(deps); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	m, err := newMetrics(deps.Metrics)
	if err != nil {
		return nil, fmt.Errorf("api: metrics: %w", err)
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Conditions == nil {
		deps.Conditions = func() []health.Condition { return nil }
	}
	return &Server{
		config:     config,
		state:      deps.State,
		outcomes:   deps.Outcomes,
		random:     rand.Read,
		proposer:   deps.Proposer,
		agent:      deps.Agent,
		raft:       deps.Raft,
		file:       deps.Config,
		conditions: deps.Conditions,
		gatherer:   deps.Gatherer,
		log:        deps.Log.With("service", "api"),
		now:        deps.Now,
		tls:        deps.TLS,
		admin:      deps.Admin,
		member:     deps.Member,
		peer:       deps.Peer,
		vips:       deps.VIPs,
		relay:      deps.Relay,
		joiner:     deps.Joiner,
		autopilot:  deps.Autopilot,
		logs:       deps.Logs,
		registerer: deps.Metrics,
		metrics:    m,
		routes:     newRouteTable(routes()),
		slots:      make(chan struct{}, config.MaxBlocking),
		monitors:   make(chan struct{}, maxMonitors),
		watch:      newWatcher(deps.State, deps.Now),
	}, nil
}

// String names the task.
func (s *Server) String() string { return "api" }

// Run answers on all addresses until ctx ends; the admin socket is a task of its
// own. Blocking queries are answered with what is known then; other requests have
// two seconds to end. An address that can't be had is an error.
func (s *Server) Run(ctx context.Context, ready func()) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	listeners, err := s.listen()
	if err != nil {
		return err
	}
	defer s.watch.follow()()
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { ended <- s.serve(ctx, l) }()
	}
	s.log.Info("answering", "listen", s.config.Listen, "https", s.config.HTTPS)
	ready()
	if len(listeners) == 0 {
		<-ctx.Done()
	}
	var failed error
	for range listeners {
		if err := <-ended; err != nil {
			failed = errors.Join(failed, err)
		}
		stop() // one listener less is no service: the rest ends too, and the task is run again
	}
	return failed
}

// listener is a bound address with the kind of trust it gives.
type listener struct {
	net.Listener
	from origin
}

func (s *Server) listen() ([]listener, error) {
	var bound []listener
	var had []netip.AddrPort
	bind := func(addresses []netip.AddrPort, from origin) error {
		for _, address := range addresses {
			l, err := net.Listen("tcp", address.String())
			if err != nil {
				return fmt.Errorf("api: listen on %s: %w%s", address, err, advice(err, address, had))
			}
			bound, had = append(bound, listener{l, from}), append(had, address)
		}
		return nil
	}
	err := bind(s.config.Listen, fromLoopback)
	if err == nil {
		err = bind(s.config.HTTPS, fromTLS)
	}
	if err != nil {
		closeAll(bound)
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bound = nil
	for _, l := range bound {
		s.bound = append(s.bound, l.Addr())
	}
	return bound, nil
}

// Addresses are those the server listens on since Run called ready: first
// plain, then HTTPS. They tell which port was had where the configuration says 0.
func (s *Server) Addresses() []net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bound)
}

func closeAll(listeners []listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// advice is what to do about an error of a socket, when this server has had those
// addresses.
func advice(err error, address netip.AddrPort, had []netip.AddrPort) string {
	port := address.Port()
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		for _, own := range had {
			if own.Port() == port && (takes(own.Addr(), address.Addr()) || takes(address.Addr(), own.Addr())) {
				return fmt.Sprintf("; the API itself listens on %s, which is the same port of the same address: the section api of the cluster file needs two ports", own)
			}
		}
		return fmt.Sprintf("; another program has port %d, or another section of the cluster file has it too (on 0.0.0.0 it is taken for each address); `ss -ltnp sport = :%d` names who: stop it (a Consul agent?), or list other addresses in the section api of the cluster file", port, port)
	case errors.Is(err, syscall.EACCES):
		return "; ports below 1024 need CAP_NET_BIND_SERVICE"
	}
	return ""
}

// takes tells whether a socket on one address keeps another one from a second.
func takes(one, second netip.Addr) bool {
	one, second = one.Unmap(), second.Unmap()
	return one == second || one.IsUnspecified() && (one.Is6() || second.Is4())
}

// serve answers on one listener until ctx ends.
func (s *Server) serve(ctx context.Context, l listener) error {
	// Requests outlive ctx for as long as stopTimeout lets them.
	requests, abandon := context.WithCancel(context.WithoutCancel(ctx))
	var server *http.Server
	waiting := newLot(l.Addr(), func(back net.Listener) { _ = server.Serve(back) }) // it ends with the other
	underWay := new(run.Gate)
	defer underWay.Close()
	defer abandon() // first: handlers end with their context
	conns := &connections{server: s}
	server = &http.Server{
		ConnContext:       conns.context,
		ConnState:         conns.state,
		Handler:           underWay.Handler(s.parking(l.from, ctx.Done(), waiting)),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ErrorLog:          log.New(&errorLog{server: s}, "", 0),
	}
	served := make(chan error, 1)
	go func() {
		if l.from == fromTLS {
			server.TLSConfig = s.tls.Clone()
			served <- server.ServeTLS(l, "", "")
			return
		}
		served <- server.Serve(l)
	}()
	select {
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		select {
		case <-waiting.drain(): // the server has them again, and answers
		case <-grace.Done():
		}
		if server.Shutdown(grace) != nil {
			server.Close() // first: a handler that only ends with its context would answer 200
			abandon()
		}
		<-served
		return nil
	case err := <-served:
		server.Close()
		return fmt.Errorf("api: serve %s: %w", l.Addr(), err)
	}
}

// errorLog takes what net/http says of connections: it is the only one to
// tell of a handshake that failed, and says it in words alone.
type errorLog struct {
	server *Server
	mu     sync.Mutex
	told   time.Time
}

// quiet is how long a second failed handshake is no news to an admin.
const quiet = time.Minute

func (e *errorLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	level := slog.LevelDebug
	if strings.Contains(text, "TLS handshake error") {
		e.server.metrics.refused.WithLabelValues("tls").Inc()
		e.mu.Lock()
		if now := time.Now(); now.Sub(e.told) > quiet {
			e.told, level = now, slog.LevelInfo
		}
		e.mu.Unlock()
	}
	e.server.log.Log(context.Background(), level, "a connection failed", "error", text)
	return len(line), nil
}
