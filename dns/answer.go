package dns

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/miekg/dns"
)

// answer is what a table says to a query, before it is bytes.
type answer struct {
	rcode    int
	zone     *zone  // nil: no zone of ours
	set      *rrset // nil: nothing to answer with
	negative bool   // the SOA goes along (RFC 2308 §2)
	route    *route // not nil: whom to ask instead; the rest does not count
}

// lookup finds the answer to a well-formed query. confirmed tells whether the
// table was made from a replica of the catalog that was up to date: until then
// a name that it lacks is SERVFAIL, so that the resolver tries the next
// server, because "it does not exist" might be a lie.
func (t *table) lookup(q *query, confirmed func(*table) bool) answer {
	switch q.kind {
	case dns.TypeOPT, dns.TypeTSIG, dns.TypeNXNAME: // never asked for
		return answer{rcode: dns.RcodeFormatError}
	case dns.TypeAXFR, dns.TypeIXFR:
		return answer{rcode: dns.RcodeRefused}
	case dns.TypeMAILA, dns.TypeMAILB, dns.TypeTKEY:
		return answer{rcode: dns.RcodeNotImplemented}
	}
	if q.class == dns.ClassCHAOS {
		return t.server.answer(q)
	}
	if q.class != dns.ClassINET {
		return answer{rcode: dns.RcodeRefused}
	}
	c, ok := t.match(q.name)
	if !ok {
		return answer{rcode: dns.RcodeRefused}
	}
	if c.route != nil {
		return answer{route: c.route}
	}
	a := c.zone.answer(q)
	if a.rcode == dns.RcodeNameError && c.zone.catalog && !confirmed(t) {
		return answer{rcode: dns.RcodeServerFailure, zone: c.zone}
	}
	return a
}

// answer finds what the zone says: data, NODATA (the name exists) or NXDOMAIN.
func (z *zone) answer(q *query) answer {
	n := z.find(q.name, &q.scratch)
	switch {
	case n == nil && q.class == dns.ClassCHAOS:
		return answer{rcode: dns.RcodeRefused}
	case n == nil:
		return answer{rcode: dns.RcodeNameError, zone: z, negative: true}
	case q.kind == dns.TypeANY && len(n.sets) > 0 && len(z.any.records) > 0:
		return answer{zone: z, set: &z.any}
	}
	set := n.find(q.kind)
	return answer{zone: z, set: set, negative: set == nil && q.class == dns.ClassINET}
}

// packer turns answers into messages. It belongs to one goroutine at a time;
// its memory is used again for the next message.
type packer struct {
	rand  *rand.Rand
	order []int
	glued []glued

	b     []byte // what it appends to
	start int    // of the message in b
	limit int    // the most bytes of the message, OPT not counted
}

// glued is a record whose target has addresses to go along.
type glued struct {
	record *record
	target int // offset of the target's name in the message
}

// maxPointer is as far as a compression pointer reaches (RFC 1035 §4.1.4).
const maxPointer = 0x3fff

// pack appends to b the message that answers q, of at most limit bytes.
// Records come in random order, each order as likely as any other. Those of
// the answer that don't fit are left out and TC is set; additional ones are
// left out silently (RFC 2181 §9).
func (p *packer) pack(b []byte, q *query, a answer, recursion bool, limit int) []byte {
	p.start, p.limit, p.glued = len(b), limit, p.glued[:0]
	if q.edns {
		p.limit -= optSize
	}
	p.b = append(b, make([]byte, headerSize)...)
	p.b = append(p.b, q.question...)

	flags := bitQR | q.flags&(opcodeMask<<opcodeShift|bitRD|bitCD) | uint16(a.rcode&0xf)
	if a.zone != nil && (a.rcode == dns.RcodeSuccess || a.rcode == dns.RcodeNameError) {
		flags |= bitAA
	}
	if recursion {
		flags |= bitRA
	}
	var counts [4]uint16
	if len(q.question) > 0 {
		counts[0] = 1
	}
	if a.set != nil {
		var whole bool
		if counts[1], whole = p.answers(q, a); whole {
			counts[3] = p.additional()
		} else {
			flags |= bitTC
		}
	}
	if a.negative && p.append(originOffset(q, a.zone), &a.zone.negative, q, a.zone) {
		counts[2] = 1
	}
	if q.edns {
		p.b = appendOPT(p.b, a.rcode, q.do)
		counts[3]++
	}
	head := p.b[p.start:]
	binary.BigEndian.PutUint16(head, q.id)
	binary.BigEndian.PutUint16(head[2:], flags)
	for i, n := range counts {
		binary.BigEndian.PutUint16(head[4+2*i:], n)
	}
	b, p.b = p.b, nil
	return b
}

// answers appends the answer's set as far as it fits.
func (p *packer) answers(q *query, a answer) (count uint16, whole bool) {
	p.shuffle(len(a.set.records))
	for _, i := range p.order {
		r := &a.set.records[i]
		at := len(p.b) - p.start
		if !p.append(headerSize, r, q, a.zone) {
			return count, false
		}
		if len(r.glue) > 0 {
			p.glued = append(p.glued, glued{record: r, target: at + 2 + int(r.target)})
		}
		count++
	}
	return count, true
}

// additional appends the addresses of the targets in the answer.
func (p *packer) additional() (count uint16) {
	for _, g := range p.glued {
		if g.target > maxPointer {
			break
		}
		for i := range g.record.glue {
			if !p.append(g.target, &g.record.glue[i], nil, nil) {
				return count
			}
			count++
		}
	}
	return count
}

// append adds a record whose owner is the name at an offset of the message,
// unless it would be too much.
func (p *packer) append(owner int, r *record, q *query, z *zone) bool {
	if len(p.b)-p.start+2+len(r.wire) > p.limit {
		return false
	}
	p.b = appendPointer(p.b, owner)
	at := len(p.b)
	p.b = append(p.b, r.wire...)
	for _, origin := range r.origins {
		if origin != 0 {
			appendPointer(p.b[:at+int(origin)], originOffset(q, z))
		}
	}
	return true
}

// shuffle puts the numbers below n into a uniformly random order (Fisher and
// Yates, inside out).
func (p *packer) shuffle(n int) {
	p.order = p.order[:0]
	for i := range n {
		j := p.rand.IntN(i + 1)
		p.order = append(p.order, i)
		p.order[i], p.order[j] = p.order[j], i
	}
}

// originOffset is where the origin of q's zone stands in the message: at the
// end of the question's name.
func originOffset(q *query, z *zone) int {
	return headerSize + len(q.name) - len(z.origin)
}

func appendPointer(b []byte, offset int) []byte {
	return append(b, 0xc0|byte(offset>>8), byte(offset))
}

// appendOPT appends our OPT (RFC 6891 §6.1.3): DO as it came (RFC 3225 §3),
// version 0, no options.
func appendOPT(b []byte, rcode int, do bool) []byte {
	var z byte
	if do {
		z = 0x80
	}
	b = append(b, 0, 0, byte(dns.TypeOPT))
	b = binary.BigEndian.AppendUint16(b, maxUDP)
	return append(b, byte(rcode>>4), 0, z, 0, 0, 0)
}
