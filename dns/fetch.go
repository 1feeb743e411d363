package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds of those who wait for forwarders.
const (
	maxWaiting    = 4096 // in all; one more is SERVFAIL at once
	maxWaitingOne = 256  // of one client (IPv6: of one /64)
)

// flights are the questions that are at forwarders now. Equal questions are
// one flight, however many wait for it: a thousand nodes that boot ask once,
// and who spoofs gets one try at a time and not one for each question that he
// causes. It belongs to one Run.
type flights struct {
	server *Server
	ctx    context.Context
	group  *sync.WaitGroup

	mu      sync.Mutex
	ended   bool // nothing starts any more
	open    map[flightKey]*flight
	waiting int
	of      map[netip.Prefix]int
}

type flightKey struct {
	route *route
	key   cacheKey
}

// flight is one question at its forwarders.
type flight struct {
	flightKey
	query   query  // of who asked first
	stale   *entry // what can be answered instead; nil: nothing
	overdue bool   // the stale answer is given at once from now on
	waiters []waiter
}

// waiter is one who asked.
type waiter struct {
	query     *query
	client    netip.Addr
	transport string
	limit     int
	send      func([]byte) // called once; with nil when there will be no answer
}

func newFlights(ctx context.Context, group *sync.WaitGroup, s *Server) *flights {
	return &flights{server: s, ctx: ctx, group: group, open: map[flightKey]*flight{}, of: map[netip.Prefix]int{}}
}

// ask has a question, or what an alias of ours leads to instead, answered by
// the route's forwarders and gives the reply to send, which is called exactly
// once; with nil when the server ends. When there is no room it does so at
// once: SERVFAIL, so that the client asks the next server. packet, a good
// query, must not change any more.
func (f *flights) ask(r *route, on *onward, packet []byte, client netip.Addr, transport string, send func([]byte)) {
	w := waiter{query: new(query), client: client, transport: transport, limit: maxTCP, send: send}
	w.query.parse(packet)
	f.server.cookies.exchange(w.query, client, f.server.now())
	if transport == overUDP {
		w.limit = w.query.limit()
	}
	if on != nil {
		var err error
		if w, err = on.instead(w); err != nil {
			f.answer(r, w, failureEntry(w.query, nil, f.server.now()), nil)
			return
		}
	}
	key := flightKey{r, cacheKey{name(w.query.name), w.query.kind, w.query.mode()}}
	if e := f.server.cache().get(w.query); on != nil && e != nil && e.left(f.server.now()) > 0 {
		f.server.metrics.cached.hit.Inc()
		f.answer(r, w, e, nil)
		return
	}
	if e, why := f.join(key, w); e != nil {
		f.answer(r, w, e, why)
	}
}

// Reasons not to ask forwarders.
var (
	reasonFull = newExtended(dns.ExtendedErrorCodeNotReady, "too many questions wait for forwarders")
	reasonLoop = newExtended(dns.ExtendedErrorCodeOther, "a loop: the forwarders lead back to this server")
)

// join adds who waits to the flight of the question, and starts it if it is
// not under way. It returns an entry when that is the answer already.
func (f *flights) join(key flightKey, w waiter) (e *entry, why *extended) {
	f.mu.Lock()
	defer f.mu.Unlock()
	refuse := func(why *extended) (*entry, *extended) {
		return failureEntry(w.query, why, f.server.now()), nil
	}
	who := owner(w.client.Unmap())
	if i, ok := f.server.probe.recognises(w.query); ok {
		f.cameBack(key.route, i)
		return refuse(reasonLoop)
	}
	under := f.open[key]
	switch {
	case under != nil && under.overdue:
		f.server.metrics.cached.stale.Inc()
		return under.stale, staleReason(under.stale)
	case f.waiting >= maxWaiting || f.of[who] >= maxWaitingOne:
		f.server.metrics.dropped.WithLabelValues("forwarding").Inc()
		return refuse(reasonFull)
	case under != nil:
		f.server.metrics.cached.joined.Inc()
	default:
		f.server.metrics.cached.miss.Inc()
		if under = f.start(key, w.query); under == nil {
			f.server.metrics.dropped.WithLabelValues("forwarding").Inc()
			return refuse(reasonFull)
		}
	}
	under.waiters = append(under.waiters, w)
	f.waiting++
	f.of[who]++
	return nil, nil
}

// start begins a flight; nil when there is no room. f.mu is held.
func (f *flights) start(key flightKey, q *query) *flight {
	if f.ended || f.ctx.Err() != nil || !f.server.forwarder.acquire() {
		return nil
	}
	fl := &flight{flightKey: key}
	fl.query.parse(append([]byte(nil), q.packet...))
	if e := f.server.cache().get(&fl.query); e != nil && e.rcode != dns.RcodeServerFailure && f.server.cache().useful(e, f.server.now()) {
		fl.stale = e
	}
	f.open[key] = fl
	f.group.Go(func() {
		defer f.server.forwarder.release()
		f.fly(fl)
	})
	return fl
}

// awaitEnd lets no flight start any more once ctx, that of Run, ends. It is in the
// group itself, which so has somebody whenever one starts: an admin may ask in the
// moment in which Run waits for the last.
func (f *flights) awaitEnd(ctx context.Context) error {
	<-ctx.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	return nil
}

// refresh asks anew what is about to run out, for nobody in particular.
func (f *flights) refresh(r *route, q *query) {
	key := flightKey{r, cacheKey{name(q.name), q.kind, q.mode()}}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[key] == nil && f.start(key, q) != nil {
		f.server.metrics.cached.prefetch.Inc()
	}
}

// fly asks the forwarders and answers all who wait.
func (f *flights) fly(fl *flight) {
	started := time.Now()
	if fl.stale != nil && fl.stale.left(f.server.now()) <= 0 {
		late := time.AfterFunc(staleAfterWait, func() { f.overdue(fl) })
		defer late.Stop()
	}
	e, err := f.resolve(fl)
	f.server.metrics.asked.Observe(time.Since(started).Seconds())
	var why *extended
	switch {
	case err == nil:
	case f.ctx.Err() != nil:
		e = nil
	case fl.stale != nil:
		e, why = fl.stale, staleReason(fl.stale)
		e.failed.Store(f.server.now().Add(failureRecheck).UnixNano())
		e.refreshing.Store(false)
	default:
		e = failureEntry(&fl.query, reasonOf(fl.route, err), f.server.now())
		f.server.cache().put(e)
	}
	for _, w := range f.end(fl) {
		if e == nil {
			w.send(nil)
			continue
		}
		if why != nil {
			f.server.metrics.cached.stale.Inc()
		}
		f.answer(fl.route, w, e, why)
	}
}

// resolve asks the forwarders, and remembers what they say.
func (f *flights) resolve(fl *flight) (e *entry, err error) {
	defer func() {
		if bug := recover(); bug != nil {
			f.server.metrics.panics.Inc()
			f.server.log.Error("forwarding a question panicked: please report this bug", "panic", bug, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", bug)
		}
	}()
	reply, err := f.server.forwarder.resolve(f.ctx, fl.route, &fl.query)
	if err == nil {
		e, err = f.pack(fl, reply)
	}
	if err != nil {
		f.server.log.Debug("no forwarder had an answer", "name", name(fl.query.name).String(), "error", err)
		return nil, err
	}
	if e.ttl > 0 {
		f.server.cache().put(e)
	}
	return e, nil
}

// pack makes the entry. Much is packed in turn.
func (f *flights) pack(fl *flight, reply *dns.Msg) (*entry, error) {
	if reply.Len() > maxReply {
		if err := fl.route.large.take(f.ctx); err != nil {
			return nil, err
		}
		defer fl.route.large.end()
	}
	e, err := newEntry(reply, &fl.query, f.server.now(), f.server.cache().maxTTL)
	if err == nil {
		e.domain = fl.route.label
	}
	return e, err
}

// overdue answers those who have waited long with what was known before; the
// flight goes on (RFC 8767 §5).
func (f *flights) overdue(fl *flight) {
	f.mu.Lock()
	fl.overdue = true
	waiters := fl.waiters
	fl.waiters = nil
	f.forget(waiters)
	f.mu.Unlock()
	for _, w := range waiters {
		f.server.metrics.cached.stale.Inc()
		f.answer(fl.route, w, fl.stale, staleReason(fl.stale))
	}
}

// end closes a flight and gives those who still wait.
func (f *flights) end(fl *flight) []waiter {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, fl.flightKey)
	waiters := fl.waiters
	fl.waiters = nil // overdue may come yet: its timer and the answer may be due together
	f.forget(waiters)
	return waiters
}

// forget takes those who no longer wait out of the count; f.mu is held.
func (f *flights) forget(waiters []waiter) {
	for _, w := range waiters {
		who := owner(w.client.Unmap())
		f.waiting--
		if f.of[who]--; f.of[who] == 0 {
			delete(f.of, who)
		}
	}
}

// answer sends one who asked his reply.
func (f *flights) answer(r *route, w waiter, e *entry, why *extended) {
	f.server.metrics.queries.WithLabelValues(r.label, typeLabel(w.query.kind), dns.RcodeToString[e.rcode], w.transport).Inc()
	from := fromForwarder
	if why != nil {
		from = fromStale
	}
	f.server.show(w.query, w.client, w.transport, e.rcode, r.label, from)
	w.send(e.append(nil, w.query, f.server.now(), w.limit, why))
}

// staleReason says that an answer is out of date.
func staleReason(e *entry) *extended {
	if e.rcode == dns.RcodeNameError {
		return reasonStaleNXDOMAIN
	}
	return reasonStale
}

var (
	reasonStale         = newExtended(dns.ExtendedErrorCodeStaleAnswer, "no forwarder answers: this is what was known before")
	reasonStaleNXDOMAIN = newExtended(dns.ExtendedErrorCodeStaleNXDOMAINAnswer, "no forwarder answers: this is what was known before")
)

// reasonOf says why there is no answer: the forwarder's own reason if it gave
// one.
func reasonOf(r *route, err error) *extended {
	var refusal *rcodeError
	switch {
	case errors.Is(err, errLoop):
		return reasonLoop
	case errors.As(err, &refusal):
		if refusal.why != nil {
			return refusal.why
		}
		return newExtended(dns.ExtendedErrorCodeOther, "the forwarders for "+r.label+" "+refusal.Error())
	}
	return newExtended(dns.ExtendedErrorCodeNoReachableAuthority, "no forwarder for "+r.label+" answered: "+resultOf(err))
}
