package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// relayed gives what a client that asked with asked gets of a reply.
func relayed(t *testing.T, asked, wire []byte, limit int) *dns.Msg {
	t.Helper()
	var q query
	if fault := q.parse(asked); fault != "" {
		t.Fatal(fault)
	}
	if !replies(wire, asked) {
		t.Fatal("no reply to it")
	}
	r, err := readResponse(wire, &q)
	if err != nil {
		t.Fatal(err)
	}
	out := r.relay(&q, limit)
	if len(out) > limit {
		t.Errorf("%d bytes, %d allowed", len(out), limit)
	}
	m := new(dns.Msg)
	if err := m.Unpack(out); err != nil {
		t.Fatalf("%v: %x", err, out)
	}
	return m
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
	wire := made(asked, referral)
	sizes := map[int]bool{}
	for limit := headerSize + len("www.example.com") + 6; limit <= len(wire); limit++ {
		m := relayed(t, asked, wire, limit)
		sizes[len(m.Answer)+len(m.Ns)+len(m.Extra)] = true
		if cut := len(m.Answer) < 3; m.Truncated != cut {
			t.Errorf("limit %d: %d answers, TC %v", limit, len(m.Answer), m.Truncated)
		}
	}
	if len(sizes) != 10 {
		t.Errorf("%d different numbers of records, want 0 to 9", len(sizes))
	}
	negative := made(asked, func(m *dns.Msg) {
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{mustRR(t, "example.com. 60 IN SOA ns.example.com. hostmaster.example.com. 1 2 3 4 5")}
	})
	if m := relayed(t, asked, negative, len(negative)-1); !m.Truncated {
		t.Errorf("NXDOMAIN lost its SOA without a word: %v", m)
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
	var q query
	q.parse(asked)
	for n := headerSize + len(q.question); n < len(wire); n++ {
		if _, err := readResponse(wire[:n], &q); err == nil {
			t.Fatalf("%d of %d bytes were taken for whole", n, len(wire))
		}
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
		var q query
		if fault := q.parse(asked); fault != "" {
			t.Fatal(fault)
		}
		q.edns, q.size = size > 0, size
		if !replies(wire, asked) {
			return
		}
		r, err := readResponse(wire, &q)
		if err != nil || !r.answers() {
			return // never relayed
		}
		out := r.relay(&q, q.limit())
		if len(out) > q.limit() || !bytes.HasPrefix(out[headerSize:], q.question) || binary.BigEndian.Uint16(out) != q.id {
			t.Fatalf("%d bytes of %d: %x", len(out), q.limit(), out)
		}
		again, err := readResponse(out, &q)
		if err != nil {
			t.Fatalf("%v: %x", err, out)
		}
		if n := len(again.records); n > 0 && again.records[n-1].end != len(out) {
			t.Fatalf("bytes behind the last record: %x", out)
		}
	})
}
