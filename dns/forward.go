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

// route is a domain with those who are asked about it.
type route struct {
	domain    name
	label     string // presentation form
	upstreams []*upstream
	timeout   time.Duration // of one try
	large     turn
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

// tries lists whom to ask, in order: as configured, those that lately did not
// answer behind the others. A single forwarder is asked twice, for UDP loses
// packets.
func (r *route) tries(now time.Time) []*upstream {
	order := slices.Clone(r.upstreams)
	slices.SortStableFunc(order, func(a, b *upstream) int {
		return boolInt(a.downUntil.Load() > now.UnixNano()) - boolInt(b.downUntil.Load() > now.UnixNano())
	})
	if len(order) == 1 {
		order = append(order, order[0])
	}
	return order
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
}

func newForwarder(log *slog.Logger, m *metrics, board *health.Board, now func() time.Time, inUse func(*route) bool) *forwarder {
	return &forwarder{
		log: log, metrics: m, board: board, now: now, inUse: inUse,
		slots: make(chan struct{}, maxForwarding), silent: map[*route]string{},
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

// resolve asks the route's forwarders in turn until one of them has an answer:
// data, NODATA or NXDOMAIN. It blocks for at most two timeouts of the route,
// or until ctx ends. An error means that none had.
func (f *forwarder) resolve(ctx context.Context, r *route, q *query) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*r.timeout)
	defer cancel()
	var failures []error
	heard := false
	for _, u := range r.tries(f.now()) {
		reply, err := f.try(ctx, r, u, q)
		if err == nil {
			f.spoke(r)
			return reply, nil
		}
		if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, ctx.Err() // we are ending: no forwarder's fault
		}
		var refusal *rcodeError
		heard = heard || errors.As(err, &refusal)
		failures = append(failures, fmt.Errorf("%s: %w", u.label, err))
		if ctx.Err() != nil {
			break
		}
	}
	err := errors.Join(failures...)
	switch {
	case heard:
		f.spoke(r) // it lives, though it had no answer to this question
	case r.silent(f.now()):
		f.fellSilent(r, err)
	}
	return nil, err
}

// rcodeError is a reply that is no answer.
type rcodeError struct{ rcode int }

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
	if u.heard.Load() != heard {
		u.downUntil.Store(0)
	} else {
		u.downUntil.Store(f.now().Add(holdDown).UnixNano())
	}
	if err == nil && !isAnswer(reply) {
		err = &rcodeError{reply.Rcode}
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

// forget drops what is known of routes that a new cluster file replaced.
func (f *forwarder) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.silent, func(r *route, _ string) bool { return !f.inUse(r) })
	f.raise()
}

// raise shows the condition as it is now; f.mu is held.
func (f *forwarder) raise() {
	if len(f.silent) == 0 {
		f.board.Clear(conditionForwarders)
		return
	}
	var parts []string
	for r, failed := range f.silent {
		parts = append(parts, fmt.Sprintf("%s (%s)", r.label, failed))
	}
	slices.Sort(parts)
	f.board.Raise(conditionForwarders, health.Error, "no forwarder answers for "+strings.Join(parts, ", ")+
		": names outside the cluster do not resolve. Check the link to them, or dns.forward in the cluster file")
}
