package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"holdfast/internal/health"
)

const (
	// maxForwarding bounds the questions that wait for a forwarder, each
	// with a socket of its own. One too many is SERVFAIL at once.
	maxForwarding = 512
	// holdDown is for how long a forwarder that did not answer is asked
	// only after those that did.
	holdDown = 10 * time.Second
)

// conditionForwarders is raised while no forwarder of some domain answers.
const conditionForwarders = "dns.forwarders"

// conditionLoop is raised when a forwarder sends our questions back to us.
const conditionLoop = "dns.loop"

// route is a domain with those who are asked about it.
type route struct {
	domain    name
	label     string // presentation form
	upstreams []*upstream
	timeout   time.Duration // of one try
	large     turn
	asked     atomic.Uint64
	credit    atomic.Int64 // for hedges; see mayHedge
}

// turn lets one goroutine at a time work on replies of more than maxReply
// bytes. A crafted one of 64 KiB, all records with one long name, takes the
// library 0.1 s: whoever asks for many of those gets one processor at most.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a large reply waits for its turn: %w", ctx.Err())
	}
}

func (t turn) end() { <-t }

func newRoute(domain name, servers []netip.AddrPort, timeout time.Duration) *route {
	r := &route{domain: domain, label: domain.String(), timeout: timeout, large: make(turn, 1)}
	r.credit.Store(maxCredit)
	for _, s := range servers {
		r.upstreams = append(r.upstreams, &upstream{addr: s, label: s.String(), large: r.large})
	}
	return r
}

// silent tells whether none of the route's forwarders answered when it was
// last asked.
func (r *route) silent(now time.Time) bool {
	return !slices.ContainsFunc(r.upstreams, func(u *upstream) bool { return u.downUntil.Load() <= now.UnixNano() })
}

// How forwarders are chosen by what they take. Small differences are noise,
// and the configured order stands.
const (
	slowFactor   = 2 // slower than the fastest by this and slowMargin: asked later
	slowMargin   = 5 * time.Millisecond
	exploreEvery = 32 // of so many questions one is also put to another, to measure it
	minHedge     = 20 * time.Millisecond
	hedgeCost    = 10  // of the credit that each question adds one to: hedges are a tenth
	maxCredit    = 100 // ten hedges in a row
)

// tries lists whom to ask, in order: as configured, but those that are much
// slower than the fastest later, and those that lately did not answer last;
// those that lead back to us not at all. A single forwarder is asked twice, for UDP loses packets.
func (r *route) tries(now time.Time) []*upstream {
	fastest := time.Duration(0)
	for _, u := range r.upstreams {
		took := time.Duration(u.latency.Load())
		if took > 0 && !u.down(now) && (fastest == 0 || took < fastest) {
			fastest = took
		}
	}
	rank := func(u *upstream) int {
		return 2*boolInt(u.down(now)) + boolInt(time.Duration(u.latency.Load()) > slowFactor*fastest+slowMargin)
	}
	order := slices.Clone(r.upstreams)
	slices.SortStableFunc(order, func(a, b *upstream) int { return rank(a) - rank(b) })
	order = slices.DeleteFunc(order, func(u *upstream) bool { return u.looping.Load() })
	if len(order) == 1 {
		order = append(order, order[0])
	}
	return order
}

func (u *upstream) down(now time.Time) bool { return u.downUntil.Load() > now.UnixNano() }

// hedgeAfter is how long the first forwarder is waited for before the second
// is asked too: well beyond what it takes mostly.
func (r *route) hedgeAfter(u *upstream) time.Duration {
	took := time.Duration(u.latency.Load())
	if took == 0 {
		return r.timeout / 2
	}
	return min(max(3*took+slowMargin, minHedge), r.timeout/2)
}

// earn counts a question; every so often it tells to explore.
func (r *route) earn() (explore bool) {
	if r.credit.Add(1) > maxCredit {
		r.credit.Store(maxCredit)
	}
	return r.asked.Add(1)%exploreEvery == exploreEvery/2
}

// mayHedge tells whether a question may be put to a second forwarder before
// the first has failed: for a tenth of the questions, so that forwarders that
// are all slow are not asked twice as much.
func (r *route) mayHedge() bool {
	if r.credit.Add(-hedgeCost) < 0 {
		r.credit.Add(hedgeCost)
		return false
	}
	return true
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// forwarder asks others what this server is not responsible for.
type forwarder struct {
	log     *slog.Logger
	metrics *metrics
	board   *health.Board
	now     func() time.Time
	inUse   func(*route) bool
	slots   chan struct{}

	mu     sync.Mutex
	silent map[*route]string // what its forwarders failed with
	looped map[*route]string // who sent our own questions back
}

func newForwarder(log *slog.Logger, m *metrics, board *health.Board, now func() time.Time, inUse func(*route) bool) *forwarder {
	return &forwarder{
		log: log, metrics: m, board: board, now: now, inUse: inUse,
		slots: make(chan struct{}, maxForwarding), silent: map[*route]string{}, looped: map[*route]string{},
	}
}

// acquire takes one of the slots; release gives it back.
func (f *forwarder) acquire() bool {
	select {
	case f.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (f *forwarder) release() { <-f.slots }

// resolve asks the route's forwarders until one of them has an answer: data,
// NODATA or NXDOMAIN. The next is asked when one has failed, or takes much
// longer than it mostly does; the first answer counts. It blocks for at most
// two timeouts of the route, or until ctx ends, and leaves nothing behind. An
// error means that none had an answer.
func (f *forwarder) resolve(ctx context.Context, r *route, q *query) (*dns.Msg, error) {
	race := &race{forwarder: f, route: r, query: q, order: r.tries(f.now()), results: make(chan outcome, maxForwarders)}
	defer race.running.Wait()
	ctx, cancel := context.WithTimeout(ctx, 2*r.timeout)
	defer cancel()
	reply, err := race.run(ctx)
	switch {
	case err == nil:
		f.spoke(r)
		return reply, nil
	case ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, ctx.Err() // we are ending: no forwarder's fault
	case race.heard:
		f.spoke(r) // it lives, though it had no answer to this question
	case r.silent(f.now()):
		f.fellSilent(r, err)
	}
	return nil, err
}

// rcodeError is a reply that is no answer.
type rcodeError struct {
	rcode int
	why   *extended // the forwarder's reason; nil: it gave none
}

func (e *rcodeError) Error() string { return "answered " + dns.RcodeToString[e.rcode] }

// try asks one forwarder, within one timeout. It counts as silent when nothing
// at all came from it meanwhile: what it has no answer to in time may be the
// fault of those behind it.
func (f *forwarder) try(ctx context.Context, r *route, u *upstream, q *query) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	started, heard := time.Now(), u.heard.Load()
	reply, err := u.ask(ctx, q, true)
	if err == nil && (reply.Rcode == dns.RcodeFormatError || reply.Rcode == dns.RcodeNotImplemented) {
		reply, err = u.ask(ctx, q, false) // a server older than EDNS (RFC 6891 §6.2.2)
	}
	f.metrics.forwardDuration.WithLabelValues(u.label).Observe(time.Since(started).Seconds())
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		u.measured(time.Since(started), false)
		return nil, err // another was faster, or we are ending
	}
	if u.heard.Load() != heard {
		u.downUntil.Store(0)
		u.measured(time.Since(started), err == nil)
	} else {
		u.downUntil.Store(f.now().Add(holdDown).UnixNano())
	}
	if err == nil && !isAnswer(reply) {
		err = &rcodeError{reply.Rcode, extendedOf(reply)}
	}
	f.metrics.forwarded.WithLabelValues(u.label, resultOf(err)).Inc()
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// resultOf names an outcome for metrics.
func resultOf(err error) string {
	var refusal *rcodeError
	var timeout interface{ Timeout() bool }
	switch {
	case err == nil:
		return "answered"
	case errors.As(err, &refusal):
		if s, ok := dns.RcodeToString[refusal.rcode]; ok {
			return strings.ToLower(s)
		}
		return "rcode"
	case errors.Is(err, errMalformed):
		return "malformed"
	case errors.Is(err, errStray):
		return "forged"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return "unreachable"
}

// fellSilent raises the condition for a domain none of whose forwarders gave
// any reply; spoke clears it.
func (f *forwarder) fellSilent(r *route, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.inUse(r) {
		return // the cluster file changed meanwhile, and nobody would clear it
	}
	if _, had := f.silent[r]; !had {
		f.log.Warn("no forwarder answers", "domain", r.label, "error", err)
	}
	f.silent[r] = strings.ReplaceAll(err.Error(), "\n", "; ")
	f.raise()
}

func (f *forwarder) spoke(r *route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, had := f.silent[r]; !had {
		return
	}
	delete(f.silent, r)
	f.log.Info("a forwarder answers again", "domain", r.label)
	f.raise()
}

// showLoops raises or clears the condition for a route whose forwarders lead
// back to us.
func (f *forwarder) showLoops(r *route) {
	var looping []string
	for _, u := range r.upstreams {
		if u.looping.Load() {
			looping = append(looping, u.label)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, had := f.looped[r]
	switch {
	case len(looping) == 0 || !f.inUse(r):
		delete(f.looped, r)
	default:
		if !had {
			f.log.Warn("forwarders send our own questions back to us: they are not asked any more", "domain", r.label, "forwarders", looping)
		}
		f.looped[r] = strings.Join(looping, ", ")
	}
	f.raise()
}

// forget drops what is known of routes that a new cluster file replaced.
func (f *forwarder) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, known := range []map[*route]string{f.silent, f.looped} {
		maps.DeleteFunc(known, func(r *route, _ string) bool { return !f.inUse(r) })
	}
	f.raise()
}

// raise shows the conditions as they are now; f.mu is held.
func (f *forwarder) raise() {
	f.show(conditionForwarders, f.silent, "no forwarder answers for %s: names outside the cluster do not resolve. Check the link to them, or dns.forward in the cluster file")
	f.show(conditionLoop, f.looped, "forwarders for %s send this server's own questions back to it, and are not asked any more: take this cluster out of what they forward to, or them out of dns.forward")
}

func (f *forwarder) show(condition string, routes map[*route]string, message string) {
	if len(routes) == 0 {
		f.board.Clear(condition)
		return
	}
	var parts []string
	for r, detail := range routes {
		parts = append(parts, fmt.Sprintf("%s (%s)", r.label, detail))
	}
	slices.Sort(parts)
	f.board.Raise(condition, health.Error, fmt.Sprintf(message, strings.Join(parts, ", ")))
}
