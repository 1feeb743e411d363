package logrelay

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// Other is a node that can hold replicas.
type Other struct {
	Name string
	Addr netip.Addr
}

// Bounds of replicas.
const (
	replicaPort     = 20515
	replicaPatience = 5 * time.Second // after which a missing replica is a condition
	replicaRetry    = time.Second
	replicaSilence  = 20 * time.Second // of a receiver that owes an answer
	replicaCommit   = time.Second
	replicaLastWord = time.Second // to say at the end that all is on this node's disk
	conditionAlone  = "logs.replica"
)

// replicas decides when a line may be acknowledged: when another node has it,
// or has been gone for so long that the policy lets it go.
type replicas struct {
	wait     bool // policy: never without another node
	patience time.Duration
	board    *health.Board
	log      *slog.Logger
	end      func() uint64 // of the journal: all lines before it are durable here

	mu      sync.Mutex
	next    uint64 // all before it are on another node
	alone   bool   // lines are acknowledged without
	raised  bool
	goal    uint64 // what another node must have for that to change; 0: not set
	gone    uint64 // numbers of lines that it never gets since then
	changed chan struct{}
}

// reach blocks until another node has all lines before end, or none is needed.
// Its error is ctx's end: the lines may not be acknowledged.
func (r *replicas) reach(ctx context.Context, end uint64) error {
	if r == nil {
		return nil
	}
	patience := time.NewTimer(r.patience)
	defer patience.Stop()
	for {
		r.mu.Lock()
		enough, changed := r.next >= end || r.alone, r.changed
		r.mu.Unlock()
		if enough {
			return nil
		}
		select {
		case <-changed:
		case <-patience.C:
			r.late()
		case <-ctx.Done():
			return fmt.Errorf("no other node has the lines: %w", ctx.Err())
		}
	}
}

// late says that no other node takes lines.
func (r *replicas) late() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.wait {
		r.alone = true
	}
	if r.raised = true; r.wait {
		r.board.Raise(conditionAlone, health.Error, fmt.Sprintf(
			"no other node has taken lines for %v: senders wait (logs.replica_policy is wait)", r.patience))
	} else {
		r.board.Raise(conditionAlone, health.Error, fmt.Sprintf(
			"no other node has taken lines for %v: they are acknowledged with this node's disk alone, until one has caught up", r.patience))
	}
	r.tell()
}

// has says that another node has all lines before next. begins: it has just
// come.
//
// A busy node is never caught up with: there are new lines in every moment. So
// the goal is the end as it was when the other node came. From there on lines
// wait for it again, and the condition ends once it also has those that were
// acknowledged on the way there.
func (r *replicas) has(next uint64, begins bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = max(r.next, next)
	if r.raised && (begins || r.goal == 0) {
		r.goal = r.end()
	}
	if r.raised && r.alone && r.next >= r.goal {
		r.alone, r.goal = false, r.end()
	}
	if r.raised && !r.alone && r.next >= r.goal {
		r.raised, r.goal = false, 0
		r.board.Clear(conditionAlone)
		if r.gone > 0 {
			r.log.Warn("another node has all lines again, but for those that were kept for it no more: they are on this node's disk alone",
				"next", next, "without", r.gone)
		} else {
			r.log.Info("another node has all lines again", "next", next)
		}
		r.gone = 0
	}
	if !r.raised && r.gone > 0 { // they went at a start, before anybody waited
		r.log.Warn("another node takes lines, but for those that were kept for it no more: they are on this node's disk alone",
			"next", next, "without", r.gone)
		r.gone = 0
	}
	r.tell()
}

// lacks says that so many lines are kept for another node no more.
func (r *replicas) lacks(lines uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone += lines
}

func (r *replicas) tell() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// shipper sends every line that came to this node to another one, while the
// line is on its way to this node's disk. It belongs to one goroutine.
type shipper struct {
	node     string
	others   func() []Other // best first
	port     uint16
	tls      func(name string) *tls.Config
	journal  *journal.Journal
	cursor   *journal.Cursor
	replicas *replicas
	log      *slog.Logger
	bugs     *bugs
	// letGo is the first line that is still kept for another node, for which the
	// disk may be too full.
	letGo      func() uint64
	renumbered *renumbered
}

// run ships to the first node that takes lines, until that fails or ctx ends.
func (s *shipper) run(ctx context.Context, well func()) error {
	s.renumbered.save() // what could not be when that was due
	from, next := s.letGo(), s.cursor.Next()
	if lines := s.journal.Lines(next, from); lines > 0 && !s.replicas.wait {
		s.log.Warn("too little of the disk is free: lines that no other node has are kept for it no more", "from", next, "to", from)
		if err := s.cursor.Commit(from); err != nil {
			return err
		}
		s.replicas.lacks(lines)
	}
	failed := errors.New("there is no other node that runs logs and is alive")
	for i, other := range s.others() {
		err := s.ship(ctx, other, well)
		if ctx.Err() != nil {
			return nil
		}
		if i == 0 {
			failed = nil
		}
		failed = errors.Join(failed, fmt.Errorf("%s: %w", other.Name, err))
	}
	return failed
}

func (s *shipper) ship(ctx context.Context, other Other, well func()) error {
	dial, cancel := context.WithTimeout(ctx, replicaPatience)
	defer cancel()
	conn, err := s.dial(dial, other)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		_ = conn.SetWriteDeadline(time.Now().Add(replicaLastWord))
	})
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(replicaSilence))
	if _, err := conn.Write(greeting{s.journal.ID(), s.node}.append(nil)); err != nil {
		return err
	}
	var answer [8]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	next := binary.LittleEndian.Uint64(answer[:])
	from := s.begins(other.Name, next)
	if next <= s.renumbered.before(other.Name) {
		s.renumbered.agrees(other.Name) // what it gets now is all that it has of later numbers
	}
	well()
	s.log.Info("another node takes this one's lines", "other", other.Name, "from", from, "missing", s.journal.Lines(from, s.journal.End()))
	sent := make(chan error, 1)
	sending, end := context.WithCancel(ctx)
	defer end()
	first := new(atomic.Uint64)
	go func() {
		err := s.send(sending, conn, from, first)
		_ = conn.Close() // ends the answers
		sent <- err
	}()
	err = s.answers(conn, from, func(next uint64) {
		if n := first.Load(); n > 0 && next >= n {
			s.renumbered.agrees(other.Name)
		}
	})
	if end(); ctx.Err() == nil {
		_ = conn.Close()
	} else {
		last := time.AfterFunc(replicaLastWord, func() { _ = conn.Close() })
		defer last.Stop()
	}
	return errors.Join(<-sent, err)
}

// dial connects to another node, within ctx.
func (s *shipper) dial(ctx context.Context, other Other) (net.Conn, error) {
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(other.Addr, s.port).String())
	if err != nil {
		return nil, err
	}
	secure := tls.Client(raw, s.tls(other.Name))
	guard := func(talk func() error) error { return s.guard(other.Name, talk) }
	if err := guard(func() error { return secure.HandshakeContext(ctx) }); err != nil {
		_ = raw.Close() // which an end of ctx has done before
		return nil, err
	}
	return guardedConn{secure, guard}, nil
}

// guard calls what talks to another node. A panic over that, as of TLS, is a bug, and
// ends the connection: the lines are sent again. It may be called from any goroutine.
func (s *shipper) guard(other string, talk func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s", errBug, s.bugs.caught(p, "output replica", "other", other))
		}
	}()
	return talk()
}

// begins is the first line to send to another node, which says that it has all
// before next.
func (s *shipper) begins(node string, next uint64) uint64 {
	return max(s.renumbered.begins(node, next), s.cursor.Next())
}

// send ships blocks as this node's disk gets them: both disks sync at the same
// time. first becomes the end of the first shipment with lines in it.
//
// Whatever follows a shipment says that it is on this node's disk: there is one
// write at a time, that there is no more is said when all is there, and after a
// write that failed nothing is said by this connection any more.
func (s *shipper) send(ctx context.Context, conn net.Conn, from uint64, first *atomic.Uint64) error {
	reader := s.journal.Reader(from)
	defer reader.Close()
	failed := s.journal.Failed()
	say := func(b []byte) error {
		if s.journal.Failed() != failed {
			return errors.New("the last lines may not be on this node's disk, whose write failed")
		}
		within := replicaSilence
		if ctx.Err() != nil {
			within = replicaLastWord
		}
		_ = conn.SetWriteDeadline(time.Now().Add(within))
		_, err := conn.Write(b)
		return err
	}
	end, said := from, false // that there is no more
	news := func() bool { return s.journal.Failed() != failed || !said && s.journal.End() >= end }
	var batch journal.Batch
	var out []byte
	for {
		block, more, err := reader.NextEarlyOr(ctx, news)
		switch {
		case ctx.Err() != nil:
			if !said && s.journal.End() == end { // else it would not know that it has all
				return say(shipment{first: end, end: end}.append(out[:0]))
			}
			return nil
		case err != nil:
			return err
		case !more:
			out, said = shipment{first: end, end: end}.append(out[:0]), true
			if err := say(out); err != nil {
				return err
			}
			continue
		}
		batch.Reset()
		if err := block.Each(func(number uint64, r journal.Record) bool {
			if number >= from && r.Input&viaOther == 0 && r.Input != viaMark {
				batch.Add(r)
			}
			return true
		}); err != nil {
			return err
		}
		if end, said = block.End(), false; batch.Len() > 0 {
			first.CompareAndSwap(0, end)
		}
		out = shipment{max(block.First, from), end, batch.Len(), batch.Bytes()}.append(out[:0])
		if err := say(out); err != nil {
			return err
		}
	}
}

// answers hears how far the other node has come, and passes that on to heard.
func (s *shipper) answers(conn net.Conn, from uint64, heard func(next uint64)) error {
	s.replicas.has(from, true)
	committed := time.Now()
	var answer [8]byte
	for next := from; ; {
		owed := next < s.journal.End() // what comes later was not waited for
		if owed {
			_ = conn.SetReadDeadline(time.Now().Add(replicaSilence))
		} else {
			_ = conn.SetReadDeadline(time.Now().Add(replicaCommit))
		}
		_, err := io.ReadFull(conn, answer[:])
		var timeout net.Error
		if idle := errors.As(err, &timeout) && timeout.Timeout() && !owed; err != nil && !idle {
			return errors.Join(err, s.leave(next))
		}
		if err == nil {
			next = binary.LittleEndian.Uint64(answer[:])
			heard(next)
			s.replicas.has(next, false)
		}
		if now := time.Now(); now.Sub(committed) >= replicaCommit && next > s.cursor.Next() {
			committed = now
			if err := s.leave(next); err != nil {
				return err
			}
		}
	}
}

// leave lets the journal go of what another node has. That may be more than is
// on this node's disk, and what is not is no record that the cursor can pass.
func (s *shipper) leave(next uint64) error {
	if next = min(next, s.journal.End()); next <= s.cursor.Next() {
		return nil
	}
	return s.cursor.Commit(next)
}

// newShipper makes what sends this node's lines to another, and what waits for it.
func (s *Server) newShipper(j *journal.Journal) (*shipper, error) {
	cursor, err := j.Cursor("replica", false)
	if err != nil {
		return nil, fmt.Errorf("logrelay: %w", err)
	}
	s.replicas = &replicas{
		wait: s.settings.wait, patience: s.replicaPatience, board: s.board, log: s.log,
		end: j.End, next: cursor.Next(), changed: make(chan struct{}),
	}
	numbers := newRenumbered(s.dir(), s.log)
	numbers.open(j.End())
	return &shipper{
		node: safeName(s.config.Node), others: s.deps.Others, port: s.replicaPort, tls: s.deps.PeerTLS, journal: j, cursor: cursor,
		replicas: s.replicas, log: s.log, bugs: s.bugs, letGo: s.letsReplicaGo(j, cursor), renumbered: numbers,
	}, nil
}
