package dns

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// entry is a forwarder's answer, packed: the records behind the question, as
// they stand behind any question for the name. It is immutable but for its
// atomics.
type entry struct {
	key    cacheKey
	domain string // of the route it came by
	rcode  int
	ad     bool // validated, the forwarder says
	why    *extended
	wire   []byte
	spans  []span // of the records in wire
	stored time.Time
	ttl    uint32 // seconds

	hits       atomic.Uint32
	used       atomic.Int64 // Unix seconds
	refreshing atomic.Bool
	failed     atomic.Int64 // Unix nanoseconds: no forwarder is asked before
}

// span is where a record of an entry lies.
type span struct {
	ttl     uint16 // offset in wire of its TTL
	end     uint16 // offset in wire of what follows it
	section uint8  // 0 answer, 1 authority, 2 additional
}

// newEntry packs a forwarder's answer to q. Records that have nothing to do
// with the question are left out.
func newEntry(m *dns.Msg, q *query, now time.Time, maxTTL uint32) (*entry, error) {
	asked, err := q.message()
	if err != nil {
		return nil, err
	}
	asked[0].Name = strings.ToLower(asked[0].Name)
	kept := relevant(m, asked[0].Name)
	kept.Question, kept.Compress = asked, true
	for _, section := range [][]dns.RR{kept.Answer, kept.Ns, kept.Extra} {
		for _, rr := range section {
			h := rr.Header()
			if dns.IsSubDomain(h.Name, asked[0].Name) { // in the question's spelling, to be compressed
				h.Name = asked[0].Name[len(asked[0].Name)-len(h.Name):]
			}
			if h.Ttl > 1<<31-1 { // RFC 2181 §8
				h.Ttl = 0
			}
			h.Ttl = min(h.Ttl, maxTTL)
		}
	}
	packed, err := kept.Pack()
	if err != nil {
		return nil, fmt.Errorf("dns: pack a forwarder's answer: %w", err)
	}
	e := &entry{
		key: cacheKey{name(q.name), q.kind, q.mode()}, rcode: m.Rcode, ad: m.AuthenticatedData,
		why: extendedOf(m), wire: slices.Clone(packed[headerSize+len(q.question):]), stored: now,
	}
	if e.spans, err = spansOf(packed, headerSize+len(q.question)); err != nil {
		return nil, err
	}
	e.ttl = lifetime(kept)
	return e, nil
}

// spansOf finds the records of a message that we packed ourselves.
func spansOf(packed []byte, base int) ([]span, error) {
	var spans []span
	at := base
	for section := range 3 {
		for range binary.BigEndian.Uint16(packed[6+2*section:]) {
			fixed, ok := skipName(packed, at)
			if !ok || fixed+offsetData > len(packed) {
				return nil, fmt.Errorf("dns: a packed answer can't be read back at byte %d", at)
			}
			at = fixed + offsetData + int(binary.BigEndian.Uint16(packed[fixed+offsetLength:]))
			if at > len(packed) {
				return nil, fmt.Errorf("dns: a packed answer ends at byte %d, a record at %d", len(packed), at)
			}
			spans = append(spans, span{ttl: uint16(fixed + offsetTTL - base), end: uint16(at - base), section: uint8(section)})
		}
	}
	return spans, nil
}

// lifetime is for how long an answer may be remembered, in seconds: of data
// the least TTL, of absence what the SOA says (RFC 2308 §5), and nothing
// without one.
func lifetime(m *dns.Msg) uint32 {
	negative := m.Rcode == dns.RcodeNameError || !slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		return rr.Header().Rrtype == m.Question[0].Qtype || m.Question[0].Qtype == dns.TypeANY
	})
	ttl := uint32(1<<31 - 1)
	for _, rr := range m.Answer {
		ttl = min(ttl, rr.Header().Ttl)
	}
	if !negative {
		return ttl
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(ttl, soa.Hdr.Ttl, soa.Minttl, maxNegativeTTL)
		}
	}
	return 0
}

// failureEntry remembers that nobody had an answer (RFC 9520).
func failureEntry(q *query, why *extended, now time.Time) *entry {
	return &entry{key: cacheKey{name(q.name), q.kind, q.mode()}, rcode: dns.RcodeServerFailure, why: why, stored: now, ttl: failureTTL}
}

// size is what the entry takes of the cache, in bytes: about that of memory.
func (e *entry) size() int {
	const fixed = 256 // the structure, the map's slot, slices' headers
	return fixed + len(e.key.name) + len(e.wire) + 6*len(e.spans)
}

// left is how much of its time the entry has; negative when it is over.
func (e *entry) left(now time.Time) time.Duration {
	return time.Duration(e.ttl)*time.Second - now.Sub(e.stored)
}

// append appends the reply to q, of at most limit bytes: records that fit,
// with the time they have left; staleTTL for a stale answer. It does not
// allocate where b has room.
func (e *entry) append(b []byte, q *query, now time.Time, limit int, why *extended) []byte {
	if why == nil {
		why = e.why
	}
	start, base := len(b), headerSize+len(q.question)
	room := limit - optRoom(q, why)
	n := len(e.spans)
	for n > 0 && base+int(e.spans[n-1].end) > room {
		n--
	}
	b = append(b, make([]byte, headerSize)...)
	b = append(b, q.question...)
	at := len(b)
	if n > 0 {
		b = append(b, e.wire[:e.spans[n-1].end]...)
	}
	age, stale := uint32(max(0, now.Sub(e.stored)/time.Second)), e.left(now) <= 0
	var counts [4]uint16
	for _, s := range e.spans[:n] {
		counts[s.section]++
		field := b[at+int(s.ttl):]
		ttl := binary.BigEndian.Uint32(field)
		switch {
		case stale:
			ttl = min(ttl, staleTTL)
		default:
			ttl -= min(age, ttl)
		}
		binary.BigEndian.PutUint32(field, ttl)
	}
	flags := bitQR | bitRA | q.flags&(bitRD|bitCD) | uint16(e.rcode&0xf)
	// Of what is needed (RFC 2181 §9): the answer, or the authority that
	// stands in its place.
	if n < len(e.spans) && (e.spans[n].section == 0 || e.spans[n].section == 1 && e.spans[0].section == 1) {
		flags |= bitTC
	}
	if e.ad && (q.do || q.flags&bitAD != 0) { // RFC 6840 §5.8
		flags |= bitAD
	}
	if q.edns {
		b = appendOPT(b, q, e.rcode, why)
		counts[2]++
	}
	head := b[start:]
	binary.BigEndian.PutUint16(head, q.id)
	binary.BigEndian.PutUint16(head[2:], flags)
	binary.BigEndian.PutUint16(head[4:], 1)
	for i, c := range counts[:3] {
		binary.BigEndian.PutUint16(head[6+2*i:], c)
	}
	return b
}

// extendedOf is the forwarder's own word on why (RFC 8914 §3 lets it pass).
func extendedOf(m *dns.Msg) *extended {
	opt := m.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			return newExtended(e.InfoCode, printableASCII(e.ExtraText))
		}
	}
	return nil
}

// printableASCII takes out what a terminal might obey.
func printableASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
