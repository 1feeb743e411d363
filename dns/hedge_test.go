package dns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestSlowFirstForwarderIsNotWaitedFor(t *testing.T) {
	slow := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte { // dies after its first answer
		if strings.Contains(strings.ToLower(string(p)), "first") {
			return [][]byte{made(p, answering(6, 1))}
		}
		return nil
	})
	best := fastest(func() time.Duration {
		c := newCaching(t, 8*time.Second, slow, newUpstream(t, message(answering(7, 1))))
		c.hedging(maxCredit)
		c.query("first.example.com", dns.TypeA)
		started := time.Now()
		m := c.query("www.example.com", dns.TypeA)
		if len(addresses(m)) != 1 || addresses(m)[0] != "198.51.100.7" {
			t.Errorf("after %v: %v", time.Since(started), m)
		}
		return time.Since(started)
	}, 2*time.Second)
	if best > 2*time.Second {
		t.Errorf("after %v", best)
	}
}

func TestMuchFasterForwarderIsAskedFirst(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	r := newRoute(root, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53"), netip.MustParseAddrPort("192.0.2.3:53")}, time.Second)
	order := func() (list []int) {
		for _, u := range r.tries(now) {
			list = append(list, slices.Index(r.upstreams, u))
		}
		return list
	}
	measure := func(i int, took time.Duration) {
		for range 60 {
			r.upstreams[i].measured(took, true)
		}
	}
	expect := func(when string, want ...int) {
		t.Helper()
		if got := order(); !slices.Equal(got, want) {
			t.Errorf("%s: order %v, want %v", when, got, want)
		}
	}
	expect("nothing measured", 0, 1, 2)
	measure(0, 10*time.Millisecond)
	measure(1, 8*time.Millisecond)
	expect("about the same", 0, 1, 2)
	measure(0, 50*time.Millisecond)
	expect("the first is slow", 1, 2, 0)
	r.upstreams[1].downUntil.Store(now.Add(holdDown).UnixNano())
	expect("and the second down", 0, 2, 1)
	r.upstreams[0].looping.Store(true)
	expect("and the first a loop", 2, 1)
	r.upstreams[1].measured(time.Second, false)
	if got := time.Duration(r.upstreams[1].latency.Load()); got < time.Second {
		t.Errorf("a reply that was not waited for a second counts as %v", got)
	}
}

func TestHedgesAreATenthOfTheQuestions(t *testing.T) {
	r := newRoute(root, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")}, time.Second)
	hedges, explored := 0, 0
	const n = 3200
	for range n {
		if r.earn() {
			explored++
		}
		if r.mayHedge() {
			hedges++
		}
	}
	if hedges < n/10 || hedges > n/10+maxCredit/hedgeCost+1 {
		t.Errorf("%d of %d", hedges, n)
	}
	if explored != n/exploreEvery {
		t.Errorf("explored %d times, want %d", explored, n/exploreEvery)
	}
}

// Nobody has to ask for it.
func TestForwardersAreProbedSoonAfterTheStart(t *testing.T) {
	probed := make(chan string, 16)
	u := newUpstream(t, func(p []byte, _ net.Addr, _ string) [][]byte {
		q := new(dns.Msg)
		if err := q.Unpack(p); err != nil {
			t.Error(err)
			return nil
		}
		probed <- q.Question[0].Name
		return [][]byte{made(p, failing(dns.RcodeNameError))}
	})
	file := testCluster(t, fmt.Sprintf("dns: {forward: {\".\": [%q]}}\n", u.addr))
	f := newFixtureListening(t, file, newCatalog(t), loopbackPort)
	f.server.rest = time.Millisecond
	serve(t, f)
	select {
	case n := <-probed:
		if !strings.Contains(n, probeLabel) {
			t.Errorf("asked for %s", n)
		}
	case <-time.After(patience):
		t.Error("it was not asked for anything")
	}
}

// Two clusters that forward to each other, or a forwarder behind which is this
// server: the probe comes back.
func TestForwarderThatLeadsBackIsNotAsked(t *testing.T) {
	var mu sync.Mutex
	var back netip.AddrPort // where the upstream forwards to
	u := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte {
		mu.Lock()
		to := back
		mu.Unlock()
		if !to.IsValid() {
			return [][]byte{made(p, answering(7, 1))}
		}
		q := new(dns.Msg)
		if err := q.Unpack(p); err != nil {
			return nil
		}
		m, _, err := (&dns.Client{Timeout: patience}).Exchange(q, to.String())
		if err != nil {
			return nil
		}
		m.Id = q.Id
		wire, _ := m.Pack()
		return [][]byte{wire}
	})
	c := newCaching(t, maxForwardTimeout, u)
	probe := func() {
		t.Helper()
		c.fixture.server.flights.Load().probeAll(t.Context())
	}
	probe()
	if got := c.board.Conditions(); len(got) != 0 {
		t.Errorf("without a loop: %v", got)
	}
	mu.Lock()
	back = c.server
	mu.Unlock()
	probe()
	got := c.board.Conditions()
	if len(got) != 1 || got[0].Name != conditionLoop || !strings.Contains(got[0].Message, u.addr.String()) {
		t.Errorf("with a loop: %v", got)
	}
	asked := u.asked.Load()
	if m := c.query("www.example.com", dns.TypeA, withEDNS); m.Rcode != dns.RcodeServerFailure || !strings.Contains(fmt.Sprint(m.IsEdns0()), "loop") || u.asked.Load() != asked {
		t.Errorf("%v", m)
	}
	mu.Lock()
	back = netip.AddrPort{}
	mu.Unlock()
	probe()
	c.pass(failureTTL * time.Second)
	if m := c.query("www.example.com", dns.TypeA); len(m.Answer) != 1 || len(c.board.Conditions()) != 0 {
		t.Errorf("once it is gone: %v, %v", c.board.Conditions(), m)
	}
}
