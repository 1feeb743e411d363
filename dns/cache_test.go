package dns

import (
	"context"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"holdfast/lab/stall"
)

// caching is a server with a cache, in a time that a test alone moves on: how long
// the machine takes for what is in between does not matter.
type caching struct {
	*fixture
	server netip.AddrPort
	ahead  atomic.Int64 // of when it was made
}

// newCaching makes one that forwards everything to the upstreams, without hedges.
func newCaching(t testing.TB, timeout time.Duration, upstreams ...*fakeUpstream) *caching {
	t.Helper()
	var list []string
	for _, u := range upstreams {
		list = append(list, fmt.Sprintf("%q", u.addr))
	}
	file := testCluster(t, fmt.Sprintf("dns: {forward: {\".\": [%s]}, forward_timeout: %v}\n", strings.Join(list, ", "), timeout))
	c := &caching{fixture: newFixtureListening(t, file, newCatalog(t), loopbackPort)}
	made := time.Now()
	c.fixture.server.now = func() time.Time { return made.Add(time.Duration(c.ahead.Load())) }
	c.fixture.server.forwarder.now = c.fixture.server.now
	c.hedging(never)
	c.server = serve(t, c.fixture)
	return c
}

func (c *caching) pass(d time.Duration) { c.ahead.Add(int64(d)) }

func (c *caching) query(name string, kind uint16, change ...func(*dns.Msg)) *dns.Msg {
	c.t.Helper()
	m := question(name, kind)
	for _, f := range change {
		f(m)
	}
	return exchangeWith(c.t, "udp", c.server, m)
}

func (c *caching) counted(result string) float64 {
	return metric(c.t, c.fixture, "holdfast_dns_cache_total", result)
}

func withEDNS(m *dns.Msg) { m.SetEdns0(1232, false) }

const noReason = 65535

// why is the extended error of a reply; noReason without one.
func why(m *dns.Msg) uint16 {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return e.InfoCode
			}
		}
	}
	return noReason
}

// zoneOf answers as an authoritative server would: by the first label.
func zoneOf(t testing.TB) reply {
	soa := "example.com. %d IN SOA ns.example.com. hostmaster.example.com. 1 2 3 4 %d"
	return message(func(m *dns.Msg) {
		add := func(to *[]dns.RR, text string, args ...any) {
			rr, err := dns.NewRR(fmt.Sprintf(text, args...))
			if err != nil {
				t.Error(err)
			}
			*to = append(*to, rr)
		}
		n := m.Question[0].Name
		switch first, _, _ := strings.Cut(strings.ToLower(n), "."); first {
		case "absent":
			m.Rcode = dns.RcodeNameError
			add(&m.Ns, soa, 100, 50)
		case "empty":
			add(&m.Ns, soa, 20, 50)
		case "nosoa":
			m.Rcode = dns.RcodeNameError
		case "forever":
			add(&m.Ns, soa, 1<<30, 1<<30)
		case "zero":
			add(&m.Answer, "%s 0 IN A 198.51.100.7", n)
		case "alias":
			add(&m.Answer, "%s 300 IN CNAME other.example.com.", n)
			add(&m.Answer, "other.example.com. 40 IN A 198.51.100.7")
		case "lost":
			m.Rcode = dns.RcodeServerFailure
		default:
			add(&m.Answer, "%s 60 IN A 198.51.100.7", n)
		}
	})
}

func TestAnswersAreRememberedForAsLongAsTheySay(t *testing.T) {
	u := newUpstream(t, zoneOf(t))
	c := newCaching(t, maxForwardTimeout, u)
	for _, test := range []struct {
		name  string
		rcode int
		keep  time.Duration // 0: not at all
	}{
		{"www.example.com", dns.RcodeSuccess, 60 * time.Second},
		{"alias.example.com", dns.RcodeSuccess, 40 * time.Second},
		{"absent.example.com", dns.RcodeNameError, 50 * time.Second}, // the SOA's minimum
		{"empty.example.com", dns.RcodeSuccess, 20 * time.Second},    // its TTL
		{"forever.example.com", dns.RcodeSuccess, time.Hour},         // RFC 2308 §5's bound
		{"nosoa.example.com", dns.RcodeNameError, 0},                 // RFC 2308 §5
		{"zero.example.com", dns.RcodeSuccess, 0},
		{"lost.example.com", dns.RcodeServerFailure, failureTTL * time.Second}, // RFC 9520
	} {
		asked := func() int64 {
			before := u.asked.Load()
			if m := c.query(test.name, dns.TypeA); m.Rcode != test.rcode {
				t.Errorf("%s: %v", test.name, m)
			}
			return u.asked.Load() - before
		}
		if asked() == 0 {
			t.Errorf("%s: not asked for at first", test.name)
		}
		if test.keep == 0 {
			if asked() == 0 {
				t.Errorf("%s: remembered", test.name)
			}
			continue
		}
		c.pass(test.keep - time.Second)
		if n := asked(); n != 0 {
			t.Errorf("%s: asked for again within %v", test.name, test.keep)
		}
		c.pass(2 * time.Second)
		if asked() == 0 {
			t.Errorf("%s: still remembered after %v", test.name, test.keep)
		}
	}
}

func TestRememberedAnswerIsTheClients(t *testing.T) {
	c := newCaching(t, maxForwardTimeout, newUpstream(t, zoneOf(t)))
	c.query("www.example.com", dns.TypeA)
	c.pass(10 * time.Second)
	m := c.query("WWW.example.COM", dns.TypeA, func(m *dns.Msg) { m.CheckingDisabled = false; m.SetEdns0(1232, false) })
	if m.Question[0].Name != "WWW.example.COM." || len(m.Answer) != 1 || m.Answer[0].Header().Name != "WWW.example.COM." {
		t.Errorf("the case of the question: %v", m)
	}
	if ttl := m.Answer[0].Header().Ttl; ttl > 50 || ttl < 45 {
		t.Errorf("TTL %d after 10 s of 60", ttl)
	}
	if m.Authoritative || !m.RecursionAvailable || m.IsEdns0() == nil {
		t.Errorf("%v", m)
	}
	if hits := c.counted("hit"); hits != 1 {
		t.Errorf("%v hits", hits)
	}
}

// What a validating stub asks for, and what one without gets, are two answers.
func TestFlagsOfDNSSECHaveAnswersOfTheirOwn(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	u := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte {
		q := new(dns.Msg)
		_ = q.Unpack(p)
		mu.Lock()
		seen[fmt.Sprintf("do=%v cd=%v ad=%v", q.IsEdns0().Do(), q.CheckingDisabled, q.AuthenticatedData)]++
		mu.Unlock()
		return message(func(m *dns.Msg) {
			answering(7, 1)(m)
			m.AuthenticatedData = !q.CheckingDisabled
		})(p, from, transport)
	})
	c := newCaching(t, maxForwardTimeout, u)
	do, cd := func(m *dns.Msg) { m.SetEdns0(1232, true) }, func(m *dns.Msg) { m.CheckingDisabled = true }
	ad := func(m *dns.Msg) { m.AuthenticatedData = true }
	for range 2 {
		if m := c.query("www.example.com", dns.TypeA); m.AuthenticatedData {
			t.Error("AD for who did not ask")
		}
		if m := c.query("www.example.com", dns.TypeA, ad); !m.AuthenticatedData {
			t.Error("no AD for who asked")
		}
		if m := c.query("www.example.com", dns.TypeA, do); !m.AuthenticatedData || !m.IsEdns0().Do() {
			t.Errorf("DO: %v", m)
		}
		if m := c.query("www.example.com", dns.TypeA, do, cd); m.AuthenticatedData || !m.CheckingDisabled {
			t.Errorf("DO and CD: %v", m)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	want := map[string]int{"do=false cd=false ad=true": 1, "do=true cd=false ad=true": 1, "do=true cd=true ad=true": 1}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("what the forwarder was asked (-want +got):\n%s", diff)
	}
}

// RFC 8767: the organisation's link is down, the cluster goes on.
func TestStaleAnswersWhileNoForwarderAnswers(t *testing.T) {
	t.Parallel() // it waits for silence
	var dead atomic.Bool
	u := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte {
		if dead.Load() {
			return nil
		}
		return zoneOf(t)(p, from, transport)
	})
	const silence = 800 * time.Millisecond // a flight fails within twice that, before its stale answer is overdue
	c := newCaching(t, silence, u)
	c.hedging(maxCredit) // so that a silence takes one timeout and not two
	machine := stall.Test(t, "")
	// One that answers is heard, unless the machine stands still meanwhile.
	heard := func(name string, ttl uint32) {
		t.Helper()
		machine.Repeat(t, name+" from a forwarder that answers", 3, silence/2, func() (from, to time.Time, missed error) {
			c.pass(failureRecheck)
			from = time.Now()
			m := c.query(name, dns.TypeA, withEDNS)
			rrs := slices.Concat(m.Answer, m.Ns)
			if len(rrs) != 1 || rrs[0].Header().Ttl != ttl || why(m) != noReason {
				missed = fmt.Errorf("%v", m)
			}
			return from, time.Now(), missed
		})
	}
	heard("www.example.com", 60)
	heard("absent.example.com", 100)
	dead.Store(true)
	c.pass(2 * time.Minute)
	began := time.Now()
	m := c.query("www.example.com", dns.TypeA, withEDNS)
	machine.Judge(t, "the end of a flight that fails", 2*silence, began, time.Now())
	if len(m.Answer) != 1 || m.Answer[0].Header().Ttl != staleTTL || why(m) != dns.ExtendedErrorCodeStaleAnswer {
		t.Errorf("%v", m)
	}
	if m := c.query("absent.example.com", dns.TypeA, withEDNS); m.Rcode != dns.RcodeNameError || why(m) != dns.ExtendedErrorCodeStaleNXDOMAINAnswer {
		t.Errorf("%v", m)
	}
	flights := c.fixture.server.flights.Load()
	eventually(t, "the forwarder is waited for no more", func() bool {
		flights.mu.Lock()
		defer flights.mu.Unlock()
		return len(flights.open) == 0
	})
	asked := u.asked.Load()
	began = time.Now()
	if m := c.query("www.example.com", dns.TypeA); len(m.Answer) != 1 || u.asked.Load() != asked {
		t.Errorf("a moment later: %v", m)
	}
	machine.Judge(t, "the answer a moment later", silence/2, began, time.Now())
	if m := c.query("new.example.com", dns.TypeA, withEDNS); m.Rcode != dns.RcodeServerFailure || why(m) != dns.ExtendedErrorCodeNoReachableAuthority {
		t.Errorf("what was never known: %v", m)
	}
	dead.Store(false)
	heard("www.example.com", 60)
	dead.Store(true)
	c.pass(defaultCacheStale + time.Hour)
	if m := c.query("www.example.com", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("after days: %v", m)
	}
}

func TestSlowForwarderIsNotWaitedForWhereAStaleAnswerIs(t *testing.T) {
	t.Parallel() // it waits for silence
	var dead atomic.Bool
	u := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte {
		if dead.Load() {
			return nil
		}
		return zoneOf(t)(p, from, transport)
	})
	c := newCaching(t, 10*time.Second, u)
	c.query("www.example.com", dns.TypeA)
	dead.Store(true)
	c.pass(2 * time.Minute)
	machine := stall.Test(t, "")
	began := time.Now()
	m := c.query("www.example.com", dns.TypeA, withEDNS)
	ended := time.Now()
	if took := ended.Sub(began); len(m.Answer) != 1 || why(m) != dns.ExtendedErrorCodeStaleAnswer || took < staleAfterWait {
		t.Errorf("after %v: %v", took, m)
	}
	machine.Judge(t, "the answer", 2*staleAfterWait, began, ended)
	// Who comes next, and is the first to, does not wait.
	began = time.Now()
	if m := c.query("www.example.com", dns.TypeA); len(m.Answer) != 1 {
		t.Errorf("the next: %v", m)
	}
	machine.Judge(t, "the next answer", staleAfterWait/2, began, time.Now())
}

func TestPopularNamesAreAskedForAgainInTime(t *testing.T) {
	u := newUpstream(t, zoneOf(t))
	c := newCaching(t, maxForwardTimeout, u)
	for range popular {
		c.query("www.example.com", dns.TypeA)
	}
	c.query("rare.example.com", dns.TypeA)
	c.pass(57 * time.Second)
	asked := u.asked.Load()
	c.query("rare.example.com", dns.TypeA)
	for range 5 {
		if m := c.query("www.example.com", dns.TypeA); len(m.Answer) != 1 {
			t.Errorf("%v", m)
		}
	}
	eventually(t, "asked for again", func() bool { return c.query("www.example.com", dns.TypeA).Answer[0].Header().Ttl > 50 })
	if n := u.asked.Load() - asked; n != 1 || c.counted("prefetch") != 1 {
		t.Errorf("asked %d times, want once", n)
	}
}

func TestEqualQuestionsAreOne(t *testing.T) {
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	u := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte {
		<-held
		return zoneOf(t)(p, from, transport)
	})
	defer release()
	c := newCaching(t, maxForwardTimeout, u)
	const n = 40
	var clients sync.WaitGroup
	for i := range n {
		clients.Go(func() {
			name := []string{"www.example.com.", "WWW.EXAMPLE.COM."}[i%2]
			network := []string{"udp", "tcp"}[i/2%2]
			m, _, err := (&dns.Client{Net: network, Timeout: patience}).Exchange(question(name, dns.TypeA), c.server.String())
			if err != nil || len(m.Answer) != 1 || m.Question[0].Name != name {
				t.Errorf("%v: %v", err, m)
			}
		})
	}
	eventually(t, "all wait", func() bool { return c.counted("joined") == n-1 })
	release()
	clients.Wait()
	if got := u.asked.Load(); got != 1 {
		t.Errorf("the forwarder was asked %d times", got)
	}
}

func TestOneClientCannotTakeAllRoomForForwarding(t *testing.T) {
	f := newFixture(t, testCluster(t, ""), newCatalog(t))
	fl := newFlights(t.Context(), new(sync.WaitGroup), f.server)
	hog := netip.MustParseAddr("10.1.0.9")
	fl.of[owner(hog)] = maxWaitingOne
	ask := func(client netip.Addr) (got []byte) {
		r := newRoute(root, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, short)
		done := make(chan []byte, 1)
		fl.ask(r, nil, packet(t, "www.example.com", dns.TypeA, withEDNS), client, overUDP, func(b []byte) { done <- b })
		select {
		case got = <-done:
		case <-time.After(patience):
			t.Fatal("no answer")
		}
		return got
	}
	if m := f.unpack(ask(hog)); m.Rcode != dns.RcodeServerFailure || why(m) != dns.ExtendedErrorCodeNotReady {
		t.Errorf("one too many: %v", m)
	}
	if m := f.unpack(ask(netip.MustParseAddr("10.1.0.8"))); why(m) == dns.ExtendedErrorCodeNotReady {
		t.Errorf("another client: %v", m)
	}
	fl.group.Wait()
	if fl.waiting != 0 || len(fl.of) != 1 {
		t.Errorf("%d are still counted, %v", fl.waiting, fl.of)
	}
}

// TestWhoHasTheAnswerGetsNoStaleOneToo: the forwarder's answer and the time at which
// the stale one is given may come together, as after a pause of the process. An
// answer more would count its waiter twice, and of TCP end the process.
func TestWhoHasTheAnswerGetsNoStaleOneToo(t *testing.T) {
	f := newFixture(t, testCluster(t, ""), newCatalog(t))
	fl := newFlights(t.Context(), new(sync.WaitGroup), f.server)
	client, answers := netip.MustParseAddr("10.1.0.9"), 0
	w := waiter{query: new(query), client: client, transport: overUDP, limit: maxUDP, send: func([]byte) { answers++ }}
	w.query.parse(packet(t, "www.example.com", dns.TypeA, withEDNS))
	key := flightKey{newRoute(root, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, short), cacheKey{name(w.query.name), w.query.kind, w.query.mode()}}
	one := &flight{flightKey: key, stale: failureEntry(w.query, nil, f.server.now()), waiters: []waiter{w}}
	fl.open[key], fl.waiting, fl.of[owner(client)] = one, 1, 1
	if waiters := fl.end(one); len(waiters) != 1 {
		t.Errorf("%d get the answer", len(waiters))
	}
	fl.overdue(one) // its timer fired a moment before
	if answers != 0 || fl.waiting != 0 || len(fl.of) != 0 {
		t.Errorf("%d stale answers beside it, %d are still counted, %v", answers, fl.waiting, fl.of)
	}
}

// TestNothingStartsOnceTheEndWaits: an admin's question may come while Run waits
// for the last flight, or after.
func TestNothingStartsOnceTheEndWaits(t *testing.T) {
	f := newFixture(t, testCluster(t, ""), newCatalog(t))
	fl := newFlights(context.Background(), new(sync.WaitGroup), f.server)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := fl.awaitEnd(ctx); err != nil {
		t.Fatal(err)
	}
	var got []byte
	r := newRoute(root, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, short)
	fl.ask(r, nil, packet(t, "www.example.com", dns.TypeA, withEDNS), netip.MustParseAddr("10.1.0.9"), overUDP, func(b []byte) { got = b })
	if m := f.unpack(got); m.Rcode != dns.RcodeServerFailure || len(fl.open) != 0 {
		t.Errorf("%v, %d under way", m, len(fl.open))
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache(cacheSettings{bytes: 1 << 20, maxTTL: time.Hour})
	now := time.Unix(1_700_000_000, 0)
	for i := range 20_000 {
		n, _ := root.child(fmt.Sprintf("n%d", i))
		e := &entry{key: cacheKey{n, dns.TypeA, 0}, wire: make([]byte, 100), stored: now, ttl: 60}
		e.used.Store(int64(i))
		c.put(e)
	}
	entries, bytes := c.usage()
	if bytes > 1<<20 || bytes < 1<<19 || entries == 0 {
		t.Errorf("%d entries of %d bytes in a cache of 1 MiB", entries, bytes)
	}
	young := 0
	c.each(func(e *entry) {
		if e.used.Load() >= 15_000 {
			young++
		}
	})
	if young < entries*3/4 {
		t.Errorf("of %d entries %d are of the youngest quarter", entries, young)
	}
	for range cacheShards {
		c.sweep(now.Add(2 * time.Minute))
	}
	if entries, bytes := c.usage(); entries != 0 || bytes != 0 {
		t.Errorf("%d entries of %d bytes are left when all are over", entries, bytes)
	}
}

func TestCachedAnswersDoNotAllocate(t *testing.T) {
	c := newCaching(t, maxForwardTimeout, newUpstream(t, zoneOf(t)))
	w, out := c.fixture.server.newWorker(overUDP), make([]byte, 0, maxUDP)
	for _, n := range []string{"www.example.com", "alias.example.com", "absent.example.com"} {
		c.query(n, dns.TypeA)
		asked := packet(t, n, dns.TypeA, withCookie("0123456789abcdef"))
		if reply, _ := w.handle(out, asked, loopback); len(reply) == 0 {
			t.Fatalf("%s is not remembered", n)
		}
		if n := testing.AllocsPerRun(100, func() { w.handle(out, asked, loopback) }); n != 0 {
			t.Errorf("%q: %v allocations", asked[12:], n)
		}
	}
}

func TestCacheIsShownAndFlushed(t *testing.T) {
	c := newCaching(t, maxForwardTimeout, newUpstream(t, zoneOf(t)))
	for _, n := range []string{"www.example.com", "absent.example.com", "www.example.org"} {
		c.query(n, dns.TypeA)
	}
	c.query("www.example.com", dns.TypeA)
	do := func(method, path string) string {
		w := httptest.NewRecorder()
		c.fixture.server.Handler().ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return strings.TrimSpace(w.Body.String())
	}
	dump := c.fixture.server.CacheDump("\x07example\x03com\x00")
	if len(dump) != 2 || dump[0].Name != "absent.example.com." || dump[0].Rcode != "NXDOMAIN" || dump[1].Hits != 1 || dump[1].Records != 1 || dump[1].Domain != "." || dump[1].Left < 50 {
		t.Errorf("%+v", dump)
	}
	if got := do("GET", "/v1/dns/cache/stats"); !strings.Contains(got, `"entries":3`) {
		t.Errorf("%s", got)
	}
	if got := do("DELETE", "/v1/dns/cache?below=example.com"); got != `{"removed":2}` {
		t.Errorf("%s", got)
	}
	if got := do("GET", "/v1/dns/cache"); strings.Contains(got, "example.com") || !strings.Contains(got, "www.example.org.") {
		t.Errorf("%s", got)
	}
	if got := do("DELETE", "/v1/dns/cache?below=a..b"); !strings.Contains(got, "no domain name") {
		t.Errorf("%s", got)
	}
}
