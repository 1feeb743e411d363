package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/kernel/sockopt"
	"holdfast/internal/run"
)

// Config says where a unit answers and to whom.
type Config struct {
	Unit string      // "core", "dns" ...; names the unit in logs and metrics
	Path string      // of the socket; at most 107 bytes
	Mode fs.FileMode // of the socket; 0660 when zero
	UIDs []uint32    // who may ask beside root and the unit's own user
	GIDs []uint32    // and whose members; the socket is given to the first of them
}

// Deps are what a Server works with. All are needed.
type Deps struct {
	Handler http.Handler
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Server answers admins on a Unix socket. It is a run.Task.
type Server struct {
	config  Config
	handler http.Handler
	log     *slog.Logger
	metrics *metrics
}

// New makes a server that Run starts.
func New(config Config, deps Deps) (*Server, error) {
	if config.Path == "" {
		return nil, errors.New("admin: the configuration names no socket path")
	}
	if config.Mode == 0 {
		config.Mode = 0o660
	}
	m, err := newMetrics(deps.Metrics, config.Unit)
	if err != nil {
		return nil, fmt.Errorf("admin: %s: metrics: %w", config.Unit, err)
	}
	return &Server{
		config:  config,
		handler: deps.Handler,
		log:     deps.Log.With("service", "admin", "unit", config.Unit),
		metrics: m,
	}, nil
}

// String names the task.
func (s *Server) String() string { return "admin " + s.config.Unit }

// Timeouts of a connection. A handler may extend its own with
// http.ResponseController.
const (
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	stopTimeout   = 2 * time.Second
)

// Run answers until ctx ends; requests under way then have two seconds to end
// before their context does. Run returns when the last handler has.
func (s *Server) Run(ctx context.Context, ready func()) error {
	listener, err := Listen(s.config.Path, s.config.Mode)
	if err != nil {
		return err
	}
	if err := s.giveToGroup(); err != nil {
		listener.Close()
		return err
	}
	// Requests outlive ctx for as long as stopTimeout lets them.
	requests, abandon := context.WithCancel(context.WithoutCancel(ctx))
	underWay := new(run.Gate) // handlers
	server := &http.Server{
		Handler:           s.guarded(underWay.Handler(s.handler)),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnContext:       s.identify,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer underWay.Close()
	defer abandon() // first: handlers end with their context
	ready()
	select {
	case <-ctx.Done():
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if server.Shutdown(stop) != nil {
			server.Close() // first: a handler that only ends with its context would answer 200
			abandon()
		}
		<-served
		return nil
	case err := <-served:
		server.Close()
		return fmt.Errorf("admin: %s: serve %s: %w", s.config.Unit, s.config.Path, err)
	}
}

// giveToGroup lets the first group open the socket. A unit without the right
// to give files away belongs to that group already, or is told.
func (s *Server) giveToGroup() error {
	if len(s.config.GIDs) == 0 {
		return nil
	}
	if err := os.Lchown(s.config.Path, -1, int(s.config.GIDs[0])); err != nil {
		return fmt.Errorf("admin: %s: give the socket to group %d: %w", s.config.Unit, s.config.GIDs[0], err)
	}
	return nil
}

// Peer is who asks over the socket.
type Peer struct {
	sockopt.Credentials
	err error // the kernel would not say
}

type peerKey struct{}

// PeerOf returns who sent the request with this context; false when it did
// not come over an admin socket.
func PeerOf(ctx context.Context) (Peer, bool) {
	peer, ok := ctx.Value(peerKey{}).(Peer)
	return peer, ok
}

func (s *Server) identify(ctx context.Context, conn net.Conn) context.Context {
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	credentials, err := sockopt.PeerCredentials(unix)
	return context.WithValue(ctx, peerKey{}, Peer{Credentials: credentials, err: err})
}

// allowed tells whether the peer may ask.
func (s *Server) allowed(peer Peer) bool {
	if peer.err != nil {
		return false
	}
	if peer.UID == 0 || peer.UID == uint32(os.Geteuid()) || slices.Contains(s.config.UIDs, peer.UID) {
		return true
	}
	return slices.ContainsFunc(s.config.GIDs, peer.InGroup)
}

// guarded lets those who may ask through to next.
func (s *Server) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := PeerOf(r.Context())
		if !ok || !s.allowed(peer) {
			s.metrics.refused.Inc()
			s.log.Warn("refused a stranger on the admin socket", "uid", peer.UID, "gid", peer.GID, "pid", peer.PID, "error", peer.err)
			w.Header().Set("Connection", "close")
			http.Error(w, fmt.Sprintf("uid %d may not administer holdfast: ask as root or as a member of its admin group", peer.UID), http.StatusForbidden)
			return
		}
		s.metrics.requests.Inc()
		next.ServeHTTP(w, r)
	})
}
