package dns

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// compliant is a question of RFC 8906 §8, or of its authors' test suite for
// EDNS, and what its answer must be. What holds for every answer is not in it:
// same ID, opcode, RD and question; QR; no Z, neither of the header nor of
// EDNS; version 0; no option that was not asked for.
type compliant struct {
	section string // of RFC 8906; "" for what goes beyond it
	name    string
	kind    uint16
	change  func(*dns.Msg)
	rcode   int
	data    bool // the record that was asked for is in the answer, with AA where it is ours
}

const unknownOption = 100

// edns makes a question's OPT: version, Z flags, options.
func edns(version uint8, z uint16, do bool, options ...dns.EDNS0) func(*dns.Msg) {
	return func(m *dns.Msg) {
		m.SetEdns0(4096, do)
		opt := m.IsEdns0()
		opt.SetVersion(version)
		opt.SetZ(z)
		opt.Option = options
	}
}

func unknown() dns.EDNS0 { return &dns.EDNS0_LOCAL{Code: unknownOption} }

// known gives an option of each kind that has a meaning elsewhere.
func known() []dns.EDNS0 {
	return []dns.EDNS0{
		&dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_EXPIRE{Code: dns.EDNS0EXPIRE, Empty: true},
		&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, Address: net.IPv4zero},
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"},
	}
}

func compliance() []compliant {
	const soa = dns.TypeSOA
	list := []compliant{
		{"8.1.1", "the zone", soa, func(*dns.Msg) {}, dns.RcodeSuccess, true},
		{"8.1.2", "unknown type", 1000, func(*dns.Msg) {}, dns.RcodeSuccess, false},
		{"8.1.3.1", "CD", soa, func(m *dns.Msg) { m.CheckingDisabled = true }, dns.RcodeSuccess, true},
		{"8.1.3.2", "AD", soa, func(m *dns.Msg) { m.AuthenticatedData = true }, dns.RcodeSuccess, true},
		{"8.1.3.3", "reserved bit", soa, func(m *dns.Msg) { m.Zero = true }, dns.RcodeSuccess, true},
		{"8.1.3.4", "RD", soa, func(m *dns.Msg) { m.RecursionDesired = true }, dns.RcodeSuccess, true},
		{"8.1.4", "unknown opcode", 0, func(m *dns.Msg) { m.Opcode, m.Question = 15, nil }, dns.RcodeNotImplemented, false},
		{"", "unknown opcode and every flag", 0, func(m *dns.Msg) {
			m.Opcode, m.Question = 15, nil
			m.Truncated, m.RecursionAvailable, m.Authoritative, m.Zero = true, true, true, true
			m.CheckingDisabled, m.AuthenticatedData, m.RecursionDesired = true, true, true
		}, dns.RcodeNotImplemented, false},
		{"", "RA", soa, func(m *dns.Msg) { m.RecursionAvailable = true }, dns.RcodeSuccess, true},
		{"", "AA", soa, func(m *dns.Msg) { m.Authoritative = true }, dns.RcodeSuccess, true},
		{"", "TC", soa, func(m *dns.Msg) { m.Truncated = true }, dns.RcodeSuccess, true},

		{"8.2.1", "EDNS", soa, edns(0, 0, false), dns.RcodeSuccess, true},
		{"8.2.2", "EDNS 1", soa, edns(1, 0, false), dns.RcodeBadVers, false},
		{"8.2.3", "unknown option", soa, edns(0, 0, false, unknown()), dns.RcodeSuccess, true},
		{"8.2.4", "unknown flag", soa, edns(0, 0x40, false), dns.RcodeSuccess, true},
		{"8.2.5", "EDNS 1, unknown flag", soa, edns(1, 0x40, false), dns.RcodeBadVers, false},
		{"8.2.6", "EDNS 1, unknown option", soa, edns(1, 0, false, unknown()), dns.RcodeBadVers, false},
		{"8.2.7", "DNSKEY in 512 bytes", dns.TypeDNSKEY, func(m *dns.Msg) { m.SetEdns0(512, true) }, dns.RcodeSuccess, false},
		{"8.2.8", "DO", soa, edns(0, 0, true), dns.RcodeSuccess, true},
		{"8.2.9", "EDNS 1, DO", soa, edns(1, 0, true), dns.RcodeBadVers, false},
		{"8.2.10", "several options", soa, edns(0, 0, false, known()...), dns.RcodeSuccess, true},
		{"", "EDNS 255, all flags, several options", soa, edns(255, 0x7fff, true, known()...), dns.RcodeBadVers, false},
	}
	for _, o := range known() {
		list = append(list,
			compliant{"", fmt.Sprintf("option %d", o.Option()), soa, edns(0, 0, false, o), dns.RcodeSuccess, true},
			compliant{"", fmt.Sprintf("EDNS 1, option %d", o.Option()), soa, edns(1, 0, false, o), dns.RcodeBadVers, false})
	}
	// Types of old and new that no zone here has. RRSIG and the like are types
	// as any other to who does not sign.
	for _, kind := range []uint16{3, 4, 7, 8, 9, 10, 11, 14, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 29, 30, 36, 37, 38, 39, 42, 43,
		44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 55, 59, 60, 61, 62, 63, 64, 65, 99, 104, 105, 106, 107, 108, 109, 256, 257, 258, 259, 32769, 65280} {
		list = append(list, compliant{"", dns.Type(kind).String(), kind, func(*dns.Msg) {}, dns.RcodeSuccess, false})
	}
	return list
}

// ask makes the question for a zone. What is forwarded needs RD.
func (c compliant) ask(zone string, forwarded bool) *dns.Msg {
	m := question(zone, c.kind)
	m.RecursionDesired = forwarded
	c.change(m)
	return m
}

// judge names what is wrong with an answer.
func (c compliant) judge(asked, got *dns.Msg, size int, transport string, forwarded bool) (wrong []string) {
	check := func(good bool, format string, args ...any) {
		if !good {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	check(got.Id == asked.Id && got.Response && got.Opcode == asked.Opcode, "no reply to it: %v", got.MsgHdr)
	check(got.RecursionDesired == asked.RecursionDesired, "RD is %v", got.RecursionDesired)
	check(!got.AuthenticatedData && !got.Zero && !got.Truncated, "flags %v", got.MsgHdr)
	check(slices.Equal(got.Question, asked.Question), "question %v", got.Question)
	check(got.Rcode == c.rcode, "status %s, want %s", dns.RcodeToString[got.Rcode], dns.RcodeToString[c.rcode])
	ours := c.rcode == dns.RcodeSuccess && !forwarded
	check(got.Authoritative == ours, "AA is %v", got.Authoritative)
	has := slices.ContainsFunc(got.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == c.kind })
	check(has == c.data && (len(got.Answer) > 0) == c.data, "answer %v", got.Answer)
	if c.rcode == dns.RcodeSuccess && !c.data {
		check(len(got.Ns) == 1 && got.Ns[0].Header().Rrtype == dns.TypeSOA, "authority %v, want the SOA", got.Ns)
	}
	if transport == overUDP {
		limit := minUDP
		if o := asked.IsEdns0(); o != nil {
			limit = max(minUDP, int(o.UDPSize()))
		}
		check(size <= limit, "%d bytes", size)
	}
	sent, opt := asked.IsEdns0(), got.IsEdns0()
	check((sent != nil) == (opt != nil), "OPT: %v", opt)
	if sent == nil || opt == nil {
		return wrong
	}
	check(opt.Version() == 0, "EDNS version %d", opt.Version())
	check(opt.Z() == 0, "EDNS flags %x", opt.Z())
	check(opt.Do() == sent.Do(), "DO is %v", opt.Do())
	for _, o := range opt.Option {
		cookie := o.Option() == optionCookie && slices.ContainsFunc(sent.Option, func(s dns.EDNS0) bool { return s.Option() == optionCookie })
		check(cookie, "option %d was not asked for: %v", o.Option(), o)
	}
	return wrong
}

// asks sends a question and gives the answer and its size.
func asks(t *testing.T, transport string, server netip.AddrPort, m *dns.Msg) (*dns.Msg, int) {
	t.Helper()
	raw, err := net.Dial(transport, server.String())
	if err != nil {
		t.Fatal(err)
	}
	conn := &dns.Conn{Conn: raw, UDPSize: maxTCP}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if err := conn.WriteMsg(m); err != nil {
		t.Fatal(err)
	}
	wire, err := conn.ReadMsgHeader(nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	got := new(dns.Msg)
	if err := got.Unpack(wire); err != nil {
		t.Fatalf("the answer is malformed: %v: %x", err, wire)
	}
	return got, len(wire)
}

// elsewhere is a server with one zone, which knows EDNS and no type but SOA.
func elsewhere(m *dns.Msg) {
	soa := &dns.SOA{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60}, Ns: ".", Mbox: ".", Minttl: 60}
	if o := m.IsEdns0(); o != nil { // marks that must not reach clients
		o.Option = append(o.Option, unknown())
		o.SetZ(0x40)
	}
	if m.Zero = true; m.Question[0].Qtype == dns.TypeSOA {
		m.Answer = []dns.RR{soa}
	} else {
		m.Ns = []dns.RR{soa}
	}
}

func TestQuestionsOfRFC8906AreAnsweredAsItSays(t *testing.T) {
	c := newCatalog(t)
	c.services4()
	u := newUpstream(t, message(elsewhere))
	more := fmt.Sprintf("dns: {forward: {\"example.com\": [%q]}, forward_timeout: 10s}\n", u.addr)
	f := newFixtureListening(t, testCluster(t, more), c, loopbackPort)
	f.standStill()
	server := serve(t, f)
	zones := map[string]bool{ // forwarded
		"hpc.example.com": false, "virtual": false, "0.1.10.in-addr.arpa": false, "2.0.192.in-addr.arpa": false,
		"0.0.0.0.0.0.0.0.0.1.0.0.0.0.d.f.ip6.arpa": false, "example.com": true,
	}
	count := 0
	for zone, forwarded := range zones {
		for _, c := range compliance() {
			for _, transport := range []string{overUDP, overTCP, overUDP} { // the last from the cache, if there is one
				asked := c.ask(zone, forwarded)
				got, size := asks(t, transport, server, asked)
				for _, wrong := range c.judge(asked, got, size, transport, forwarded) {
					t.Errorf("%s %q for %s over %s: %s", c.section, c.name, zone, transport, wrong)
				}
				count++
			}
		}
	}
	if asked := u.asked.Load(); asked == 0 {
		t.Error("nothing was forwarded")
	}
	t.Logf("%d questions", count)
}

// What is forwarded and too large for the client is cut, with TC and the OPT.
func TestForwardedAnswersAreCutAtTheSizeOfRFC8906(t *testing.T) {
	u := newUpstream(t, message(answering(1, 60)))
	_, server := relaying(t, u)
	asked := question("www.example.com", dns.TypeA)
	asked.SetEdns0(512, true)
	got, size := asks(t, overUDP, server, asked)
	if o := got.IsEdns0(); !got.Truncated || size > 512 || o == nil || !o.Do() {
		t.Errorf("%d bytes over UDP: %v", size, got)
	}
	if got, _ := asks(t, overTCP, server, asked); got.Truncated || len(got.Answer) != 60 {
		t.Errorf("over TCP: %v", got)
	}
}

// What BIND says to the same questions, but for the values of its options.
func TestBINDAnswersQuestionsOfRFC8906Alike(t *testing.T) {
	f, _ := writing(t, "dns: {rate_limit: 0, allow_recursion: []}\n")
	f.server.refresh()
	text, ok := f.server.ZoneText("hpc.example.com")
	zone := filepath.Join(t.TempDir(), "zone")
	if err := os.WriteFile(zone, []byte(text), 0o600); err != nil || !ok {
		t.Fatal(err, ok)
	}
	theirs := startPeer(t, "named", strings.ReplaceAll(bindConfig, "ZONE", zone), "-g", "-n", "1")
	for _, c := range compliance() {
		asked := c.ask("hpc.example.com", false)
		if asked.Opcode == 15 && asked.RecursionDesired {
			continue // RD in NOTIMP: the table in DESIGN.md
		}
		wire, err := asked.Pack()
		if err != nil {
			t.Fatal(err)
		}
		ours := f.unpack(f.raw(wire, netip.MustParseAddr("192.0.2.200"), overUDP))
		want, _ := asks(t, overUDP, theirs, asked)
		if diff := cmp.Diff(told(want), told(ours)); diff != "" {
			t.Errorf("%s %q (-BIND +ours):\n%s", c.section, c.name, diff)
		}
	}
}

// Broken OPTs are answered, with FORMERR and no guess at what they meant.
func TestBrokenOPTsAreFormatErrors(t *testing.T) {
	_, server := serving(t)
	whole := packet(t, "hpc.example.com", dns.TypeSOA, edns(0, 0, false))
	opt := whole[len(whole)-optSize:]
	twice := append(slices.Clone(whole), opt...)
	binary.BigEndian.PutUint16(twice[10:], 2)
	named := slices.Concat(whole[:len(whole)-optSize], []byte("\x01a\x00"), opt[1:])
	long := slices.Clone(whole)
	long = append(long, 0, 100, 0, 9, 1) // an option that is longer than the OPT
	binary.BigEndian.PutUint16(long[len(long)-5-2:], 5)
	for name, wire := range map[string][]byte{"two": twice, "not at the root": named, "option cut short": long} {
		for _, transport := range []string{overUDP, overTCP} {
			conn, err := net.Dial(transport, server.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			c := &dns.Conn{Conn: conn}
			_ = conn.SetDeadline(time.Now().Add(patience))
			if _, err := c.Write(wire); err != nil {
				t.Fatal(err)
			}
			if m, err := c.ReadMsg(); err != nil || m.Rcode != dns.RcodeFormatError || len(m.Answer) > 0 {
				t.Errorf("%s over %s: %v, %v", name, transport, m, err)
			}
		}
	}
}
