package dns

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"holdfast/internal/state"
)

// FuzzStaticRecord reads records as admins and the store's documents have
// them: what is accepted can be packed, served, and read back from the store
// as the same record.
func FuzzStaticRecord(f *testing.F) {
	for _, text := range []string{
		"www A 10.1.0.1", "@ 60 MX 10 mail", "a.b CNAME c", "10.1.0.1 PTR a.", "x TXT \"a b\" c", "s SRV 1 2 3 t",
		"c CAA 0 issue \"ca.example.com\"", "n[1-3] A 10.1.0.[1-3]", "h HTTPS 1 . alpn=h2", "\\065.b A 1.2.3.4",
		"t TLSA 3 1 1 00ff", "u URI 10 1 \"https://a/\"", "d DS 1 13 2 00", "n NAPTR 1 2 \"u\" \"s\" \"!x!y!\" .",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := expandStatic(text, "hpc.example.com", 300)
		if err != nil || len(list) > 100 {
			return
		}
		for _, s := range list {
			r, err := s.record()
			if err != nil {
				t.Fatalf("%q was accepted and can't be packed: %v", text, err)
			}
			if _, err := r.unpack(s.owner, root); err != nil {
				t.Fatalf("%q does not come back: %v", text, err)
			}
			if len(s.key()) > state.MaxKey {
				continue // the store refuses it
			}
			again, err := stored(&state.Document{Key: s.key(), Value: []byte("300")}, "other.example")
			if err != nil {
				if len(s.key()) > maxRecordText {
					continue
				}
				t.Fatalf("%q is %q in the store, and can't be read: %v", text, s.key(), err)
			}
			if again.owner != s.owner || again.key() != s.key() {
				t.Fatalf("%q is %q in the store, and %q read back", text, s.key(), again.key())
			}
		}
	})
}

// FuzzZoneFile compares zones with whatever a file holds.
func FuzzZoneFile(f *testing.F) {
	f.Add("$ORIGIN example.com.\n@ SOA a b 1 2 3 4 5\nwww A 10.1.0.1\n")
	f.Add("10.1.0.1 www # x\nfd00::1 six\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(strings.ToUpper(text), "$GENERATE") {
			return // as many records as the author of the file likes
		}
		d, err := CompareZone(oursToCompare, strings.NewReader(text), "hpc.example.com")
		if err == nil && d.IsEmpty() && len(text) < 50 {
			t.Fatalf("%q is taken for the zone", text)
		}
		if _, err := CompareHosts(oursToCompare, strings.NewReader(text), "hpc.example.com"); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

// FuzzSignedQuery puts bytes where a secondary's signed question is.
func FuzzSignedQuery(f *testing.F) {
	set := transferSettings{keys: map[string]tsigKey{"backup.": {algorithm: dns.HmacSHA256, secret: tsigSecret}}}
	for _, secret := range []string{tsigSecret, "AAAA"} {
		m := axfr("hpc.example.com")
		m.SetTsig("backup.", dns.HmacSHA256, 300, time.Now().Unix())
		wire, _, err := dns.TsigGenerate(m, secret, "", false)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		s, err := set.verify(wire)
		if err != nil || s == nil {
			return
		}
		m := new(dns.Msg)
		if m.Unpack(wire) != nil || len(m.Question) == 0 {
			return
		}
		reply := new(dns.Msg).SetReply(m)
		if wire, err := s.sign(reply, false); err == nil && new(dns.Msg).Unpack(wire) != nil {
			t.Fatalf("the reply is malformed: %x", wire)
		}
	})
}

// FuzzCachedReply relays a reply from the cache at any age and size: it is
// whole, fits, and no TTL grows.
func FuzzCachedReply(f *testing.F) {
	asked := packet(f, "www.example.com", dns.TypeA, func(m *dns.Msg) { m.Id = 7; m.SetEdns0(1232, true) })
	f.Add(made(asked, answering(1, 3)), uint16(512), uint32(10))
	f.Add(made(asked, answering(1, 90)), uint16(600), uint32(59))
	f.Add(made(asked, failing(dns.RcodeNameError)), uint16(1232), uint32(100000))
	f.Fuzz(func(t *testing.T, wire []byte, size uint16, age uint32) {
		q, m, err := reading(t, asked, wire)
		if err != nil || !isAnswer(m) {
			return
		}
		stored := time.Unix(1_700_000_000, 0)
		e, err := newEntry(m, q, stored, 3600)
		if err != nil {
			return
		}
		q.size = size
		out := e.append(nil, q, stored.Add(time.Duration(age)*time.Second), q.limit(), nil)
		reply := new(dns.Msg)
		if len(out) > q.limit() || reply.Unpack(out) != nil {
			t.Fatalf("%d bytes of %d: %x", len(out), q.limit(), out)
		}
		for _, rr := range reply.Answer {
			if rr.Header().Ttl > 3600 {
				t.Fatalf("TTL %d: %v", rr.Header().Ttl, rr)
			}
		}
	})
}
