package logrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
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

// probedError is why who connects is not heard: it shows no certificate, or speaks
// no TLS that we do. Nothing says that it is what brings a node's lines.
type probedError struct{ error }

func (e probedError) Unwrap() error { return e.error }

// theirsError is that the other end refuses this node.
type theirsError struct{ error }

func (e theirsError) Unwrap() error { return e.error }

// refusedHandshake says of a handshake that failed who refused whom. All else,
// such as one that broke off, or that ctx ended, stays what it is: no node is to
// be blamed for a network.
func refusedHandshake(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	if failed, ok := errors.AsType[*net.OpError](err); ok && failed.Op == "remote error" { // crypto/tls's for an alert
		switch text := failed.Err.Error(); {
		case strings.Contains(text, "certificate"):
			return theirsError{fmt.Errorf("does not believe this node's certificate: %w", err)}
		case strings.Contains(text, "protocol version"):
			return theirsError{fmt.Errorf("speaks another version of TLS: %w", err)}
		}
		return err
	}
	_, unverified := errors.AsType[*tls.CertificateVerificationError](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	switch text := err.Error(); {
	case unverified, strings.HasPrefix(text, "peer: "): // as *peer.RefusedError does
		return refusedError{peer.Explain(err)}
	case noTLS, strings.Contains(text, "didn't provide a certificate"), strings.Contains(text, "unsupported versions"):
		return probedError{err} // crypto/tls has no types for these two
	}
	return err
}

// refusals are the nodes that want to bring lines and are refused. The node
// itself says what it hears of that; here it is said whom it is about, and why.
// Its methods may be called from any goroutine.
type refusals struct {
	board *health.Board
	log   *slog.Logger

	mu    sync.Mutex
	nodes map[string]*refusal // that run logs, by the name that the cluster file has for the address
	// strangers are all others, by their addresses; those that came when there
	// were mostStrangers are one, of no address.
	strangers map[netip.Addr]*refusal
}

// mostStrangers bounds what one scan of a network has logged in a minute.
const mostStrangers = 16

// grade is how much a refusal says. What says more stays when something comes that
// says less, so that a probe of a node's port does not hide why its lines don't come.
type grade int

const (
	probed grade = iota // anything may have come
	theirs              // something that speaks TLS as a node does, and refuses this one
	shown               // a certificate, or more
)

func gradeOf(err error) grade {
	switch {
	case errors.As(err, new(refusedError)):
		return shown
	case errors.As(err, new(theirsError)):
		return theirs
	}
	return probed
}

// refusal is what there is to say of one.
type refusal struct {
	reason     string
	grade      grade
	at         time.Time // of the last of that grade
	told, last time.Time
	more       int // since it was told
}

// Bounds of the condition's text, in which others choose what stands.
const (
	mostReason  = 300 // bytes
	mostRefused = 10  // nodes that are named
)

// reasonOf is why, on one line that is not too long.
func reasonOf(err error) string {
	text := oneLine(err)
	if len(text) > mostReason {
		text = strings.ToValidUTF8(text[:mostReason], "") + "..."
	}
	return text
}

// note hears of one more. node is "" for a stranger, who is logged and no more.
func (r *refusals) note(node string, addr netip.Addr, err error, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.of(node, addr)
	one.last = now
	one.more++
	grade := gradeOf(err)
	switch fresh := now.Sub(one.at) < refusalsFor; {
	case grade == one.grade:
		one.at = now
	case grade < one.grade && fresh:
		return
	}
	if grade <= one.grade && !one.told.IsZero() && now.Sub(one.told) < refusalsAgain {
		return
	}
	reason := reasonOf(err)
	r.log.Warn("a connection for a node's lines is refused", "node", node, "address", addr.String(), "times", one.more, "error", reason)
	one.reason, one.grade, one.at, one.told, one.more = reason, grade, now, now, 0
	r.tell()
}

// of is what there is of a node, or of a stranger. The caller holds mu.
func (r *refusals) of(node string, addr netip.Addr) *refusal {
	if r.nodes == nil {
		r.nodes, r.strangers = map[string]*refusal{}, map[netip.Addr]*refusal{}
	}
	if node != "" {
		if r.nodes[node] == nil {
			r.nodes[node] = &refusal{}
		}
		return r.nodes[node]
	}
	known := len(r.strangers)
	if r.strangers[netip.Addr{}] != nil {
		known--
	}
	if r.strangers[addr] == nil && known >= mostStrangers {
		addr = netip.Addr{}
	}
	if r.strangers[addr] == nil {
		r.strangers[addr] = &refusal{}
	}
	return r.strangers[addr]
}

// accepted hears that lines are taken from an address, which is that of a node if
// the cluster file has one there.
func (r *refusals) accepted(node string, addr netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.strangers, addr)
	if r.nodes[node] != nil {
		delete(r.nodes, node)
		r.tell()
	}
}

// expire forgets who did not come again.
func (r *refusals) expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.strangers, func(_ netip.Addr, one *refusal) bool { return now.Sub(one.last) >= refusalsFor })
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
	head := "nodes bring no copy of their lines: "
	for node, one := range r.nodes {
		if one.grade == theirs {
			list = append(list, node+" "+one.reason)
			continue
		}
		list = append(list, node+": "+one.reason)
		head = "nodes that want to bring a copy of their lines are refused: "
	}
	if len(list) == 0 {
		r.board.Clear(conditionRefused)
		return
	}
	slices.Sort(list)
	if more := len(list) - mostRefused; more > 0 {
		list = append(list[:mostRefused], fmt.Sprintf("and %d more", more))
	}
	r.board.Raise(conditionRefused, health.Warning, head+strings.Join(list, "; "))
}

// refused hears of a connection that was, and returns false if err is another.
func (s *Server) refused(conn net.Conn, err error) bool {
	if !errors.As(err, new(refusedError)) && !errors.As(err, new(probedError)) && !errors.As(err, new(theirsError)) {
		return false
	}
	addr, table := addrOf(conn.RemoteAddr()), s.table.Load()
	node := table.nodes[addr]
	if !table.logs[node] {
		node = "" // it has no lines to bring: some program there has come by
	}
	s.refusals.note(node, addr, err, time.Now())
	return true
}
