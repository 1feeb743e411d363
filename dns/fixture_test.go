package dns

import (
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

// parseFile reads a cluster file from text.
func parseFile(t testing.TB, text string) *cluster.File {
	t.Helper()
	file, err := cluster.Parse("cluster.yaml", []byte(text), map[string]cluster.SectionValidator{Section: ValidateSection})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// testCluster is the cluster of most tests: testdata/cluster.yaml, with more
// lines at its end.
func testCluster(t testing.TB, more string) *cluster.File {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return parseFile(t, string(text)+more)
}

// catalog is a state that a test fills.
type catalog struct {
	t     testing.TB
	store *state.Store
	index uint64
}

// newCatalog returns an empty state that a leader has confirmed.
func newCatalog(t testing.TB) *catalog {
	c := &catalog{t: t, store: state.New()}
	c.apply(state.SetCluster{Cluster: state.Cluster{ID: "4c8b5f9e-0000-4000-8000-000000000001", Name: "foobar"}})
	c.store.Touch(time.Now())
	return c
}

func (c *catalog) apply(cmd state.Command) {
	c.t.Helper()
	c.index++
	if err := c.store.Apply(c.index, cmd); err != nil {
		c.t.Fatal(err)
	}
}

// node registers a node with services written "name:port", or
// "name:port:tag,tag", each with a passing check of its own.
func (c *catalog) node(node, addr string, services ...string) {
	c.t.Helper()
	register := state.Register{Node: state.Node{Name: node, Address: netip.MustParseAddr(addr), Meta: map[string]string{"rack": "a1"}}}
	register.Checks = append(register.Checks, state.Check{ID: state.SerfHealth, Status: state.Passing})
	for _, s := range services {
		svc := service(c.t, s)
		register.Services = append(register.Services, svc)
		register.Checks = append(register.Checks, state.Check{ID: "service:" + svc.ID, ServiceID: svc.ID, Status: state.Passing})
	}
	c.apply(register)
}

func service(t testing.TB, text string) state.Service {
	t.Helper()
	parts := strings.SplitN(text, ":", 3)
	port, err := netip.ParseAddrPort("127.0.0.1:" + parts[1])
	if err != nil {
		t.Fatal(err)
	}
	svc := state.Service{ID: parts[0], Name: parts[0], Port: port.Port()}
	if len(parts) == 3 {
		svc.Tags = strings.Split(parts[2], ",")
	}
	return svc
}

// check sets the state of a check.
func (c *catalog) check(node, id string, status state.Status) {
	c.t.Helper()
	c.apply(state.UpdateCheck{Node: node, Updates: []state.CheckState{{ID: id, Status: status}}})
}

// gossip sets what the gossip says of nodes: "fbservice1=failed", or
// "fbservice1=alive@STORE" of one that belongs to a store.
func (c *catalog) gossip(nodes ...string) {
	var members []state.Member
	for _, n := range nodes {
		name, liveness, _ := strings.Cut(n, "=")
		liveness, store, _ := strings.Cut(liveness, "@")
		members = append(members, state.Member{Name: name, Liveness: state.Liveness(liveness), ClusterID: store})
	}
	c.store.SetMembers(members)
}

// services4 fills the catalog with the four service nodes.
func (c *catalog) services4() {
	c.t.Helper()
	c.node("fbservice1", "10.1.0.1", "apt:3142:primary,v1.2", "web-boot:3138")
	c.node("fbservice2", "10.1.0.2", "apt:3142:v1.2", "web-boot:3138")
	c.node("fbservice3", "10.1.0.3", "apt:3142", "ntp:123:udp")
	c.node("fbservice4", "10.1.0.4", "apt:3142")
}

// fixture is a server that listens nowhere.
type fixture struct {
	*catalog
	server   *Server
	board    *health.Board
	registry *prometheus.Registry
}

func newFixture(t testing.TB, file *cluster.File, c *catalog) *fixture {
	t.Helper()
	return newFixtureListening(t, file, c)
}

func newFixtureListening(t testing.TB, file *cluster.File, c *catalog, listen ...netip.AddrPort) *fixture {
	t.Helper()
	f := &fixture{catalog: c, board: health.NewBoard(time.Now, nil, nil), registry: prometheus.NewRegistry()}
	var err error
	f.server, err = New(Config{Node: "fbservice1", Listen: listen}, Deps{
		State: c.store, File: file, Metrics: f.registry, Board: f.board,
		Log:  slog.New(slog.NewTextHandler(io.Discard, nil)),
		Rand: func() rand.Source { return rand.NewPCG(1, 2) },
	})
	if err != nil {
		t.Fatal(err)
	}
	f.server.rest = time.Hour // who counts what a forwarder is asked counts no probes
	return f
}

// standStill has the server's clock stand still: a leader confirmed the state a
// moment ago, however long the machine takes for what follows. It comes before
// serve.
func (f *fixture) standStill() {
	now := time.Now()
	f.server.now = func() time.Time { return now }
	f.server.forwarder.now = f.server.now
}

// hedging gives routes credit for questions that are put to a second forwarder
// before the first has failed.
func (f *fixture) hedging(credit int64) {
	for _, c := range f.server.table.Load().cuts {
		if c.route != nil {
			c.route.credit.Store(credit)
		}
	}
}

// never is the credit with which a question is put to one forwarder until that
// has failed: how often one is asked does not hang on how fast the machine is.
const never = -1 << 40

// patience is how long tests wait for what must come. How soon it has to is
// measured apart, where that is promised.
const patience = time.Minute

// loopback is a client that may have questions forwarded.
var loopback = netip.MustParseAddr("127.0.0.1")

// packet packs a question.
func packet(t testing.TB, name string, kind uint16, change ...func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), kind)
	for _, f := range change {
		f(m)
	}
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

// raw gives what the server answers to bytes; nil for nothing.
func (f *fixture) raw(packet []byte, client netip.Addr, transport string) []byte {
	w := f.server.newWorker(transport)
	reply, _ := w.handle(nil, packet, client)
	w.counters.flush()
	return reply
}

// ask gives the answer from the table as it is after all that was changed.
func (f *fixture) ask(name string, kind uint16, change ...func(*dns.Msg)) *dns.Msg {
	f.t.Helper()
	f.server.refresh()
	return f.unpack(f.raw(packet(f.t, name, kind, change...), loopback, overUDP))
}

func (f *fixture) unpack(wire []byte) *dns.Msg {
	f.t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		f.t.Fatalf("the answer is malformed: %v: %x", err, wire)
	}
	return m
}

// lines gives records as text with single spaces, sorted.
func lines(rrs []dns.RR) []string {
	var list []string
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			list = append(list, strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	slices.Sort(list)
	return list
}

// addresses gives the A and AAAA of an answer, sorted.
func addresses(m *dns.Msg) []string {
	var list []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			list = append(list, rr.A.String())
		case *dns.AAAA:
			list = append(list, rr.AAAA.String())
		}
	}
	slices.Sort(list)
	return list
}

// fastest is the shortest that something took, of three times or until one was
// short enough: the machine may stand still meanwhile.
func fastest(do func() time.Duration, enough time.Duration) time.Duration {
	best := do()
	for try := 1; try < 3 && best > enough; try++ {
		best = min(best, do())
	}
	return best
}
