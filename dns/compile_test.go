package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"holdfast/cluster"
	"holdfast/internal/state"
)

// dump gives all that the virtual zone of a table holds.
func dump(t *table) map[string][]string {
	all := map[string][]string{}
	zone := t.cuts["\x07virtual\x00"].zone
	for _, shard := range zone.names.shards {
		for n, node := range shard {
			records := []string{}
			for _, set := range node.sets {
				for _, r := range set.records {
					text := fmt.Sprintf("%x", r.wire)
					for _, g := range r.glue {
						text += fmt.Sprintf(" +%x", g.wire)
					}
					records = append(records, text)
				}
			}
			slices.Sort(records)
			all[n.String()] = records
		}
	}
	return all
}

// What a table holds must depend on the state it is of, never on the way
// there: hundreds of random changes, each compiled on its own, against a
// table made afresh.
func TestChangedNamesCompiledAloneGiveTheWholeTable(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			c := newCatalog(t)
			file := testCluster(t, "")
			f := newFixture(t, file, c)
			for step := range 120 {
				what := randomChange(r, c)
				f.server.refresh()
				set, err := decode(file, file.Section(Section))
				if err != nil {
					t.Fatal(err)
				}
				fresh, err := newCompiler(file, set, "fbservice1")
				if err != nil {
					t.Fatal(err)
				}
				// The serial may lag behind commands that changed no name.
				want, got := dump(fresh.rebuild(c.store.Snapshot())), dump(f.server.table.Load())
				delete(want, "virtual.")
				delete(got, "virtual.")
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("step %d, after %s (-afresh +changed):\n%s", step, what, diff)
				}
			}
			if n := metric(t, f, "holdfast_dns_compiles_total", "full"); n != 1 {
				t.Errorf("%v tables were made afresh, want the first alone", n)
			}
		})
	}
}

// randomChange changes the catalog or the gossip and tells how.
func randomChange(r *rand.Rand, c *catalog) string {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	// Names that come close to each other: node and service names with
	// dots, tags that look like services, cases that differ.
	node := pick("fbservice1", "FBservice1", "fbservice2", "b", "a.b", "fbcn01")
	svc := pick("apt", "Apt", "b", "x.y", "_apt", "tcp")
	switch r.IntN(8) {
	case 0, 1, 2:
		s := state.Service{ID: pick("1", "2", svc), Name: svc, Port: 80, Tags: [][]string{nil, {"b", "B"}, {"a.b"}, {"tcp"}, {"udp", "b"}, {"_b"}}[r.IntN(6)]}
		if r.IntN(3) == 0 {
			s.Address = netip.AddrFrom4([4]byte{10, 1, 0, byte(r.IntN(4))})
		}
		address := netip.AddrFrom4([4]byte{10, 1, 0, byte(r.IntN(4))})
		c.apply(state.Register{
			Node:     state.Node{Name: node, Address: address},
			Services: []state.Service{s},
			Checks: []state.Check{{ID: "c" + s.ID, ServiceID: s.ID, Status: state.Status(pick("passing", "critical", "warning"))},
				{ID: "node", Status: state.Status(pick("passing", "passing", "critical"))}},
		})
		return fmt.Sprintf("register %s at %v with %+v", node, address, s)
	case 3:
		id := pick("c1", "c2", "capt", "node")
		c.check(node, id, state.Status(pick("passing", "critical")))
		return "check " + node + " " + id
	case 4:
		id := pick("1", "2", "apt", "b")
		c.apply(state.Deregister{Node: node, Services: []string{id}})
		return "deregister " + node + " " + id
	case 5:
		c.apply(state.Deregister{Node: node})
		return "deregister " + node
	case 6:
		c.apply(state.KV{Verb: state.Set, Entry: state.Entry{Key: "k", Value: []byte("v")}})
		return "kv"
	}
	gossip := []string{node + "=" + pick("alive", "failed", "left"), "b=" + pick("alive", "failed")}
	c.gossip(gossip...)
	return "gossip " + strings.Join(gossip, " ")
}

// A table in use never changes: readers that hold it while a hundred others
// are made see what they saw (and the race detector sees them).
func TestTablesInUseNeverChange(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, ""), c)
	old := f.server.table.Load()
	before := dump(old)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			w := f.server.newWorker(overUDP)
			asked := packet(t, "apt.service.virtual", dns.TypeA)
			for {
				select {
				case <-stop:
					return
				default:
					w.handle(nil, asked, loopback)
				}
			}
		})
	}
	for i := range 100 {
		c.check("fbservice1", "service:apt", []state.Status{state.Critical, state.Passing}[i%2])
		c.node("new", "10.1.0.9", fmt.Sprintf("svc%d:1", i))
		f.server.refresh()
	}
	close(stop)
	readers.Wait()
	if diff := cmp.Diff(before, dump(old)); diff != "" {
		t.Errorf("the first table changed:\n%s", diff)
	}
}

func TestStateThatWasReplacedIsCompiledAfresh(t *testing.T) {
	other := newCatalog(t)
	other.node("fbservice9", "10.1.0.9", "apt:3142")
	var saved strings.Builder
	if _, err := other.store.Snapshot().WriteTo(&saved); err != nil {
		t.Fatal(err)
	}
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, ""), c)
	if err := c.store.Restore(strings.NewReader(saved.String())); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.1.0.9"}, addresses(f.ask("apt.service.virtual", dns.TypeA))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSerialsNeedNoClock(t *testing.T) {
	serial := func(f *fixture, zone string) uint32 {
		t.Helper()
		m := f.ask(zone, dns.TypeSOA)
		if len(m.Answer) != 1 {
			t.Fatalf("%v", m)
		}
		return m.Answer[0].(*dns.SOA).Serial
	}
	c := newCatalog(t)
	f, g := newFixture(t, testCluster(t, ""), c), newFixture(t, testCluster(t, ""), c)
	note := func(sum string) {
		c.apply(state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kindFile, Key: "sum", Value: []byte(sum)}})
	}
	for before := uint32(0); before < 4; before++ { // whichever file it is, also one that was before
		note([]string{"a", "b"}[before%2])
		c.node("fbservice1", "10.1.0.1", fmt.Sprintf("n%d:1", before)) // no change of the file's zones
		a, b := serial(f, "hpc.example.com"), serial(g, "hpc.example.com")
		if a != b || a <= before {
			t.Errorf("two nodes with one store: %d and %d, after %d", a, b, before)
		}
		note([]string{"a", "b"}[before%2]) // what is noted already
		if again := serial(f, "hpc.example.com"); again != a {
			t.Errorf("nothing changed, and the serial went from %d to %d", a, again)
		}
	}
	last := serial(f, "virtual")
	for i := range 10 {
		c.node("fbservice1", "10.1.0.1", fmt.Sprintf("s%d:1", i))
		next := serial(f, "virtual")
		if next <= last {
			t.Errorf("serial of virtual went from %d to %d", last, next)
		}
		last = next
	}
}

func TestSingleNodeWithoutAFileAnswers(t *testing.T) {
	c := newCatalog(t)
	c.node("alone", "192.0.2.7", "apt:3142")
	f := newFixture(t, cluster.Single("alone", netip.MustParseAddr("192.0.2.7")), c)
	for name, kind := range map[string]uint16{
		"apt.service.virtual":       dns.TypeA,
		"alone.node.virtual":        dns.TypeA,
		"alone.holdfast.internal":   dns.TypeA,
		"7.2.0.192.in-addr.arpa":    dns.TypePTR,
		"_apt._tcp.service.virtual": dns.TypeSRV,
	} {
		if m := f.ask(name, kind); len(m.Answer) != 1 || !m.Authoritative {
			t.Errorf("%s: %v", name, m)
		}
	}
}

// BenchmarkChange is one check that flips in a catalog of 10,000 names.
func TestNamesAboveAForwardedDomainExist(t *testing.T) {
	file := testCluster(t, "dns: {forward: {a.b.hpc.example.com: [192.0.2.1], c.d.virtual: [192.0.2.1], e.f.0.1.10.in-addr.arpa: [192.0.2.1]}}\n")
	f := newFixture(t, file, newCatalog(t))
	for _, n := range []string{"b.hpc.example.com", "d.virtual", "f.0.1.10.in-addr.arpa"} {
		if m := f.ask(n, dns.TypeA); m.Rcode != dns.RcodeSuccess || len(m.Ns) != 1 {
			t.Errorf("%s, which has a name below it: %v", n, m)
		}
	}
	if m := f.ask("x.b.hpc.example.com", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("a name beside it: %v", m)
	}
}

func TestNameIsNotDeniedBeforeTheTableCaughtUp(t *testing.T) {
	c := &catalog{t: t, store: state.New()}
	f := newFixture(t, testCluster(t, ""), c)
	rcode := func(name string) int { return f.unpack(f.raw(packet(t, name, dns.TypeA), loopback, overUDP)).Rcode }
	c.services4()
	c.store.Touch(time.Now()) // the replica has caught up, the table has not
	if got := rcode("ntp.service.virtual"); got != dns.RcodeServerFailure {
		t.Errorf("a name of the replica that the table lacks: %s", dns.RcodeToString[got])
	}
	f.server.refresh()
	if got := rcode("ntp.service.virtual"); got != dns.RcodeSuccess {
		t.Errorf("once the table has it: %s", dns.RcodeToString[got])
	}
	if got := rcode("nosuch.service.virtual"); got != dns.RcodeNameError {
		t.Errorf("a name that neither has: %s", dns.RcodeToString[got])
	}
}

func TestChangesThatConcernNoNameLeaveTheTableConfirmed(t *testing.T) {
	c := &catalog{t: t, store: state.New()}
	f := newFixture(t, testCluster(t, ""), c)
	c.apply(state.SetCluster{Cluster: state.Cluster{ID: "4c8b5f9e-0000-4000-8000-000000000001", Name: "foobar"}})
	c.store.Touch(time.Now())
	if m := f.ask("nosuch.service.virtual", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("%v", m)
	}
}

func TestPanicOfTheCompilerLeavesTheAnswers(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, ""), c)
	f.server.compiler.uses = nil // a bug
	c.node("fbservice9", "10.1.0.9", "new:80")
	if m := f.ask("apt.service.virtual", dns.TypeA); len(m.Answer) != 4 {
		t.Errorf("%v", m)
	}
	if n := metric(t, f, "holdfast_dns_panics_total"); n != 1 {
		t.Errorf("panics_total = %v", n)
	}
	c.node("fbservice8", "10.1.0.8", "newer:80")
	for _, n := range []string{"new.service.virtual", "newer.service.virtual"} {
		if m := f.ask(n, dns.TypeA); len(m.Answer) != 1 {
			t.Errorf("after the next change: %v", m)
		}
	}
}

func BenchmarkChange(b *testing.B) {
	c := newCatalog(b)
	for i := range 2500 {
		c.node(fmt.Sprintf("n%04d", i), fmt.Sprintf("10.1.%d.%d", i/250, i%250), fmt.Sprintf("svc%d:80", i))
	}
	f := newFixture(b, testCluster(b, ""), c)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.check("n0007", "service:svc7", []state.Status{state.Critical, state.Passing}[i%2])
		f.server.refresh()
	}
}

// What a service of the catalog takes: a few names, their records, and what is
// kept to change them.
func TestCompiledServiceTakesLittleMemory(t *testing.T) {
	if raceCost > 1 {
		t.Skip("the race detector has memory of its own")
	}
	const services = 3000
	c := newCatalog(t)
	for i := range services {
		c.node(fmt.Sprintf("n%04d", i), fmt.Sprintf("10.1.%d.%d", i/250, i%250), fmt.Sprintf("svc%d:80", i))
	}
	file := testCluster(t, "")
	set, err := decode(file, file.Section(Section))
	if err != nil {
		t.Fatal(err)
	}
	compiler, err := newCompiler(file, set, "fbservice1")
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	table := compiler.rebuild(c.store.Snapshot())
	each := float64(heap()-before) / services
	runtime.KeepAlive(table)
	runtime.KeepAlive(compiler)
	runtime.KeepAlive(c)
	t.Logf("%.0f bytes for each service with a node of its own", each)
	if each > 2600 {
		t.Errorf("%.0f bytes for each service with a node of its own, want 2600 at most", each)
	}
}

// heap is what is reachable, in bytes.
func heap() int64 {
	runtime.GC() // pools take two
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkQuery is the path of a query but for the socket.
func BenchmarkQuery(b *testing.B) {
	c := newCatalog(b)
	c.services4()
	f := newFixture(b, testCluster(b, ""), c)
	w := f.server.newWorker(overUDP)
	asked, out := packet(b, "apt.service.virtual", dns.TypeA), make([]byte, 0, maxUDP)
	b.ReportAllocs()
	for b.Loop() {
		w.handle(out, asked, loopback)
	}
}

// A change must be in use within 5 ms: the whole way from a failed check to
// every node's answers may take 300.
func TestChangeIsCompiledInMilliseconds(t *testing.T) {
	c := newCatalog(t)
	for i := range 500 {
		c.node(fmt.Sprintf("n%04d", i), fmt.Sprintf("10.1.%d.%d", i/250, i%250), fmt.Sprintf("svc%d:80:tag", i))
	}
	f := newFixture(t, testCluster(t, ""), c)
	best := time.Hour
	for i := range 20 { // the best of them: the machine may be busy
		c.check("n0007", "service:svc7", []state.Status{state.Critical, state.Passing}[i%2])
		started := time.Now()
		f.server.refresh()
		best = min(best, time.Since(started))
	}
	t.Logf("%v for a catalog of %d names", best, f.server.compiler.names.size())
	if best > 5*time.Millisecond {
		t.Errorf("took %v", best)
	}
}
