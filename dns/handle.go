package dns

import (
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/miekg/dns"
)

// worker handles one packet after the other; it belongs to one goroutine. What
// it needs for a packet it keeps for the next.
type worker struct {
	server   *Server
	query    query
	packer   packer
	counters *counters
	stream   bool // TCP: answers are not bounded by what the client announced
	limiter  *limiter
	transfer bool    // the last packet asks for a whole zone, by TCP
	onward   *onward // of the last packet: what is to be asked instead; nil: the question
}

func (s *Server) newWorker(transport string) *worker {
	return &worker{
		server:   s,
		packer:   packer{rand: rand.New(s.rand())},
		counters: newCounters(s.metrics, transport),
		stream:   transport == overTCP,
		limiter:  newLimiter(),
	}
}

// handle appends the answer to a packet to out. No answer (out as it was) is
// either none to give or, with a route, one to be fetched from a forwarder.
// A panic is a bug that costs its packet only.
func (w *worker) handle(out, packet []byte, client netip.Addr) (reply []byte, forward *route) {
	defer func() {
		if bug := recover(); bug != nil {
			w.server.metrics.panics.Inc()
			w.server.log.Error("handling a packet panicked: please report this bug", "panic", bug, "packet", packet, "stack", string(debug.Stack()))
			reply, forward = out, nil
		}
	}()
	return w.answer(out, packet, client)
}

// flush brings what was counted into the metrics, and the time that the last
// batch took.
func (w *worker) flush(took time.Duration) {
	w.counters.flush()
	w.server.metrics.local.Observe(took.Seconds())
}

func (w *worker) answer(out, packet []byte, client netip.Addr) ([]byte, *route) {
	q := &w.query
	w.onward, w.transfer = nil, false
	t := w.server.table.Load()
	if f := q.parse(packet); f != "" {
		w.server.metrics.malformed.WithLabelValues(string(f)).Inc()
		rcode, ok := f.rcode()
		if !ok {
			return out, nil
		}
		if q.edns = q.edns && f == faultVersion; !q.edns { // else an OPT is not sure
			q.hasCookie = false
		}
		w.server.cookies.exchange(q, client, w.server.now())
		return w.bounded(out, answer{rcode: rcode}, client, t.trusts(client), false, minUDP), nil
	}
	if q.hasCookie {
		w.server.cookies.exchange(q, client, w.server.now())
	}
	if w.stream && (q.kind == dns.TypeAXFR || q.kind == dns.TypeIXFR) && q.class == dns.ClassINET && t.transfer.any() {
		w.transfer = true
		return out, nil
	}
	trusted := t.trusts(client)
	a, told := w.tell(t, client)
	if !told {
		a = t.lookup(q, w.server.isConfirmed)
	}
	if a.route != nil && trusted && q.flags&bitRD != 0 {
		if reply := w.remembered(out, a.route, client); reply != nil {
			return reply, nil
		}
		return out, a.route
	}
	if a.onward != nil && trusted && q.flags&bitRD != 0 {
		w.onward = &onward{target: name(q.target[:a.onwardLen]), prefix: w.packer.pack(nil, q, a, true, maxTCP)}
		return out, a.onward
	}
	a = w.finish(t, a, client, trusted)
	w.counters.count(zoneLabel(a.zone), q.kind, a.rcode)
	w.server.show(q, client, w.counters.transport, a.rcode, zoneLabel(a.zone), fromTable)
	if q.signed && len(t.transfer.keys) > 0 {
		unsigned := w.packer.pack(nil, q, a, t.forwards && trusted, w.limit(q)-tsigRoom)
		return append(out, w.signedReply(t, packet, unsigned)...), nil
	}
	return w.bounded(out, a, client, trusted, t.forwards && trusted, w.limit(q)), nil
}

// bounded appends an answer, unless its like went to the client's network too
// often: over UDP, for clients outside the cluster that have not shown that
// their address is their own.
func (w *worker) bounded(out []byte, a answer, client netip.Addr, trusted, recursion bool, limit int) []byte {
	if t := w.server.table.Load(); t.rate > 0 && !w.stream && !trusted && !w.query.known && !contains(t.networks, client) {
		switch w.limiter.judge(client, &w.query, a, w.server.now(), t.rate) {
		case judgeSlip:
			w.server.metrics.slipped.Inc()
			a = answer{rcode: a.rcode, zone: a.zone, cut: true}
		case judgeDrop:
			w.server.metrics.limited.Inc()
			return out
		}
	}
	return w.packer.pack(out, &w.query, a, recursion, limit)
}

// remembered appends what the cache knows; nil when forwarders must be asked.
func (w *worker) remembered(out []byte, r *route, client netip.Addr) []byte {
	s, q := w.server, &w.query
	e := s.cache().get(q)
	if e == nil {
		return nil
	}
	now := s.now()
	left := e.left(now)
	var why *extended
	switch {
	case left > 0:
		s.metrics.cached.hit.Inc()
		if e.hits.Add(1) >= popular && left < time.Duration(e.ttl)*time.Second/prefetchShare && e.rcode != dns.RcodeServerFailure &&
			e.refreshing.CompareAndSwap(false, true) {
			if f := s.flights.Load(); f != nil {
				f.refresh(r, q)
			}
		}
	case e.failed.Load() > now.UnixNano() && s.cache().useful(e, now):
		s.metrics.cached.stale.Inc()
		why = staleReason(e)
	default:
		return nil
	}
	e.used.Store(now.Unix())
	w.counters.count(r.label, q.kind, e.rcode)
	from := fromCache
	if why != nil {
		from = fromStale
	}
	s.show(q, client, w.counters.transport, e.rcode, r.label, from)
	return e.append(out, q, now, w.limit(q), why)
}

// finish turns what is not answered from the table into a refusal, and adds
// what depends on the client or the moment.
func (w *worker) finish(t *table, a answer, client netip.Addr, trusted bool) answer {
	switch {
	case a.delegation != nil:
		a.route = nil // a referral
		return a
	case a.route != nil && !trusted:
		return answer{rcode: dns.RcodeRefused, why: reasonProhibited}
	case a.route != nil:
		return answer{rcode: dns.RcodeRefused, why: reasonNoRD}
	case w.query.class == dns.ClassCHAOS && !trusted:
		return answer{rcode: dns.RcodeRefused, why: reasonProhibited}
	}
	if a.zone != nil && a.zone.catalog && a.why == nil {
		a.why = w.server.stale.Load()
	}
	if a.set != nil && a.traits != nil && a.traits.ownFirst {
		a.first = t.home(client)
	}
	return a
}

// home is the address on the main network of the node that a client's address
// belongs to, or the client's own.
func (t *table) home(client netip.Addr) netip.Addr {
	client = client.Unmap().WithZone("")
	if addr, ok := t.homes[client]; ok {
		return addr
	}
	if client.IsLoopback() {
		return t.homes[netip.IPv6Loopback()]
	}
	return client
}

// limit is the most bytes of an answer to q.
func (w *worker) limit(q *query) int {
	if w.stream {
		return maxTCP
	}
	return q.limit()
}

func zoneLabel(z *zone) string {
	if z == nil {
		return "none"
	}
	return z.label
}

// trusts tells whether a client may have questions forwarded.
func (t *table) trusts(client netip.Addr) bool {
	return contains(t.trusted, client)
}

// contains tells whether an address is in one of the networks.
func contains(networks []netip.Prefix, addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	for _, p := range networks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
