package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/miekg/dns"
)

// telling is a server that explains apt in so many lines.
func telling(t *testing.T, lines int, more string) *fixture {
	t.Helper()
	f := newFixture(t, testCluster(t, more), newCatalog(t))
	f.node("fbservice1", "10.1.0.1", "apt:3142")
	f.server.tells = func(service string) (told []string) {
		if service != "apt" {
			return nil
		}
		for i := range lines {
			told = append(told, fmt.Sprintf("line %d: up → down, because  of\n%s", i+1, strings.Repeat("e", 300)))
		}
		return told
	}
	f.server.refresh()
	return f
}

func texted(m *dns.Msg) (texts []string) {
	for _, rr := range m.Answer {
		texts = append(texts, strings.Join(rr.(*dns.TXT).Txt, ""))
	}
	slices.Sort(texts)
	return texts
}

func TestExplainIsToldAsTXTInOrder(t *testing.T) {
	f := telling(t, 3, "")
	m := f.unpack(f.raw(packet(t, "eXplain.APT.service.virtual", dns.TypeTXT), loopback, overTCP))
	got := texted(m)
	if m.Rcode != dns.RcodeSuccess || !m.Authoritative || len(got) != 3 {
		t.Fatalf("%v", m)
	}
	for i, text := range got {
		if !strings.HasPrefix(text, fmt.Sprintf("%02d line %d: up -> down, because of e", i+1, i+1)) || len(text) != maxToldText || !strings.HasSuffix(text, "e...") {
			t.Errorf("line %d: %q, %d bytes", i+1, text, len(text))
		}
	}
	if m.Answer[0].Header().Ttl != 0 {
		t.Errorf("it may be kept: %v", m.Answer[0])
	}
	for _, other := range []struct {
		name string
		kind uint16
	}{
		{"explain.nosuch.service.virtual", dns.TypeTXT}, {"explain.apt.service.virtual", dns.TypeA},
		{"explain.apt.node.virtual", dns.TypeTXT}, {"explain.explain.apt.service.virtual", dns.TypeTXT},
	} {
		if m := f.ask(other.name, other.kind); m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v", other.name, m)
		}
	}
	f.server.tells = nil
	if m := f.ask("explain.apt.service.virtual", dns.TypeTXT); m.Rcode != dns.RcodeNameError {
		t.Errorf("where nobody can explain: %v", m)
	}
}

func TestALongExplanationIsCutOverUDPAndWholeOverTCP(t *testing.T) {
	f := telling(t, maxTold+40, "")
	wire := f.raw(packet(t, "explain.apt.service.virtual", dns.TypeTXT), loopback, overUDP)
	if m := f.unpack(wire); !m.Truncated || len(wire) > minUDP {
		t.Errorf("over UDP: %d bytes, truncated %v", len(wire), m.Truncated)
	}
	m := f.unpack(f.raw(packet(t, "explain.apt.service.virtual", dns.TypeTXT), loopback, overTCP))
	got := texted(m)
	if m.Truncated || len(got) != maxTold || !strings.Contains(got[maxTold-1], "41 lines more") {
		t.Errorf("over TCP: %d lines, truncated %v, the last is %q", len(got), m.Truncated, got[max(0, len(got)-1)])
	}
}

func TestExplanationsAreForNetworksThatMayAsk(t *testing.T) {
	f := telling(t, 1, "\ndns: {allow_explain: [10.1.0.0/28]}\n")
	for client, rcode := range map[string]int{
		"127.0.0.1": dns.RcodeSuccess, "10.1.0.9": dns.RcodeSuccess, "10.1.0.200": dns.RcodeRefused, "203.0.113.1": dns.RcodeRefused,
	} {
		m := f.unpack(f.raw(packet(t, "explain.apt.service.virtual", dns.TypeTXT), netip.MustParseAddr(client), overUDP))
		if m.Rcode != rcode || rcode != dns.RcodeSuccess && len(m.Answer) > 0 {
			t.Errorf("%s: %v", client, m)
		}
	}
}

func TestExplanationsAreBoundedInTime(t *testing.T) {
	f := telling(t, 1, "")
	at := time.Now()
	f.server.now = func() time.Time { return at } // however slow this machine is
	refused := 0
	for range 4 * toldPerSec {
		if f.ask("explain.apt.service.virtual", dns.TypeTXT).Rcode == dns.RcodeServerFailure {
			refused++
		}
	}
	if refused != 3*toldPerSec {
		t.Errorf("of %d at one moment %d are refused; want %d", 4*toldPerSec, refused, 3*toldPerSec)
	}
}

func TestTextIsCutBetweenCharacters(t *testing.T) {
	for most := range 20 {
		if got := cutText(strings.Repeat("é", 20), most+3); len(got) > most+3 || !utf8.ValidString(got) || !strings.HasSuffix(got, "...") {
			t.Errorf("%d bytes: %q", most+3, got)
		}
	}
	if got := cutText("é", 2); got != "é" {
		t.Errorf("%q", got)
	}
}
