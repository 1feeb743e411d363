package dns

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// source is where an answer came from.
type source string

const (
	fromTable     source = "table"     // what this server is authoritative for, and refusals
	fromCache     source = "cache"     // remembered
	fromStale     source = "stale"     // remembered, and out of date (RFC 8767)
	fromForwarder source = "forwarder" // asked for now, or that nobody answered
)

// observation is one answered query, for people.
type observation struct {
	client    netip.Addr
	transport string
	name      name
	kind      uint16
	rcode     int
	zone      string
	source    source
}

// watchRoom is how many observations wait for one who watches.
const watchRoom = 1024

// watch is one who looks on. Those who answer never wait for it: what it has
// no room for is counted.
type watch struct {
	seen   chan observation
	missed atomic.Uint64
}

// watches are those who look on. Most of the time nobody does, and a query
// costs one load more. The zero value is ready.
type watches struct {
	mu   sync.Mutex
	open atomic.Pointer[[]*watch] // nil: nobody
}

func (w *watches) add() *watch {
	w.mu.Lock()
	defer w.mu.Unlock()
	added := &watch{seen: make(chan observation, watchRoom)}
	open := []*watch{added}
	if before := w.open.Load(); before != nil {
		open = append(open, *before...)
	}
	w.open.Store(&open)
	return added
}

func (w *watches) remove(gone *watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	open := slices.DeleteFunc(slices.Clone(*w.open.Load()), func(o *watch) bool { return o == gone })
	if len(open) == 0 {
		w.open.Store(nil)
		return
	}
	w.open.Store(&open)
}

// show gives an answered query to those who watch, and to the query log when
// its turn has come.
func (s *Server) show(q *query, client netip.Addr, transport string, rcode int, zone string, from source) {
	open := s.watches.open.Load()
	every := s.logEvery.Load()
	if open == nil && every == 0 || len(q.name) == 0 {
		return
	}
	o := func() observation {
		return observation{client: client.Unmap(), transport: transport, name: name(q.name), kind: q.kind, rcode: rcode, zone: zone, source: from}
	}
	// At random: every hundredth of a client that repeats a hundred names
	// would be the same one.
	if every > 0 && rand.Uint32N(every) == 0 {
		s.queryLog.offer(o)
	}
	if open == nil {
		return
	}
	for _, w := range *open {
		w.offer(o)
	}
}

// offer makes an observation only when there is room for it.
func (w *watch) offer(o func() observation) {
	if len(w.seen) < cap(w.seen) {
		select {
		case w.seen <- o():
			return
		default: // another was faster
		}
	}
	w.missed.Add(1)
}

// logQueries writes the query log until ctx ends. It is slower than queries
// come; what it could not write it tells once a second.
func (s *Server) logQueries(ctx context.Context) error {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-s.queryLog.seen:
			s.log.LogAttrs(ctx, slog.LevelInfo, "query", slog.String("client", o.client.String()), slog.String("transport", o.transport),
				slog.String("name", o.name.String()), slog.String("type", typeName(o.kind)), slog.String("rcode", dns.RcodeToString[o.rcode]),
				slog.String("zone", o.zone), slog.String("source", string(o.source)))
		case <-second.C:
			if n := s.queryLog.missed.Swap(0); n > 0 {
				s.metrics.dropped.WithLabelValues("query_log").Add(float64(n))
				s.log.Warn("queries were not logged: they came too fast; raise dns.query_log in the cluster file", "missed", n)
			}
		}
	}
}

// Count is how often something was seen.
type Count struct {
	What  string `json:"what"`
	Count uint64 `json:"count"`
}

// Top is what was asked for a while.
type Top struct {
	Seconds float64 `json:"seconds"`
	Seen    uint64  `json:"seen"`
	Missed  uint64  `json:"missed"` // answered as well, and not looked at: they came too fast
	Names   []Count `json:"names"`
	Clients []Count `json:"clients"`
	Types   []Count `json:"types"`
	Rcodes  []Count `json:"rcodes"`
	Zones   []Count `json:"zones"`
	Sources []Count `json:"sources"`
}

// maxTallied bounds the different names, and clients, that one Top tells
// apart: both are whatever a client likes.
const maxTallied = 65536

// otherName is what the names beyond maxTallied are counted as.
const otherName = "(others)"

// tally counts observations.
type tally struct {
	seen    uint64
	names   map[name]uint64
	clients map[netip.Addr]uint64
	types   map[string]uint64
	rcodes  map[string]uint64
	zones   map[string]uint64
	sources map[string]uint64
}

func newTally() *tally {
	return &tally{names: map[name]uint64{}, clients: map[netip.Addr]uint64{}, types: map[string]uint64{},
		rcodes: map[string]uint64{}, zones: map[string]uint64{}, sources: map[string]uint64{}}
}

func (t *tally) add(o observation) {
	t.seen++
	countUp(t.names, o.name, "")
	countUp(t.clients, o.client, netip.Addr{})
	t.types[typeLabel(o.kind)]++
	t.rcodes[dns.RcodeToString[o.rcode]]++
	t.zones[o.zone]++
	t.sources[string(o.source)]++
}

// countUp counts key or, when there are too many already, other.
func countUp[K comparable](in map[K]uint64, key, other K) {
	if _, known := in[key]; !known && len(in) >= maxTallied {
		key = other
	}
	in[key]++
}

// top lists the most frequent, most first, at most limit of each.
func (t *tally) top(limit int) Top {
	return Top{
		Seen: t.seen,
		Names: most(t.names, limit, func(n name) string {
			if n == "" {
				return otherName
			}
			return n.String()
		}),
		Clients: most(t.clients, limit, func(a netip.Addr) string {
			if !a.IsValid() {
				return otherName
			}
			return a.String()
		}),
		Types: most(t.types, limit, itself), Rcodes: most(t.rcodes, limit, itself),
		Zones: most(t.zones, limit, itself), Sources: most(t.sources, limit, itself),
	}
}

func itself(s string) string { return s }

func most[K comparable](counts map[K]uint64, limit int, text func(K) string) []Count {
	list := make([]Count, 0, len(counts))
	for key, n := range counts {
		list = append(list, Count{text(key), n})
	}
	slices.SortFunc(list, func(a, b Count) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.What, b.What)) })
	return list[:min(limit, len(list))]
}

// Top watches what is answered for a while, or until ctx ends, and gives the
// most frequent of each kind, at most limit. It blocks meanwhile.
func (s *Server) Top(ctx context.Context, d time.Duration, limit int) Top {
	w := s.watches.add()
	defer s.watches.remove(w)
	started := time.Now()
	end := time.NewTimer(d)
	defer end.Stop()
	t := newTally()
	for over := false; !over; {
		select {
		case o := <-w.seen:
			t.add(o)
		case <-end.C:
			over = true
		case <-ctx.Done():
			over = true
		}
	}
	top := t.top(limit)
	top.Seconds, top.Missed = time.Since(started).Round(time.Millisecond).Seconds(), w.missed.Load()
	return top
}
