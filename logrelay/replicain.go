package logrelay

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/peer"
	"holdfast/logrelay/journal"
)

// held is what this node has of the others' journals. Each shipment ends with
// a mark in our journal, so that lines and progress are durable together; the
// file has what marks before the cursor said.
type heldReplicas struct {
	path   string
	cursor *journal.Cursor

	mu     sync.Mutex
	nodes  map[string]progress
	dirty  bool
	takers map[string]*taker
}

// taker takes a node's lines from one connection.
type taker struct {
	end  context.CancelFunc
	done chan struct{}
}

const replicasFile = "replicas.json"

// openReplicas reads the file, and what the journal has behind it: its lines
// are then known as recent.
func openReplicas(dir string, j *journal.Journal, known *recent) (*heldReplicas, error) {
	h := &heldReplicas{path: filepath.Join(dir, replicasFile), nodes: map[string]progress{}, takers: map[string]*taker{}}
	b, err := os.ReadFile(h.path)
	if err == nil {
		err = json.Unmarshal(b, &h.nodes)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("logrelay: %s: %w; remove it and other nodes send some lines once more", h.path, err)
	}
	if h.cursor, err = j.Cursor("replicas", false); err != nil {
		return nil, fmt.Errorf("logrelay: %w", err)
	}
	reader := j.Glance(h.cursor.Next())
	defer reader.Close()
	// A mark follows the lines of its shipment. That is on the sender's disk if
	// another one came behind it by the same connection.
	newest, coming := map[string]*shipped{}, &shipped{}
	defer func() {
		for _, s := range newest {
			s.over()
		}
	}()
	for {
		block, ok, err := reader.TryNext()
		if err != nil || !ok {
			return h, err
		}
		if err := block.Each(func(_ uint64, r journal.Record) bool {
			switch {
			case r.Input&viaOther != 0:
				coming.add(known, r)
			case r.Input != viaMark:
				known.add(r)
			default:
				node, p, ok := parseMark(r.Data)
				if !ok {
					return true
				}
				h.nodes[node] = p
				if !beginsAnew(r) {
					known.confirm(newest[node])
				}
				newest[node].over()
				known.doubt(coming)
				newest[node], coming = coming, &shipped{}
			}
			return true
		}); err != nil {
			return h, err
		}
	}
}

// of is the first line of another's journal that is not here; 0: it is a
// journal that was never seen.
func (h *heldReplicas) of(g greeting) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.nodes[g.node]; p.Journal == g.journal {
		return p.Next
	}
	return 0
}

func (h *heldReplicas) set(g greeting, next uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nodes[g.node] = progress{g.journal, next}
	h.dirty = true
}

// alone ends the connection by which a node's lines came until now, and waits
// until nothing of it is under way: what it still had to say may be of before
// the node lost its power, and is not to be stored behind what it says now.
// release says that this one is over.
func (h *heldReplicas) alone(ctx context.Context, node string) (taking context.Context, release func()) {
	taking, end := context.WithCancel(ctx)
	t := &taker{end, make(chan struct{})}
	h.mu.Lock()
	before := h.takers[node]
	h.takers[node] = t
	h.mu.Unlock()
	if before != nil {
		before.end()
		<-before.done
	}
	return taking, func() {
		end()
		h.mu.Lock()
		if h.takers[node] == t {
			delete(h.takers, node)
		}
		h.mu.Unlock()
		close(t.done)
	}
}

// save makes the progress durable without the marks before the journal's end
// as it was when this was called. end is that.
func (h *heldReplicas) save(end uint64) error {
	h.mu.Lock()
	b, err := json.Marshal(h.nodes)
	dirty := h.dirty
	h.dirty = false
	h.mu.Unlock()
	if err == nil && dirty {
		err = durable.Replace(h.path, b, 0o600)
	}
	if err != nil {
		h.mu.Lock()
		h.dirty = true
		h.mu.Unlock()
		return fmt.Errorf("logrelay: %w", err)
	}
	if end == h.cursor.Next() {
		return nil
	}
	return h.cursor.Commit(end)
}

// serveReplica takes another node's lines until it leaves or ctx ends. They are
// in this node's journal, and so in its files, before the answer goes out.
func (s *Server) serveReplica(ctx context.Context, conn *tls.Conn) error {
	_ = conn.SetReadDeadline(time.Now().Add(replicaSilence))
	silent := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	var g greeting
	err := s.guard(viaReplica, func() (err error) { g, err = readGreeting(conn); return err })
	if !silent() { // ctx has ended, and with it the deadlines
		return nil
	}
	if err != nil {
		return err
	}
	id, err := peer.PeerIdentity(conn.ConnectionState())
	if err == nil && safeName(id.Name) != g.node {
		err = fmt.Errorf("%v says that it is %s", id, g.node)
	}
	if err != nil {
		return refusedError{err}
	}
	addr := addrOf(conn.RemoteAddr())
	s.refusals.accepted(s.table.Load().nodes[addr], addr)
	_ = conn.SetReadDeadline(time.Time{})
	taking, release := s.held.alone(ctx, g.node)
	defer release()
	stop := context.AfterFunc(taking, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = newIntake(s, g, conn).run(taking)
	if taking.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// heldEvery is how often the marks in the journal are written down.
const heldEvery = 10 * time.Second

// keepHeld writes down what the journal's marks say, so that it need not keep
// them, until ctx ends.
func (s *Server) keepHeld(ctx context.Context) {
	tick := time.NewTicker(heldEvery)
	defer tick.Stop()
	for end := s.journal.End(); ; end = s.journal.End() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// end is of the tick before: what is behind it tells a server that
		// starts again which lines may be sent twice.
		if err := s.held.save(end); err != nil {
			s.log.Error("how far other nodes' lines have come is not written down; they may come twice", "error", err)
		}
	}
}
