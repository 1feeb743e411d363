package logrelay

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/peer"
)

const (
	conditionRefused = "logs.replica-refused"
	refusalsAgain    = time.Minute     // between two lines of log about one node, which comes once a second
	refusalsFor      = 5 * time.Minute // after the last for which the condition stands
)

// refusedError is why another node's lines are not taken: its certificate, its
// name, or its version.
type refusedError struct{ error }

func (e refusedError) Unwrap() error { return e.error }

// refusedHandshake says so of a handshake, unless that just broke off.
func refusedHandshake(err error) error {
	var timeout net.Error
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.As(err, &timeout) && timeout.Timeout() {
		return err
	}
	return refusedError{peer.Explain(err)}
}

// refusals are the nodes that want to bring lines and are refused. The node
// itself says what it hears of that; here it is said whom it is about, and why.
// Its methods may be called from any goroutine.
type refusals struct {
	board *health.Board
	log   *slog.Logger

	mu    sync.Mutex
	nodes map[string]*refusal // by the name that the cluster file has for the address; "": strangers
}

// refusal is what there is to say of one.
type refusal struct {
	reason     string
	told, last time.Time
	more       int // since it was told
}

// note hears of one more. node is "" for a stranger, who is logged and no more.
func (r *refusals) note(node string, addr netip.Addr, err error, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.nodes[node]
	if one == nil {
		if r.nodes == nil {
			r.nodes = map[string]*refusal{}
		}
		one = &refusal{}
		r.nodes[node] = one
	}
	one.last = now
	if one.more++; !one.told.IsZero() && now.Sub(one.told) < refusalsAgain {
		return
	}
	r.log.Warn("a node that wants to bring its lines is refused", "node", node, "address", addr.String(), "times", one.more, "error", err)
	one.reason, one.told, one.more = strings.ReplaceAll(err.Error(), "\n", "; "), now, 0
	r.tell()
}

// accepted hears that a node brings lines.
func (r *refusals) accepted(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nodes[node] != nil {
		delete(r.nodes, node)
		r.tell()
	}
}

// expire forgets who did not come again.
func (r *refusals) expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for node, one := range r.nodes {
		if now.Sub(one.last) >= refusalsFor {
			delete(r.nodes, node)
			r.tell()
		}
	}
}

// tell sets the condition. The caller holds mu.
func (r *refusals) tell() {
	var list []string
	for node, one := range r.nodes {
		if node != "" {
			list = append(list, node+": "+one.reason)
		}
	}
	if len(list) == 0 {
		r.board.Clear(conditionRefused)
		return
	}
	slices.Sort(list)
	r.board.Raise(conditionRefused, health.Warning, fmt.Sprintf(
		"nodes that want to bring a copy of their lines are refused: %s", strings.Join(list, "; ")))
}

// refused hears of a connection that was, and returns false if err is another.
func (s *Server) refused(conn net.Conn, err error) bool {
	if !errors.As(err, new(refusedError)) {
		return false
	}
	addr := addrOf(conn.RemoteAddr())
	s.refusals.note(s.table.Load().nodes[addr], addr, err, time.Now())
	return true
}
