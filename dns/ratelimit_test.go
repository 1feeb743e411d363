package dns

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// flood asks n times within an instant and counts what comes.
func flood(t *testing.T, f *fixture, w *worker, n int, client string, name func(i int) string, change ...func(*dns.Msg)) (whole, cut, silent int) {
	t.Helper()
	for i := range n {
		reply, _ := w.handle(nil, packet(t, name(i), dns.TypeA, change...), netip.MustParseAddr(client))
		switch {
		case len(reply) == 0:
			silent++
		case f.unpack(reply).Truncated:
			cut++
			if m := f.unpack(reply); len(m.Answer)+len(m.Ns) != 0 {
				t.Errorf("cut, and yet: %v", m)
			}
		default:
			whole++
		}
	}
	return whole, cut, silent
}

// apart gives a worker a limiter that counts these answers, each to a client and
// for a name, apart: two buckets in one slot are one, and where they fall is up
// to chance.
func apart(t *testing.T, f *fixture, w *worker, answers [][2]string) {
	t.Helper()
	for range 100 {
		w.limiter = newLimiter()
		slots := map[uint64]bool{}
		for _, to := range answers {
			var q query
			if fault := q.parse(packet(t, to[1], dns.TypeA)); fault != "" {
				t.Fatal(fault)
			}
			a := f.server.table.Load().lookup(&q, f.server.isConfirmed)
			slots[w.limiter.hash(netip.MustParseAddr(to[0]), &q, a)%limiterSlots] = true
		}
		if len(slots) == len(answers) {
			return
		}
	}
	t.Fatal("they are never apart")
}

func TestEqualAnswersToStrangersAreBounded(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	rate := 10 * runtime.GOMAXPROCS(0)
	f := newFixture(t, testCluster(t, fmt.Sprintf("dns: {rate_limit: %d, allow_recursion: [10.9.0.0/24]}\n", rate)), c)
	now := time.Unix(1_700_000_000, 0)
	f.server.now = func() time.Time { return now }
	same := func(int) string { return "apt.service.virtual" }
	w := f.server.newWorker(overUDP)
	const stranger, another = "203.0.113.9", "203.0.114.9"
	apart(t, f, w, [][2]string{ // those below
		{stranger, "apt.service.virtual"}, {another, "apt.service.virtual"}, {stranger, "web-boot.service.virtual"},
		{stranger, "n0.virtual"}, {stranger, "n0.example"}, {stranger, "fbservice1.hpc.example.com"},
	})
	expect := func(what string, whole, cut, silent int, gotWhole, gotCut, gotSilent int) {
		t.Helper()
		if whole != gotWhole || cut != gotCut || silent != gotSilent {
			t.Errorf("%s: %d whole, %d cut, %d silent; want %d, %d, %d", what, gotWhole, gotCut, gotSilent, whole, cut, silent)
		}
	}
	check := func(what string, whole, cut, silent int) func(int, int, int) {
		return func(a, b, c int) { t.Helper(); expect(what, whole, cut, silent, a, b, c) }
	}
	check("a stranger", 10, 45, 45)(flood(t, f, w, 100, stranger, same))
	check("his neighbour, who may be he", 0, 5, 5)(flood(t, f, w, 10, "203.0.113.77", same))
	check("another network", 10, 0, 0)(flood(t, f, w, 10, another, same))
	check("another name", 10, 0, 0)(flood(t, f, w, 10, stranger, func(int) string { return "web-boot.service.virtual" }))
	check("names that don't exist are one", 10, 45, 45)(flood(t, f, w, 100, stranger, func(i int) string { return fmt.Sprintf("n%d.virtual", i) }))
	check("refusals too", 10, 45, 45)(flood(t, f, w, 100, stranger, func(i int) string { return fmt.Sprintf("n%d.example", i) }))
	check("a node of the cluster, though it may not recurse", 100, 0, 0)(flood(t, f, w, 100, "10.1.0.31", same))
	check("by TCP", 100, 0, 0)(flood(t, f, f.server.newWorker(overTCP), 100, stranger, same))

	wire, _ := w.handle(nil, packet(t, "fbservice1.hpc.example.com", dns.TypeA, withCookie("0123456789abcdef")), netip.MustParseAddr(stranger))
	known := withCookie(cookieOf(f.unpack(wire)))
	check("who has a cookie of ours", 100, 0, 0)(flood(t, f, w, 100, stranger, same, known))

	now = now.Add(500 * time.Millisecond)
	check("half a second later", 5, 3, 2)(flood(t, f, w, 10, stranger, same))
	if n := metric(t, f, "holdfast_dns_dropped_total", "rate"); n == 0 {
		t.Error("not counted")
	}
}

func TestRateLimitCanBeTurnedOff(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, "dns: {rate_limit: 0}\n"), c)
	whole, _, _ := flood(t, f, f.server.newWorker(overUDP), 500, "203.0.113.9", func(int) string { return "apt.service.virtual" })
	if whole != 500 {
		t.Errorf("%d of 500", whole)
	}
}

func TestLimiterDoesNotAllocate(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, ""), c)
	w, out, asked := f.server.newWorker(overUDP), make([]byte, 0, maxUDP), packet(t, "apt.service.virtual", dns.TypeA)
	stranger := netip.MustParseAddr("203.0.113.9")
	if n := testing.AllocsPerRun(1000, func() { w.handle(out, asked, stranger) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
