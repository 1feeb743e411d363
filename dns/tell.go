package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/miekg/dns"
)

// explain.SERVICE.service.virtual, asked for as TXT, tells why the service's
// name gives what it gives: what `holdfast explain SERVICE` prints and the API
// answers, for who has dig and nothing else. It is put together when it is
// asked, for the networks of dns.allow_explain alone. A tag "explain" of a
// service keeps its own records of all other types.
const explainLabel = "explain"

// Bounds of one explanation.
const (
	maxTold     = 60  // records
	maxToldText = 240 // bytes of each: one string
	toldPerSec  = 20  // explanations a second: each looks at every check and its history
)

// told is the service that a question wants explained; "": none.
func (t *table) told(q *query) string {
	if q.kind != dns.TypeTXT || q.class != dns.ClassINET || t.virtual == nil || len(q.name) == 0 {
		return ""
	}
	labels := labelsOf(name(q.name))
	if len(labels) < 3 || labels[0] != explainLabel || labels[2] != "service" {
		return ""
	}
	if name(q.name).parent().parent().parent() != t.virtual.origin {
		return ""
	}
	return labels[1]
}

// tell answers such a question; false: as any other, since nobody here can
// explain, or there is no such service.
func (w *worker) tell(t *table, client netip.Addr) (a answer, ok bool) {
	s := w.server
	service := t.told(&w.query)
	if service == "" || s.tells == nil {
		return answer{}, false
	}
	if !contains(t.explained, client) {
		return answer{rcode: dns.RcodeRefused, zone: t.virtual, why: reasonUntold}, true
	}
	if !s.telling.AllowN(s.now(), 1) {
		return answer{rcode: dns.RcodeServerFailure, zone: t.virtual, why: reasonBusyTelling}, true
	}
	lines := s.tells(service)
	if len(lines) == 0 {
		return answer{}, false
	}
	return answer{zone: t.virtual, set: toldSet(lines)}, true
}

// toldSet makes the records. Resolvers shuffle them, so that each begins with
// its number. What prints them escapes all but ASCII (RFC 1035 §5.1), so that
// our own signs are written in it.
func toldSet(lines []string) *rrset {
	plain := strings.NewReplacer("→", "->", "…", "...", "≥", ">=")
	if len(lines) > maxTold {
		left := len(lines) - maxTold + 1
		lines = append(lines[:maxTold-1:maxTold-1], fmt.Sprintf("... and %d lines more: holdfast explain", left))
	}
	n := &node{}
	for i, line := range lines {
		n.add(txtRecord(dns.ClassINET, 0, cutText(fmt.Sprintf("%02d %s", i+1, plain.Replace(strings.Join(strings.Fields(line), " "))), maxToldText)))
	}
	n.finish()
	return n.find(dns.TypeTXT)
}

// cutText cuts a text to so many bytes, between characters.
func cutText(text string, most int) string {
	if len(text) <= most {
		return text
	}
	cut := most - len("...")
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "..."
}
