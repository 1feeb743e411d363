package dns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// reading gives a reply to what a client asked, as it is read from a forwarder.
func reading(t testing.TB, asked, wire []byte) (*query, *dns.Msg, error) {
	t.Helper()
	q, upstream := new(query), new(dns.Msg)
	if fault := q.parse(asked); fault != "" {
		t.Fatal(fault)
	}
	if err := upstream.Unpack(asked); err != nil {
		t.Fatal(err)
	}
	m, err := readReply(wire, upstream)
	return q, m, err
}

// relayed gives what a client that asked with asked gets of a reply.
func relayed(t *testing.T, asked, wire []byte, limit int) *dns.Msg {
	t.Helper()
	q, m, err := reading(t, asked, wire)
	if err != nil {
		t.Fatal(err)
	}
	e, err := newEntry(m, q, time.Time{}, 3600)
	if err != nil {
		t.Fatal(err)
	}
	out := e.append(nil, q, time.Time{}, limit, nil)
	if len(out) > limit {
		t.Errorf("%d bytes, %d allowed", len(out), limit)
	}
	again := new(dns.Msg)
	if err := again.Unpack(out); err != nil {
		t.Fatalf("%v: %x", err, out)
	}
	return again
}

// referral has records in all sections, compressed against each other.
func referral(m *dns.Msg) {
	m.Compress = true
	answering(1, 3)(m)
	for i := range 3 {
		ns := fmt.Sprintf("ns%d.example.com.", i)
		m.Ns = append(m.Ns, &dns.NS{Hdr: dns.RR_Header{Name: "example.com.", Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 60}, Ns: ns})
		glue := &dns.A{Hdr: dns.RR_Header{Name: ns, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: []byte{192, 0, 2, byte(i)}}
		m.Extra = append([]dns.RR{glue}, m.Extra...) // the OPT stays last
	}
}

func TestRelayedRecordsAreTheForwarders(t *testing.T) {
	withEDNS := func(m *dns.Msg) { m.SetEdns0(1232, false) }
	for name, asked := range map[string][]byte{
		"plain": packet(t, "www.example.com", dns.TypeA),
		"EDNS":  packet(t, "www.example.com", dns.TypeA, withEDNS),
	} {
		wire := made(packet(t, "www.example.com", dns.TypeA, withEDNS, func(m *dns.Msg) { m.Id = binary.BigEndian.Uint16(asked) }), referral)
		want := new(dns.Msg)
		if err := want.Unpack(wire); err != nil {
			t.Fatal(err)
		}
		got := relayed(t, asked, wire, 1232)
		for section, pair := range map[string][2][]dns.RR{
			"answer": {want.Answer, got.Answer}, "authority": {want.Ns, got.Ns}, "additional": {want.Extra, got.Extra},
		} {
			if diff := cmp.Diff(lines(pair[0]), lines(pair[1])); diff != "" {
				t.Errorf("%s: %s (-theirs +ours):\n%s", name, section, diff)
			}
		}
		if got.Truncated || (got.IsEdns0() != nil) != (name == "EDNS") {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestRelayedReplyIsCutAtARecord(t *testing.T) {
	asked := packet(t, "www.example.com", dns.TypeA)
	const answers = 40
	wire := made(asked, func(m *dns.Msg) {
		referral(m)
		answering(4, answers-3)(m)
	})
	seen := map[bool]int{}
	for limit := minUDP; limit <= len(wire); limit++ {
		m := relayed(t, asked, wire, limit)
		cut := len(m.Answer) < answers
		if seen[cut]++; m.Truncated != cut {
			t.Errorf("limit %d: %d answers, TC %v", limit, len(m.Answer), m.Truncated)
		}
	}
	if seen[true] == 0 || seen[false] < 100 { // the referral's own records are left out silently
		t.Errorf("%d limits cut the answer, %d less", seen[true], seen[false])
	}
	negative := made(asked, func(m *dns.Msg) {
		m.Rcode = dns.RcodeNameError
		for i := range 20 {
			m.Ns = append(m.Ns, mustRR(t, fmt.Sprintf("example.com. 60 IN SOA ns%d.a%d.example.net. hostmaster%d.example.com. 1 2 3 4 5", i, i, i)))
		}
	})
	if m := relayed(t, asked, negative, minUDP); !m.Truncated {
		t.Errorf("NXDOMAIN lost its authority without a word: %v", m)
	}
}

func mustRR(t *testing.T, s string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

func TestCutRepliesAreMalformed(t *testing.T) {
	asked := packet(t, "www.example.com", dns.TypeA)
	wire := made(asked, referral)
	for n := headerSize + len("www.example.com") + 6; n < len(wire); n++ {
		if _, _, err := reading(t, asked, wire[:n]); !errors.Is(err, errMalformed) {
			t.Fatalf("%d of %d bytes: %v", n, len(wire), err)
		}
	}
}

func TestRepliesWithBrokenNamesReachNobody(t *testing.T) {
	asked := packet(t, "www.example.com", dns.TypeA)
	fixed := "\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x02" // CNAME IN 60, two bytes
	at := byte(headerSize + len("www.example.com") + 6)
	for name, record := range map[string]string{
		"owner points at itself":      "\xc0" + string(at) + fixed + "\xc0\x0c",
		"target points at itself":     "\xc0\x0c" + fixed + "\xc0" + string(at+12),
		"target points behind":        "\xc0\x0c" + fixed + "\xff\xff",
		"target longer than its data": "\xc0\x0c" + fixed + "\x03a",
		"label type of RFC 2673":      "\xc0\x0c" + fixed + "\x41\x00",
	} {
		wire := append(made(asked, func(*dns.Msg) {}), record...)
		wire[7] = 1
		if _, _, err := reading(t, asked, wire); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatConcernsOneHopStaysThere(t *testing.T) {
	asked := packet(t, "www.example.com", dns.TypeA)
	wire := made(asked, func(m *dns.Msg) {
		answering(1, 1)(m)
		m.SetEdns0(4096, true)
		m.SetTsig("key.", dns.HmacSHA256, 300, 0)
	})
	if m := relayed(t, asked, wire, minUDP); len(m.Answer) != 1 || len(m.Extra) != 0 {
		t.Errorf("%v", m)
	}
}

func TestUnknownTypesAreRelayedAsTheyAre(t *testing.T) {
	asked := packet(t, "www.example.com", 65280)
	unknown := "www.example.com. 60 CLASS1 TYPE65280 \\# 4 c00c0102"
	wire := made(asked, func(m *dns.Msg) { m.Answer = []dns.RR{mustRR(t, unknown)} })
	if diff := cmp.Diff([]string{"www.example.com. 60 CLASS1 TYPE65280 \\# 4 c00c0102"}, lines(relayed(t, asked, wire, minUDP).Answer)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzForwardersReply puts bytes in the place of a forwarder's reply: what is
// relayed is a reply to the client's question, whole, and fits.
func FuzzForwardersReply(f *testing.F) {
	asked := packet(f, "www.example.com", dns.TypeA, func(m *dns.Msg) { m.Id = 7 })
	f.Add(made(asked, answering(1, 3)), uint16(0))
	f.Add(made(asked, answering(1, 100)), uint16(512))
	f.Add(made(asked, failing(dns.RcodeNameError)), uint16(1232))
	f.Fuzz(func(t *testing.T, wire []byte, size uint16) {
		q, m, err := reading(t, asked, wire)
		if err != nil || !isAnswer(m) {
			return // never relayed
		}
		q.edns, q.size = size > 0, size
		e, err := newEntry(m, q, time.Time{}, 3600)
		if err != nil {
			return // SERVFAIL
		}
		out := e.append(nil, q, time.Time{}, q.limit(), nil)
		if len(out) > q.limit() || !bytes.HasPrefix(out[headerSize:], q.question) || binary.BigEndian.Uint16(out) != q.id {
			t.Fatalf("%d bytes of %d: %x", len(out), q.limit(), out)
		}
		if err := new(dns.Msg).Unpack(out); err != nil {
			t.Fatalf("%v: %x", err, out)
		}
	})
}
