package dns

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"holdfast/cluster"
)

func TestTopCountsWhatWasAnsweredAndFromWhere(t *testing.T) {
	u := newUpstream(t, zoneOf(t))
	c := newCaching(t, maxForwardTimeout, u)
	c.services4()
	c.fixture.server.refresh()
	if idle := c.fixture.server.Top(t.Context(), 50*time.Millisecond, 2); idle.Seconds < 0.05 || idle.Seen != 0 {
		t.Errorf("in 50 ms without a query: %+v", idle)
	}
	// It ends when all was seen, however long the machine takes for that.
	ctx, end := context.WithCancel(t.Context())
	defer end()
	result := make(chan Top, 1)
	go func() { result <- c.fixture.server.Top(ctx, time.Hour, 2) }()
	eventually(t, "somebody watches", func() bool { return c.fixture.server.watches.open.Load() != nil })
	for range 3 {
		c.query("apt.service.virtual", dns.TypeA)
	}
	c.query("nosuch.service.virtual", dns.TypeAAAA)
	c.query("www.example.com", dns.TypeA)
	c.query("www.example.com", dns.TypeA)
	watch := (*c.fixture.server.watches.open.Load())[0]
	eventually(t, "all is seen", func() bool { return len(watch.seen) == 0 })
	end()
	top := <-result
	if top.Seen != 6 || top.Missed != 0 {
		t.Errorf("seen %d, missed %d in %v s", top.Seen, top.Missed, top.Seconds)
	}
	top.Seconds, top.Seen = 0, 0
	want := Top{
		Names:   []Count{{"apt.service.virtual.", 3}, {"www.example.com.", 2}},
		Clients: []Count{{"127.0.0.1", 6}},
		Types:   []Count{{"A", 5}, {"AAAA", 1}},
		Rcodes:  []Count{{"NOERROR", 5}, {"NXDOMAIN", 1}},
		Zones:   []Count{{"virtual.", 4}, {".", 2}},
		Sources: []Count{{"table", 4}, {"cache", 1}},
	}
	if diff := cmp.Diff(want, top); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if c.fixture.server.watches.open.Load() != nil {
		t.Error("nobody watches any more, and queries are shown still")
	}
}

func TestTallyIsBounded(t *testing.T) {
	tally := newTally()
	for i := range maxTallied + 100 {
		tally.add(observation{client: netip.MustParseAddr("10.0.0.1"), name: name(fmt.Sprintf("\x06%06d\x00", i)), kind: dns.TypeA, zone: "virtual."})
	}
	top := tally.top(1)
	if len(tally.names) != maxTallied+1 || top.Names[0] != (Count{otherName, 100}) {
		t.Errorf("%d names, first %v", len(tally.names), top.Names)
	}
}

// Who answers never waits for who watches: what there is no room for is missed.
func TestWatchThatDoesNotReadHoldsUpNobody(t *testing.T) {
	f := newFixture(t, testCluster(t, ""), newCatalog(t))
	watch := f.server.watches.add()
	w, asked := f.server.newWorker(overUDP), packet(t, "fbservice1.node.virtual", dns.TypeA)
	out := make([]byte, 0, maxUDP)
	for range watchRoom + 500 {
		w.handle(out, asked, loopback)
	}
	if len(watch.seen) != watchRoom || watch.missed.Load() != 500 {
		t.Errorf("%d wait, %d missed", len(watch.seen), watch.missed.Load())
	}
	if n := testing.AllocsPerRun(100, func() { w.handle(out, asked, loopback) }); n != 0 {
		t.Errorf("%v allocations for a query that nobody has room for", n)
	}
}

// lockedBuffer is a log that a test reads while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func logging(t *testing.T, file *cluster.File) (*fixture, netip.AddrPort, *lockedBuffer) {
	c := newCatalog(t)
	c.services4()
	f := newFixtureListening(t, file, c, loopbackPort)
	log := &lockedBuffer{}
	f.server.log = slog.New(slog.NewTextHandler(log, nil))
	return f, serve(t, f), log
}

func TestQueryLogHasOneOfSoManyQueries(t *testing.T) {
	f, server, log := logging(t, testCluster(t, "dns: {query_log: 1}\n"))
	exchangeWith(t, "tcp", server, question("Apt.service.virtual", dns.TypeA))
	want := "msg=query client=127.0.0.1 transport=tcp name=apt.service.virtual. type=A rcode=NOERROR zone=virtual. source=table"
	eventually(t, "the query is logged", func() bool { return strings.Contains(log.String(), want) })

	f.server.SetFile(testCluster(t, "dns: {query_log: 10}\n"))
	w, asked := f.server.newWorker(overUDP), packet(t, "fbservice2.node.virtual", dns.TypeA)
	for range 4000 {
		w.handle(nil, asked, loopback)
	}
	logged := func() int { return strings.Count(log.String(), "name=fbservice2") }
	// 400 are expected; the standard deviation is 19.
	eventually(t, "a tenth is logged", func() bool { return logged() > 280 })
	f.server.SetFile(testCluster(t, ""))
	w.handle(nil, packet(t, "fbservice3.node.virtual", dns.TypeA), loopback)
	exchangeWith(t, "udp", server, question("fbservice4.node.virtual", dns.TypeA))
	if n := logged(); n > 520 || strings.Contains(log.String(), "name=fbservice3") {
		t.Errorf("%d of 4000 are logged with query_log: 10, or one is without", n)
	}
}

func TestQueryLogThatIsTooSlowSaysSo(t *testing.T) {
	f, _, log := logging(t, testCluster(t, "dns: {query_log: 1}\n"))
	f.server.queryLog.missed.Store(7)
	eventually(t, "what was missed is told", func() bool { return strings.Contains(log.String(), "missed=7") })
	if n := metric(t, f, "holdfast_dns_dropped_total", "query_log"); n != 7 {
		t.Errorf("%v are counted", n)
	}
}
