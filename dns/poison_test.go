package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// evil is the address that none of these tests may ever see in an answer.
const evil = "198.51.100.66"

// poisoned fails the test if an answer, or what is remembered, has the
// attacker's address.
func poisoned(t *testing.T, c *caching, attack string, replies ...*dns.Msg) {
	t.Helper()
	for _, m := range replies {
		if strings.Contains(m.String(), evil) {
			t.Errorf("%s: the attacker was believed:\n%v", attack, m)
		}
	}
	c.fixture.server.cache().each(func(e *entry) {
		if bytes.Contains(e.wire, net.ParseIP(evil).To4()) {
			t.Errorf("%s: %s is poisoned", attack, e.key.name)
		}
	})
}

// Forged replies that come before the genuine one, on the very path to us:
// each is right in all but one thing.
func TestRepliesThatAreWrongInOneThingAreNotBelieved(t *testing.T) {
	attacks := map[string]func(p []byte) []byte{
		"id": func(p []byte) []byte {
			b := made(p, answering(66, 1))
			binary.BigEndian.PutUint16(b, binary.BigEndian.Uint16(b)+1)
			return b
		},
		"case": func(p []byte) []byte {
			return made(p, func(m *dns.Msg) {
				m.Question[0].Name = swapCase(m.Question[0].Name)
				answering(66, 1)(m)
			})
		},
		"name": func(p []byte) []byte {
			return made(p, func(m *dns.Msg) { m.Question[0].Name = "www.example.org."; answering(66, 1)(m) })
		},
		"type": func(p []byte) []byte {
			return made(p, func(m *dns.Msg) { answering(66, 1)(m); m.Question[0].Qtype = dns.TypeMX })
		},
		"class": func(p []byte) []byte {
			return made(p, func(m *dns.Msg) { answering(66, 1)(m); m.Question[0].Qclass = dns.ClassCHAOS })
		},
		"no question": func(p []byte) []byte {
			return made(p, func(m *dns.Msg) { answering(66, 1)(m); m.Question = nil })
		},
		"a query": func(p []byte) []byte { b := made(p, answering(66, 1)); b[2] &^= 0x80; return b },
		"an update": func(p []byte) []byte {
			return made(p, func(m *dns.Msg) { answering(66, 1)(m); m.Opcode = dns.OpcodeUpdate })
		},
	}
	for name, forge := range attacks {
		u := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte {
			if transport == overTCP { // can't be forged
				return [][]byte{made(p, answering(7, 1))}
			}
			return [][]byte{forge(p), made(p, answering(7, 1))}
		})
		c := newCaching(t, maxForwardTimeout, u)
		first, second := c.query("www.example.com", dns.TypeA), c.query("www.example.com", dns.TypeA)
		if diff := cmp.Diff([]string{"198.51.100.7"}, addresses(first)); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", name, diff)
		}
		poisoned(t, c, name, first, second)
	}
}

func swapCase(s string) string {
	b := []byte(s)
	for i := range b {
		if c := lower(b[i]); 'a' <= c && c <= 'z' {
			b[i] ^= 0x20
			break
		}
	}
	return string(b)
}

// The right content from another address or port never arrives.
func TestRepliesFromElsewhereAreNotBelieved(t *testing.T) {
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var sent atomic.Int64
	u := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte {
		if _, err := other.WriteTo(made(p, answering(66, 1)), from); err == nil {
			sent.Add(1)
		}
		return [][]byte{made(p, answering(7, 1))}
	})
	c := newCaching(t, maxForwardTimeout, u)
	for i := range 20 {
		poisoned(t, c, "another port", c.query(fmt.Sprintf("w%d.example.com", i), dns.TypeA))
	}
	if sent.Load() < 20 {
		t.Errorf("only %d forged replies were sent", sent.Load())
	}
}

// A forwarder that lies about other names beside the one it was asked for is
// believed about that one alone.
func TestRecordsForOtherNamesAreNotBelieved(t *testing.T) {
	const victim = "www.bank.example."
	records := []string{
		victim + " 3600 IN A " + evil,
		"bank.example. 3600 IN NS ns.evil.example.",
		"ns.evil.example. 3600 IN A " + evil,
		"*.bank.example. 3600 IN A " + evil,
		". 3600 IN NS ns.evil.example.",
	}
	u := newUpstream(t, message(func(m *dns.Msg) {
		if strings.EqualFold(m.Question[0].Name, victim) {
			answering(7, 1)(m)
			return
		}
		answering(8, 1)(m)
		for _, text := range records {
			rr, err := dns.NewRR(text)
			if err != nil {
				panic(err)
			}
			m.Answer, m.Ns, m.Extra = append(m.Answer, rr), append(m.Ns, rr), append([]dns.RR{rr}, m.Extra...)
		}
	}))
	c := newCaching(t, maxForwardTimeout, u)
	for _, n := range []string{"www.evil.example", "bank.example", "x.www.bank.example"} {
		m := c.query(n, dns.TypeA)
		if got := addresses(m); len(got) == 0 || got[0] != "198.51.100.8" {
			t.Errorf("%s: %v", n, m)
		}
	}
	m := c.query(victim, dns.TypeA)
	if diff := cmp.Diff([]string{"198.51.100.7"}, addresses(m)); diff != "" {
		t.Errorf("the victim (-want +got):\n%s", diff)
	}
	for _, n := range []string{"www.evil.example", "bank.example"} {
		for _, rr := range c.query(n, dns.TypeA).Answer {
			if !strings.EqualFold(rr.Header().Name, dns.Fqdn(n)) {
				t.Errorf("an answer for %s has %v", n, rr)
			}
		}
	}
}

// A server that folds names is understood, by way of TCP, which can't be
// guessed; from then on it is asked in lower case.
func TestServerThatDoesNotKeepTheCaseIsUnderstood(t *testing.T) {
	var overTCPs, mixed atomic.Int64
	u := newUpstream(t, func(p []byte, from net.Addr, transport string) [][]byte {
		if transport == overTCP {
			overTCPs.Add(1)
		}
		return message(func(m *dns.Msg) {
			if m.Question[0].Name != strings.ToLower(m.Question[0].Name) {
				mixed.Add(1)
			}
			m.Question[0].Name = strings.ToLower(m.Question[0].Name)
			answering(7, 1)(m)
		})(p, from, transport)
	})
	c := newCaching(t, maxForwardTimeout, u)
	for i := range 10 {
		if m := c.query(fmt.Sprintf("a-name-with-letters-%d.example.com", i), dns.TypeA); len(m.Answer) != 1 {
			t.Fatalf("%v", m)
		}
	}
	if n := overTCPs.Load(); n != 1 {
		t.Errorf("%d questions over TCP, want the first", n)
	}
	if mixed.Load() == 0 {
		t.Error("no question was in mixed case")
	}
}

func TestCaseOfQuestionsIsRandom(t *testing.T) {
	seen := map[string]bool{}
	for i := range uint64(64) {
		s := mixCase("abcdef.Example.", func() uint64 { return i })
		if !strings.EqualFold(s, "abcdef.example.") {
			t.Fatalf("%q is another name", s)
		}
		seen[s] = true
	}
	if len(seen) != 64 {
		t.Errorf("%d spellings of 6 letters, want 64", len(seen))
	}
}
