package api

import (
	"context"
	"hash/fnv"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"holdfast/internal/state"
)

// answer is what a query found.
type answer struct {
	value any
	index uint64 // at which the catalog's part last changed
	// gossip: the answer depends on the gossip too; laid is what it changed.
	gossip bool
	laid   effect
	// missing: 404 with no body, but with the index to wait on.
	missing bool
	// raw: value is []byte to send as it is.
	raw bool
}

// queryFunc asks a snapshot. It is pure but for ws.
type queryFunc func(snap *state.Snapshot, ws state.WatchSet) answer

// Indexes from overlayBase on stand for an answer that the gossip changed.
// Raft never counts so far (at a million entries a second, in 35 years), and
// a double, which is what some clients keep numbers in, still holds them.
const (
	overlayBase uint64 = 1 << 50
	overlayMask        = overlayBase - 1
)

// reported is the index that the client sees: the catalog's, or, while the
// gossip changes the answer, a number that is a function of the catalog's
// index and of that change. So it moves exactly when the answer does, and
// whoever holds it waits for the next change, on this node or on another
// that sees the same.
func (a answer) reported() uint64 {
	if len(a.laid) == 0 {
		return a.index
	}
	hash := fnv.New64a()
	_, _ = io.WriteString(hash, strconv.FormatUint(a.index, 10)) // a hash takes everything
	for _, node := range sortedKeys(a.laid) {
		_, _ = io.WriteString(hash, "\x00"+node+"\x00"+string(a.laid[node]))
	}
	return overlayBase | hash.Sum64()&overlayMask
}

// moved tells whether a client that holds index has not seen this answer.
func (a answer) moved(index uint64) bool {
	now := a.reported()
	if index >= overlayBase || now >= overlayBase {
		return now != index
	}
	return now > index
}

// ahead tells that the client holds an index that this replica has not
// reached, or that is of another life of the store.
func (a answer) ahead(index uint64) bool {
	return index < overlayBase && a.reported() < index
}

// aheadWait is how long a client with an index from the future is kept: a
// replica that lags catches up meanwhile; a store that was restored never
// does, and the client must see the smaller index to begin anew.
const aheadWait = time.Second

// query answers a read: at the freshness it asks for, at once or after a change.
func (s *Server) query(c *call, run queryFunc) error {
	if c.place == nil {
		if err := s.fresh(c); err != nil {
			return err
		}
		if c.read.index == 0 {
			return s.send(c, run(s.state.Snapshot(), nil))
		}
		if err := s.enter(c); err != nil {
			return err
		}
	}
	if c.place.token && c.who.rights == nil {
		return s.refuse(unknownToken()) // it is gone, and was the last one
	}
	c.blocked = true
	found, reason, err := s.block(c, run)
	if c.parked {
		return nil
	}
	c.place.leave(reason)
	if err != nil {
		return err
	}
	if reason == "gone" {
		return errGone
	}
	return s.send(c, found)
}

// place is one of the places of blocking queries, and what the query that has
// it knows from one look to the next.
type place struct {
	server *Server
	left   bool
	waits  bool      // it is counted as one that waits
	until  time.Time // the answer goes out then, whatever it is
	round  int       // looks so far
	before uint64    // the index of the last one
	over   bool      // the time is over
	token  bool      // the query came with one of the store's
}

// leave gives the place back, once, and counts how the query ended. Whoever sees
// in the metrics that it waits no more finds all else done.
func (p *place) leave(reason string) {
	if p == nil || p.left {
		return
	}
	p.left = true
	p.server.metrics.blocked.WithLabelValues(reason).Inc()
	<-p.server.slots
	if p.waits {
		p.server.metrics.blocking.Dec()
	}
}

// wait counts the query as one that waits, once it has looked: a change from then
// on wakes it.
func (p *place) wait() {
	if !p.waits {
		p.waits = true
		p.server.metrics.blocking.Inc()
	}
}

// enter takes one of the places of blocking queries.
func (s *Server) enter(c *call) error {
	select {
	case s.slots <- struct{}{}:
	default:
		c.w.Header().Set("Retry-After", "1")
		return s.refuse(&refusal{http.StatusTooManyRequests, "blocking", "too many blocking queries at a time: try again later"})
	}
	c.blocked = true
	wait := c.read.wait
	if wait == 0 {
		wait = defaultWait
	}
	c.place = &place{server: s, token: c.who.rights != nil, until: time.Now().Add(wait + rand.N(wait/waitJitter+1))}
	return nil
}

// waitContext ends with the client, or when its wait is over.
func (c *call) waitContext() (context.Context, context.CancelFunc) {
	return context.WithDeadline(c.Context(), c.place.until)
}

// block waits until the answer moves, the wait is over, the server stops, the
// client goes or its token is taken away, and says which; or it parks the call,
// and the answer is another call's.
func (s *Server) block(c *call, run queryFunc) (answer, string, error) {
	p := c.place
	for {
		if p.over {
			return s.last(c, run)
		}
		gossip := s.watch.gossip() // before the snapshot: a change between the two wakes us
		ws := state.WatchSet{}
		snap := s.state.Snapshot()
		if err := s.still(c, snap, ws); err != nil {
			return answer{}, "refused", err
		}
		found := run(snap, ws)
		restored := p.round > 0 && found.index < p.before // the client begins anew
		if restored || found.moved(c.read.index) {
			s.woke(p.round, "changed")
			return found, "changed", nil
		}
		select {
		case <-c.stop:
			return found, "stopped", nil
		default:
		}
		s.woke(p.round, "unchanged")
		p.before = found.index
		if found.gossip {
			ws.Add(gossip)
		}
		ws.Add(c.stop)
		limit := time.Until(p.until)
		if found.ahead(c.read.index) {
			limit = min(limit, aheadWait)
		}
		p.wait()
		if p.round++; c.park(ws, limit) {
			return answer{}, "", nil
		}
		found = answer{} // thousands wait: none keeps an answer that nobody asked for
		p.over = !waitFor(c.Context(), ws, limit)
	}
}

// last is the answer when the time is over, or the client has gone.
func (s *Server) last(c *call, run queryFunc) (answer, string, error) {
	snap := s.state.Snapshot()
	if err := s.still(c, snap, nil); err != nil { // its time may be over
		return answer{}, "refused", err
	}
	return run(snap, nil), ended(c), nil
}

// waitFor tells whether something in ws happened before the time was over.
func waitFor(ctx context.Context, ws state.WatchSet, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return ws.WatchCtx(ctx) == nil
}

// ended says why a wait is over.
func ended(c *call) string {
	if c.Context().Err() != nil {
		return "gone"
	}
	return "timeout"
}

// woke counts what a wake was good for; the first look is no wake.
func (s *Server) woke(round int, result string) {
	if round > 0 {
		s.metrics.wakes.WithLabelValues(result).Inc()
	}
}

// maxLag is how old the replica may be for a read in the default mode. An
// older one asks the leader first.
const maxLag = 2 * time.Second

// fresh sees to it that the replica is as fresh as the request asks.
//
//	consistent: everything committed before the request is in it.
//	default:    a leader is known, and spoke with this node less than maxLag ago.
//	stale:      whatever there is, unless ?max_stale says how old it may be.
func (s *Server) fresh(c *call) error {
	limit := maxLag
	switch c.read.mode {
	case consistent:
		return s.barrier(c)
	case stale:
		if c.read.maxStale == 0 {
			return nil
		}
		limit = c.read.maxStale
	default:
		if _, _, ok := s.raft.Leader(); !ok {
			return state.ErrNoLeader
		}
	}
	if age, ok := s.state.Snapshot().Age(s.now()); ok && age <= limit {
		return nil
	}
	return s.barrier(c)
}

func (s *Server) barrier(c *call) error {
	ctx, cancel := context.WithTimeout(c.Context(), proposeTimeout)
	defer cancel()
	return s.raft.ReadBarrier(ctx)
}

// unknownAge is shown as LastContact, in ms, by a replica that no leader ever
// confirmed: a number that every client can read, about 24 days.
const unknownAge = math.MaxInt32

// send writes an answer with the headers that Consul's clients read.
func (s *Server) send(c *call, a answer) error {
	if err := c.filter.failed(); err != nil {
		return err
	}
	s.describe(c, a.reported())
	switch {
	case a.missing:
		c.w.WriteHeader(http.StatusNotFound)
		return nil
	case a.raw:
		return s.sendRaw(c, a.value.([]byte))
	default:
		return s.reply(c, a.value)
	}
}

// describe sets the headers that say how fresh an answer is.
func (s *Server) describe(c *call, index uint64) {
	_, _, leader := s.raft.Leader()
	contact := uint64(unknownAge)
	if age, known := s.state.Snapshot().Age(s.now()); known {
		contact = uint64(age / time.Millisecond)
	}
	header := c.w.Header()
	header.Set("X-Consul-Index", strconv.FormatUint(max(index, 1), 10)) // 0 makes clients spin
	header.Set("X-Consul-KnownLeader", strconv.FormatBool(leader))
	header.Set("X-Consul-LastContact", strconv.FormatUint(contact, 10))
	header.Set("X-Consul-Effective-Consistency", string(c.read.mode))
	if c.hidden {
		header.Set("X-Consul-Results-Filtered-By-ACLs", "true")
	}
}

// sendRaw sends bytes that somebody stored: a browser must not take them for
// a page of ours.
func (s *Server) sendRaw(c *call, data []byte) error {
	header := c.w.Header()
	header.Set("Content-Type", "text/plain")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", "sandbox")
	header.Set("Content-Length", strconv.Itoa(len(data)))
	c.w.extend(writeTimeout)
	if _, err := c.w.Write(data); err != nil {
		return errGone
	}
	return nil
}
