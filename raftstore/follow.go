package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"holdfast/internal/peer"
	"holdfast/internal/run"
)

// maxFollowsOfNode is how many connections one node may have to follow the
// state: one streams, others write, and some may be dead and not noticed yet.
const maxFollowsOfNode = 16

// roles are whose certificates may greet at all; judge says for what.
func (n *network) roles() []peer.Role {
	if n.follow == nil {
		return []peer.Role{peer.RoleServer}
	}
	return []peer.Role{peer.RoleServer, peer.RoleAgent}
}

// countFollow takes a place for a connection, until it is forgotten.
func (n *network) countFollow(s *stream) bool {
	name := foldName(s.peer.Name)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.follows[name] >= maxFollowsOfNode {
		return false
	}
	n.follows[name]++
	forget, counted := s.forget, true
	s.forget = func() {
		forget()
		n.mu.Lock()
		defer n.mu.Unlock()
		if !counted {
			return
		}
		counted = false
		if n.follows[name]--; n.follows[name] == 0 {
			delete(n.follows, name)
		}
	}
	return true
}

// followServer answers the nodes that follow the state.
type followServer struct {
	http   *http.Server
	active run.Gate
}

type followerKey struct{}

// FollowerOf is the name of the node that makes a request of Config.Follow:
// that of its certificate, unless the store is insecure.
func FollowerOf(r *http.Request) string {
	name, _ := r.Context().Value(followerKey{}).(string)
	return name
}

func newFollowServer(handler http.Handler, log *slog.Logger) *followServer {
	s := &followServer{}
	s.http = &http.Server{
		Handler:           s.active.Handler(handler),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second, // a command's body
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if s, ok := conn.(*stream); ok {
				ctx = context.WithValue(ctx, followerKey{}, s.peer.Name)
			}
			return ctx
		},
	}
	return s
}

func (s *followServer) serve(l net.Listener) error {
	err := s.http.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *followServer) stop() {
	s.http.Close()
	s.active.Close()
}

// Follower is a node that is no server and connects to servers to follow the
// state.
type Follower struct {
	Cluster, Node, NodeID string

	Trust *peer.Trust // the node's; nil: plain text, which only an insecure server takes
}

// Dial connects to the RPC port of the server that is called name. It takes as
// long as ctx allows.
func (f Follower) Dial(ctx context.Context, address, name string) (net.Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	n := &network{
		trust: f.Trust, stranger: func(string, string) {}, distrusted: func(string, string) {}, // the error says it
		self: func() hello { return hello{Cluster: f.Cluster, Name: f.Node, ID: f.NodeID} },
	}
	s := &stream{Conn: raw, raw: raw, dialled: kindFollow, forget: func() {}}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	code, err := n.presentOurselves(s, kindFollow, name, "")
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		s.Close()
		return nil, &dialError{to: fmt.Sprintf("%s (%s)", name, address), refused: code, err: err}
	}
	return s, nil
}
