package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/state"
)

// with gives a good query with bytes changed.
func with(t testing.TB, base []byte, change func(b []byte) []byte) []byte {
	t.Helper()
	return change(bytes.Clone(base))
}

func TestMalformedPackets(t *testing.T) {
	base := packet(t, "apt.service.virtual", dns.TypeA)
	edns := packet(t, "apt.service.virtual", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, false) })
	const drop = -1
	set := func(at int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], v); return b }
	}
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	opt := len(base) // where edns has its OPT
	tests := []struct {
		name   string
		base   []byte
		change func([]byte) []byte
		reason fault
		rcode  int
	}{
		{"nothing", base, cut(0), faultShort, drop},
		{"half a header", base, cut(11), faultShort, drop},
		{"a response", base, set(2, 0x81), faultResponse, drop},
		{"header only, no question", base, func(b []byte) []byte { return set(5, 0)(b)[:12] }, faultCount, dns.RcodeFormatError},
		{"two questions", base, func(b []byte) []byte { return append(set(5, 2)(b), b[12:]...) }, faultCount, dns.RcodeFormatError},
		{"question missing", base, cut(12), faultQuestion, dns.RcodeFormatError},
		{"name cut in a label", base, cut(14), faultQuestion, dns.RcodeFormatError},
		{"name without its end", base, cut(len(base) - 5), faultQuestion, dns.RcodeFormatError},
		{"type cut", base, cut(len(base) - 3), faultQuestion, dns.RcodeFormatError},
		{"class cut", base, cut(len(base) - 1), faultQuestion, dns.RcodeFormatError},
		{"label of 64 bytes", base, set(12, 64), faultQuestion, dns.RcodeFormatError},
		{"name is a pointer to itself", base, set(12, 0xc0, 0x0c), faultQuestion, dns.RcodeFormatError},
		{"name points into the header", base, set(16, 0xc0, 0x00), faultQuestion, dns.RcodeFormatError},
		{"name of 256 bytes", base, func(b []byte) []byte {
			long := bytes.Clone(b[:12])
			for range 4 {
				long = append(append(long, 63), bytes.Repeat([]byte("a"), 63)...)
			}
			return append(long, 0, 0, 1, 0, 1)
		}, faultQuestion, dns.RcodeFormatError},
		{"answers announced, none there", base, set(7, 1), faultRecord, dns.RcodeFormatError},
		{"65535 additional announced", base, set(10, 0xff, 0xff), faultRecord, dns.RcodeFormatError},
		{"bytes behind the question", base, func(b []byte) []byte { return append(b, 0) }, faultTrailing, dns.RcodeFormatError},
		{"bytes behind the OPT", edns, func(b []byte) []byte { return append(b, 0) }, faultTrailing, dns.RcodeFormatError},
		{"OPT cut", edns, func(b []byte) []byte { return b[:len(b)-1] }, faultRecord, dns.RcodeFormatError},
		{"OPT not at the root", edns, func(b []byte) []byte {
			return append(append(bytes.Clone(b[:opt]), 1, 'x'), b[opt:]...)
		}, faultOPT, dns.RcodeFormatError},
		{"OPT in the answer section", edns, func(b []byte) []byte { return set(10, 0, 0)(set(7, 1)(b)) }, faultOPT, dns.RcodeFormatError},
		{"two OPTs", edns, func(b []byte) []byte { return append(set(11, 2)(b), b[opt:]...) }, faultOPT, dns.RcodeFormatError},
		{"option longer than the OPT", edns, func(b []byte) []byte {
			b[len(b)-1] = 4
			return append(b, 0, 10, 0, 200)
		}, faultOPT, dns.RcodeFormatError},
		{"option cut", edns, func(b []byte) []byte {
			b[len(b)-1] = 3
			return append(b, 0, 10, 0)
		}, faultOPT, dns.RcodeFormatError},
		{"RDLENGTH behind the end", edns, func(b []byte) []byte { b[len(b)-1] = 1; return b }, faultRecord, dns.RcodeFormatError},
		{"EDNS version 1", edns, set(opt+6, 1), faultVersion, dns.RcodeBadVers},
		{"NOTIFY", base, set(2, 0x20), faultOpcode, dns.RcodeNotImplemented},
		{"UPDATE", base, set(2, 0x28), faultOpcode, dns.RcodeNotImplemented},
		{"opcode 15 without a question", base, func(b []byte) []byte { return set(2, 0x78)(b)[:12] }, faultOpcode, dns.RcodeNotImplemented},
	}
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, ""), c)
	for _, test := range tests {
		sent := with(t, test.base, test.change)
		var q query
		if got := q.parse(sent); got != test.reason {
			t.Errorf("%s: fault %q, want %q", test.name, got, test.reason)
		}
		before := metric(t, f, "holdfast_dns_malformed_total", string(test.reason))
		reply := f.raw(sent, loopback, overUDP)
		if after := metric(t, f, "holdfast_dns_malformed_total", string(test.reason)); after != before+1 {
			t.Errorf("%s: counted %v times", test.name, after-before)
		}
		if test.rcode == drop {
			if reply != nil {
				t.Errorf("%s: answered %x", test.name, reply)
			}
			continue
		}
		m := f.unpack(reply)
		if m.Rcode != test.rcode || !bytes.Equal(reply[:2], sent[:2]) || !m.Response || m.Opcode != int(sent[2]>>3&0xf) {
			t.Errorf("%s: %v", test.name, m)
		}
		readable := slices.Contains([]fault{faultRecord, faultTrailing, faultOPT, faultVersion}, test.reason)
		if readable != (len(m.Question) == 1 && bytes.Contains(sent, reply[12:12+len("apt.service.virtual")+6])) {
			t.Errorf("%s: the question was readable: %v; the reply's: %v", test.name, readable, m.Question)
		}
	}
}

func TestWhatIsNotMalformed(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, ""), c)
	tests := map[string]func(*dns.Msg){
		"unknown options": func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")}, &dns.EDNS0_PADDING{Padding: make([]byte, 100)}}
		},
		"TSIG": func(m *dns.Msg) { m.SetTsig("key.", dns.HmacSHA256, 300, 1) },
		"SOA in authority": func(m *dns.Msg) {
			m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: "virtual.", Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: "a.", Mbox: "b."}}
		},
		"AD, TC and Z": func(m *dns.Msg) { m.AuthenticatedData, m.Truncated, m.Zero = true, true, true },
	}
	for name, change := range tests {
		m := f.ask("apt.service.virtual", dns.TypeA, change)
		if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 4 || m.AuthenticatedData || m.Truncated || m.Zero {
			t.Errorf("%s: %v", name, m)
		}
	}
}

// crowd gives a service n instances.
func crowd(t testing.TB, n int) *fixture {
	t.Helper()
	c := newCatalog(t)
	for i := range n {
		c.node(fmt.Sprintf("fbcn%03d", i), fmt.Sprintf("10.1.%d.%d", 1+i/250, 1+i%250), "mon:9100")
	}
	return newFixture(t, testCluster(t, ""), c)
}

func TestAnswersAreCutAtTheSizeTheClientTakes(t *testing.T) {
	f := crowd(t, 100) // more than fit in any answer over UDP
	for _, test := range []struct{ announced, limit int }{{0, 512}, {100, 512}, {512, 512}, {900, 900}, {1232, 1232}, {4096, 1232}, {65535, 1232}} {
		for kind, size := range map[uint16]int{dns.TypeA: 16, dns.TypeSRV: 2 + 10 + 6 + len("\x07fbcn000\x04node\x07virtual\x00")} {
			wire := f.raw(packet(t, "mon.service.virtual", kind, func(m *dns.Msg) {
				if test.announced > 0 {
					m.SetEdns0(uint16(test.announced), false)
				}
			}), loopback, overUDP)
			m := f.unpack(wire)
			if !m.Truncated || len(wire) > test.limit || len(wire) <= test.limit-size {
				t.Errorf("%s, announced %d: TC %v, %d bytes; want TC and as many whole records as fit in %d",
					dns.TypeToString[kind], test.announced, m.Truncated, len(wire), test.limit)
			}
			if (m.IsEdns0() != nil) != (test.announced > 0) {
				t.Errorf("announced %d: OPT %v", test.announced, m.IsEdns0())
			}
		}
	}
}

func TestTCPHoldsAThousandRecords(t *testing.T) {
	f := crowd(t, 1000)
	for _, kind := range []uint16{dns.TypeA, dns.TypeSRV} {
		m := f.unpack(f.raw(packet(t, "mon.service.virtual", kind), loopback, overTCP))
		if m.Truncated || len(m.Answer) != 1000 {
			t.Errorf("%s: TC %v, %d records", dns.TypeToString[kind], m.Truncated, len(m.Answer))
		}
		if kind == dns.TypeSRV && len(m.Extra) == 0 {
			t.Error("no addresses of targets")
		}
	}
}

func TestAdditionalRecordsThatDoNotFitAreLeftOutWithoutTC(t *testing.T) {
	f := crowd(t, 9) // nine SRVs fit in 512 bytes, their nine addresses don't
	wire := f.raw(packet(t, "mon.service.virtual", dns.TypeSRV), loopback, overUDP)
	m := f.unpack(wire)
	if m.Truncated || len(m.Answer) != 9 || len(m.Extra) == 0 || len(m.Extra) == 9 || len(wire) > 512 {
		t.Errorf("TC %v, %d answers, %d additional, %d bytes", m.Truncated, len(m.Answer), len(m.Extra), len(wire))
	}
}

func TestNamesAreCompressed(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, ""), c)
	for _, name := range []string{"apt.service.virtual", "hpc.example.com"} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeNS, dns.TypeSOA, dns.TypeSRV} {
			wire := f.raw(packet(t, name, kind), loopback, overTCP)
			m := f.unpack(wire)
			m.Compress = true
			whole, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			// miekg compresses targets of NS against each other too.
			if len(wire) > len(whole)+40 {
				t.Errorf("%s %s: %d bytes, miekg/dns needs %d", name, dns.TypeToString[kind], len(wire), len(whole))
			}
		}
	}
}

// Each of the 24 orders of four records must be as likely as any other: of
// 24,000 answers 1,000 have it, give or take a fifth (six standard deviations).
func TestEveryOrderIsAsLikely(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	f := newFixture(t, testCluster(t, ""), c)
	w := f.server.newWorker(overUDP)
	asked := packet(t, "apt.service.virtual", dns.TypeA)
	orders := map[string]int{}
	for range 24_000 {
		reply, _ := w.handle(nil, asked, loopback)
		var order []byte
		for at := len(reply) - 4*16; at < len(reply); at += 16 {
			order = append(order, reply[at+15])
		}
		orders[string(order)]++
	}
	if len(orders) != 24 {
		t.Errorf("%d orders seen, want 24", len(orders))
	}
	for order, n := range orders {
		if n < 800 || n > 1200 {
			t.Errorf("order %v came %d times", []byte(order), n)
		}
	}
}

func TestQueryPathDoesNotAllocate(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	c.node("fbservice5", "10.1.0.5", "down:80")
	c.check("fbservice5", "service:down", state.Critical)
	f := newFixture(t, testCluster(t, "dns: {own_first: true}\n"), c)
	w := f.server.newWorker(overUDP)
	out := make([]byte, 0, maxUDP)
	withEDNS := func(m *dns.Msg) { m.SetEdns0(1232, true) }
	for _, asked := range [][]byte{
		packet(t, "apt.service.virtual", dns.TypeA),
		packet(t, "APT.Service.foobar.Virtual", dns.TypeA, withEDNS),
		packet(t, "_apt._tcp.service.virtual", dns.TypeSRV, withEDNS),
		packet(t, "nosuch.service.virtual", dns.TypeAAAA),
		packet(t, "1.0.1.10.in-addr.arpa", dns.TypePTR),
		packet(t, "www.example.com", dns.TypeA),
		packet(t, "apt.service.virtual", dns.TypeA, withCookie("0123456789abcdef")),
		packet(t, "0a010001.addr.virtual", dns.TypeA),
		packet(t, "down.service.virtual", dns.TypeA, withEDNS), // with a reason
		packet(t, "4.3.2.1.in-addr.arpa", dns.TypePTR, withEDNS),
	} {
		if n := testing.AllocsPerRun(100, func() { w.handle(out, asked, loopback) }); n != 0 {
			t.Errorf("%q: %v allocations", asked[12:], n)
		}
	}
}

func TestPanicCostsItsPacketOnly(t *testing.T) {
	f := newFixture(t, testCluster(t, ""), newCatalog(t))
	w := f.server.newWorker(overUDP)
	whole := f.server.table.Load()
	f.server.table.Store(nil) // a bug
	reply, forward := w.handle([]byte{}, packet(t, "apt.service.virtual", dns.TypeA), loopback)
	if len(reply) != 0 || forward != nil {
		t.Errorf("reply %x, forward %v", reply, forward)
	}
	if n := metric(t, f, "holdfast_dns_panics_total"); n != 1 {
		t.Errorf("panics_total = %v", n)
	}
	f.server.table.Store(whole)
	if reply, _ := w.handle(nil, packet(t, "fbservice1.hpc.example.com", dns.TypeA), loopback); len(reply) == 0 {
		t.Error("the next packet is lost as well")
	}
}

// FuzzHandle puts packets to the server: it never panics, never answers a
// response, and what it answers is a well-formed reply to the sender's ID.
func FuzzHandle(f *testing.F) {
	withEDNS := func(m *dns.Msg) { m.SetEdns0(1232, true) }
	for _, name := range []string{"apt.service.virtual", "_apt._tcp.service.foobar.virtual", "1.0.1.10.in-addr.arpa", "hpc.example.com", "id.server", "."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypeSOA, dns.TypeANY, dns.TypeOPT} {
			f.Add(packet(f, name, kind))
			f.Add(packet(f, name, kind, withEDNS))
		}
	}
	c := newCatalog(f)
	c.services4()
	fix := newFixture(f, testCluster(f, "dns: {forward: {\".\": [192.0.2.53]}}\n"), c)
	udp, tcp := fix.server.newWorker(overUDP), fix.server.newWorker(overTCP)
	f.Fuzz(func(t *testing.T, sent []byte) {
		for _, w := range []*worker{udp, tcp} {
			reply, forward := w.handle(nil, sent, loopback)
			if n := testutil.ToFloat64(fix.server.metrics.panics); n != 0 {
				t.Fatal("panic")
			}
			if len(reply) > 0 {
				checkReply(t, sent, reply, w.stream)
			}
			if len(reply) > 0 && forward != nil {
				t.Fatal("both answered and forwarded")
			}
		}
	})
}

func checkReply(t *testing.T, sent, reply []byte, stream bool) {
	t.Helper()
	if sent[2]&0x80 != 0 {
		t.Fatalf("a response was answered: %x", reply)
	}
	if !bytes.Equal(sent[:2], reply[:2]) || reply[2]&0x80 == 0 {
		t.Fatalf("no reply to it: %x", reply)
	}
	if !stream && len(reply) > maxUDP {
		t.Fatalf("%d bytes", len(reply))
	}
	if binary.BigEndian.Uint16(reply[4:]) == 1 && !bytes.HasPrefix(sent[12:], reply[12:bytes.IndexByte(reply[12:], 0)+12]) {
		t.Fatalf("another question: %x", reply)
	}
	var m dns.Msg
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("%v: %x", err, reply)
	}
}

func FuzzReverseNames(f *testing.F) {
	f.Add([]byte("\x011\x010\x011\x0210\x07in-addr\x04arpa\x00"))
	f.Add([]byte("\x01a\x010\x03ip6\x04arpa\x00"))
	f.Add([]byte("\x03256\x0201\x07in-addr\x04arpa\x00"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		var q query
		if _, ok := q.parseQuestion(slices.Concat(make([]byte, headerSize), wire, make([]byte, 4))); !ok {
			return
		}
		n := name(q.name)
		p, ok := parseReverse(n)
		if !ok {
			return
		}
		if !p.IsValid() || p != p.Masked() {
			t.Fatalf("%s: prefix %v", n, p)
		}
		if back := reverseName(p.Addr(), p.Bits()); !n.below(back) {
			t.Fatalf("%s: %v is named %s", n, p, back)
		}
	})
}
