package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"holdfast/internal/state"
)

// Question is a question that the server puts to itself.
type Question struct {
	Name string // as people write it; in full
	Type string // "A", "TYPE65" ...; empty: A
	// From is the client to answer as: what is forwarded, whose instance
	// comes first, depend on it. Zero: this machine.
	From netip.Addr
	TCP  bool
}

// errQuestion is a Question that can't be asked.
var errQuestion = errors.New("not a question")

// pack gives the question as a client would send it.
func (a *Question) pack() ([]byte, error) {
	if _, err := parseName(a.Name); err != nil {
		return nil, fmt.Errorf("%w: %w", errQuestion, err)
	}
	kind, ok := dns.StringToType[strings.ToUpper(a.Type)]
	if number, err := fmt.Sscanf(strings.ToUpper(a.Type), "TYPE%d", &kind); a.Type == "" {
		kind = dns.TypeA
	} else if !ok && (err != nil || number != 1) {
		return nil, fmt.Errorf("%w: %q is no type; write A, AAAA, SRV, TYPE65 or the like", errQuestion, a.Type)
	}
	if kind == dns.TypeAXFR || kind == dns.TypeIXFR {
		return nil, fmt.Errorf("%w: `holdfast dns zone ZONE` prints a whole zone", errQuestion)
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(a.Name), kind)
	m.SetEdns0(maxUDP, false)
	return m.Pack()
}

func (a *Question) client() netip.Addr {
	if a.From.IsValid() {
		return a.From
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func (a *Question) transport() string {
	if a.TCP {
		return overTCP
	}
	return overUDP
}

// Reply is what a client is answered.
type Reply struct {
	Rcode   string   `json:"rcode"`
	Flags   []string `json:"flags"`
	Why     []string `json:"why,omitempty"` // extended errors (RFC 8914)
	Answer  []string `json:"answer"`
	Ns      []string `json:"authority,omitempty"`
	Extra   []string `json:"additional,omitempty"`
	Bytes   int      `json:"bytes"`
	Seconds float64  `json:"seconds"`
	Trace   []string `json:"trace,omitempty"` // how it came about
}

// Ask answers a question the way a client's is, forwarders included, and
// counts it among them. It blocks until there is an answer or ctx ends. The
// error wraps errQuestion when the question is wrong.
func (s *Server) Ask(ctx context.Context, a Question) (*Reply, error) {
	packet, err := a.pack()
	if err != nil {
		return nil, err
	}
	started := time.Now()
	w := s.newWorker(a.transport())
	wire, forward := w.handle(nil, packet, a.client())
	w.counters.flush()
	if forward != nil {
		flights := s.flights.Load()
		if flights == nil {
			return nil, errors.New("dns: the server has not begun to serve")
		}
		came := make(chan []byte, 1)
		flights.ask(forward, w.onward, packet, a.client(), a.transport(), func(reply []byte) { came <- reply })
		select {
		case wire = <-came:
		case <-ctx.Done():
			return nil, fmt.Errorf("dns: no forwarder had an answer: %w", ctx.Err())
		}
	}
	if len(wire) == 0 {
		return nil, errors.New("dns: such a question gets no answer")
	}
	r, err := readable(wire)
	if err == nil {
		r.Seconds = time.Since(started).Seconds()
	}
	return r, err
}

// readable turns a message into text.
func readable(wire []byte) (*Reply, error) {
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		return nil, fmt.Errorf("dns: our own answer can't be read: please report this bug: %w", err)
	}
	r := &Reply{Rcode: dns.RcodeToString[m.Rcode], Flags: []string{}, Answer: texts(m.Answer), Ns: texts(m.Ns), Extra: texts(m.Extra), Bytes: len(wire)}
	for _, flag := range []struct {
		name string
		set  bool
	}{{"aa", m.Authoritative}, {"tc", m.Truncated}, {"rd", m.RecursionDesired}, {"ra", m.RecursionAvailable}, {"ad", m.AuthenticatedData}} {
		if flag.set {
			r.Flags = append(r.Flags, flag.name)
		}
	}
	if opt := m.IsEdns0(); opt != nil {
		for _, option := range opt.Option {
			if why, ok := option.(*dns.EDNS0_EDE); ok {
				r.Why = append(r.Why, fmt.Sprintf("%s: %s", dns.ExtendedErrorCodeToString[why.InfoCode], why.ExtraText))
			}
		}
	}
	return r, nil
}

// texts gives records as in a zone file, without the OPT.
func texts(rrs []dns.RR) []string {
	list := []string{}
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			list = append(list, strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	return list
}

// Trace answers as Ask does and tells how the answer comes about: who is
// responsible, what the catalog says of each instance, what the cache holds,
// what each forwarder answers, which are all asked.
func (s *Server) Trace(ctx context.Context, a Question) (*Reply, error) {
	packet, err := a.pack()
	if err != nil {
		return nil, err
	}
	t := &tracer{server: s, table: s.table.Load(), snap: s.state.Snapshot(), client: a.client()}
	t.query.parse(packet)
	t.explain(ctx)
	r, err := s.Ask(ctx, a)
	if err == nil {
		r.Trace = t.steps
	}
	return r, err
}

// tracer collects the steps to one answer.
type tracer struct {
	server *Server
	table  *table
	snap   *state.Snapshot
	client netip.Addr
	query  query
	steps  []string
}

func (t *tracer) stepf(format string, args ...any) {
	t.steps = append(t.steps, fmt.Sprintf(format, args...))
}

func (t *tracer) explain(ctx context.Context) {
	a := t.table.lookup(&t.query, t.server.isConfirmed)
	route := a.route
	switch {
	case a.delegation != nil:
		t.stepf("delegated by the zone %s to the servers of %s", a.zone.label, a.delegation.origin)
	case a.route != nil:
		t.stepf("no zone of this server: forwarded, as all of %s", a.route.label)
	case a.zone != nil:
		t.stepf("in the zone %s, serial %d", a.zone.label, a.zone.serial)
	default:
		t.stepf("no zone of this server, and not forwarded")
	}
	if a.zone != nil && a.zone.catalog {
		t.catalog()
	}
	if a.links > 0 || a.onward != nil {
		t.stepf("an alias: %d steps of it are known here", a.links+boolInt(a.onward != nil))
	}
	if a.onward != nil {
		route = a.onward
		target := query{}
		target.parse(t.aliased(name(t.query.target[:a.onwardLen])))
		t.stepf("it leads to %s, which is forwarded, as all of %s", name(target.name), route.label)
		t.forwarded(ctx, route, &target)
		return
	}
	if route != nil {
		t.forwarded(ctx, route, &t.query)
	}
}

// aliased is the question about what an alias leads to.
func (t *tracer) aliased(target name) []byte {
	m := new(dns.Msg)
	m.SetQuestion(target.String(), t.query.kind)
	wire, _ := m.Pack() // a name that was packed before
	return wire
}

// catalog tells how old the state is, and how the service in the name fares.
func (t *tracer) catalog() {
	if age, ok := t.snap.Age(t.server.now()); ok {
		t.stepf("from the catalog at index %d, confirmed by a leader %v ago", t.snap.Index(), age.Round(time.Millisecond))
	} else {
		t.stepf("from the catalog at index %d, not confirmed by a leader since the start", t.snap.Index())
	}
	services, _ := t.snap.ServiceNames(nil)
	labels := labelsOf(name(t.query.name))
	for service := range services {
		folded := state.Fold(service)
		if slices.Contains(labels, folded) || slices.Contains(labels, "_"+folded) {
			t.service(service)
		}
	}
}

// labelsOf splits a name.
func labelsOf(n name) (labels []string) {
	for rest := string(n); len(rest) > 1; rest = rest[1+int(rest[0]):] {
		labels = append(labels, rest[1:1+int(rest[0])])
	}
	return labels
}

func (t *tracer) service(service string) {
	all, _ := t.snap.Instances(nil, service)
	for _, i := range all {
		t.stepf("%s on %s (%v): %s", i.Service.ID, i.Node.Name, netip.AddrPortFrom(i.Addr(), i.Service.Port), t.health(i))
	}
}

// health says why an instance is answered, or not.
func (t *tracer) health(i state.Instance) string {
	parts := []string{string(i.Status())}
	for _, c := range i.Checks {
		if c.Status != state.Passing {
			parts = append(parts, fmt.Sprintf("%s is %s: %s", c.ID, c.Status, strings.Join(strings.Fields(c.Output), " ")))
		}
	}
	if m, known := t.snap.Member(i.Node.Name); known && m.Liveness != state.Alive {
		parts = append(parts, "the gossip says that its node is "+string(m.Liveness))
	}
	return strings.Join(parts, "; ")
}

// forwarded tells what the cache has, and what each forwarder says now.
func (t *tracer) forwarded(ctx context.Context, r *route, q *query) {
	if !t.table.trusts(t.client) {
		t.stepf("not for %v: it is outside dns.allow_recursion", t.client)
		return
	}
	now := t.server.now()
	switch e := t.server.cache().get(q); {
	case e == nil:
		t.stepf("not in the cache")
	case e.left(now) > 0:
		t.stepf("in the cache: %s, for %v more, used %d times", dns.RcodeToString[e.rcode], e.left(now).Round(time.Second), e.hits.Load())
	default:
		t.stepf("in the cache, and out of date since %v ago", (-e.left(now)).Round(time.Second))
	}
	for _, u := range slices.Compact(r.tries(now)) {
		t.forwarder(ctx, r, u, q)
	}
	for _, u := range r.upstreams {
		if u.looping.Load() {
			t.stepf("forwarder %s: sends our own questions back, and is not asked", u.label)
		}
	}
}

func (t *tracer) forwarder(ctx context.Context, r *route, u *upstream, q *query) {
	was := "not measured yet"
	if took := time.Duration(u.latency.Load()); took > 0 {
		was = "takes " + took.Round(10*time.Microsecond).String()
	}
	if u.down(t.server.now()) {
		was += ", was silent lately"
	}
	started := time.Now()
	reply, err := t.server.forwarder.try(ctx, r, u, q)
	took := time.Since(started).Round(10 * time.Microsecond)
	if err != nil {
		t.stepf("forwarder %s (%s): %s after %v: %v", u.label, was, resultOf(err), took, err)
		return
	}
	t.stepf("forwarder %s (%s): %s, %d records, in %v", u.label, was, dns.RcodeToString[reply.Rcode], len(reply.Answer), took)
}
