package dns

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// answer is what a table says to a query, before it is bytes.
type answer struct {
	rcode      int
	zone       *zone  // nil: no zone of ours
	set        *rrset // nil: nothing to answer with
	negative   bool   // the SOA goes along (RFC 2308 §2)
	traits     *traits
	why        *extended        // goes along where the client can read it (RFC 8914)
	cut        bool             // TC, and no records
	first      netip.Addr       // the address to put first; zero: none
	links      int              // sets in chain
	chain      [maxLinks]*rrset // what the CNAME in set leads to, step by step
	onward     *route           // who is asked for what the last CNAME leads to, in query.target
	onwardLen  int              // of that name, in bytes
	delegation *delegation      // others are responsible
	route      *route           // not nil: whom to ask instead; the rest does not count
}

// maxLinks is how many CNAMEs are followed.
const maxLinks = 8

// lookup finds the answer to a well-formed query. confirmed tells whether the
// table was made from a replica of the catalog that was up to date: until then
// a name that it lacks is SERVFAIL, so that the resolver tries the next
// server, because "it does not exist" might be a lie.
func (t *table) lookup(q *query, confirmed func(*table) bool) answer {
	if len(q.question) == 0 {
		return answer{} // a cookie was all that was asked for
	}
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
	if c.zone == nil && q.kind == dns.TypePTR && t.virtual != nil {
		// In no zone of ours, but an address that the catalog knows.
		if n := t.virtual.names.get(q.name); n != nil && len(n.sets) > 0 {
			return answer{zone: t.virtual, set: n.find(dns.TypePTR)}
		}
	}
	if !ok {
		return answer{rcode: dns.RcodeRefused, why: reasonNotOurs}
	}
	if d := c.delegation; d != nil {
		if q.kind == dns.TypeDS && len(q.name) == len(d.origin) { // the parent's (RFC 4035 §3.1.4.1)
			return answer{zone: d.parent, set: d.ds, negative: d.ds == nil}
		}
		return answer{zone: d.parent, delegation: d, route: c.route}
	}
	if c.route != nil {
		return answer{route: c.route}
	}
	a := c.zone.answer(q)
	if a.set != nil && a.set.kind == dns.TypeCNAME && q.kind != dns.TypeCNAME {
		t.follow(q, &a, confirmed)
	}
	if a.set == nil && c.zone.reverse && t.virtual != nil {
		a = t.virtual.pointer(q, a)
	}
	if a.rcode == dns.RcodeNameError && c.zone.catalog && !confirmed(t) {
		return answer{rcode: dns.RcodeServerFailure, zone: c.zone, why: reasonNotReady}
	}
	return a
}

// answer finds what the zone says: data, NODATA (the name exists) or NXDOMAIN.
func (z *zone) answer(q *query) answer {
	n := z.find(q.name, q)
	switch {
	case n == nil && q.class == dns.ClassCHAOS:
		return answer{rcode: dns.RcodeRefused}
	case n == nil:
		return answer{rcode: dns.RcodeNameError, zone: z, negative: true}
	}
	a := answer{zone: z, traits: n.traits}
	if n.traits != nil {
		a.why = n.traits.why
	}
	switch {
	case n.traits != nil && n.traits.denied:
		a.rcode, a.negative = dns.RcodeNameError, true
	case q.kind == dns.TypeANY && len(n.sets) > 0 && len(z.any.records) > 0:
		a.set = &z.any
	default:
		if a.set = n.find(q.kind); a.set == nil {
			a.set = n.find(dns.TypeCNAME)
		}
		a.negative = a.set == nil && q.class == dns.ClassINET
	}
	return a
}

// follow adds what a CNAME leads to, as far as this server knows it. The rcode
// is that of the last name (RFC 6604 §3).
func (t *table) follow(q *query, a *answer, confirmed func(*table) bool) {
	for set := a.set; ; {
		n := copy(q.target[:], set.records[0].wire[offsetData:])
		for i := range q.target[:n] {
			q.target[i] = lower(q.target[i]) // a length is no letter
		}
		target := q.target[:n]
		c, ok := t.match(target)
		switch {
		case !ok || a.links == maxLinks:
			return
		case c.route != nil:
			a.onward, a.onwardLen = c.route, n
			return
		case c.zone == nil:
			return
		}
		at := c.zone.find(target, q)
		if at == nil {
			a.rcode = dns.RcodeNameError
			if c.zone.catalog && !confirmed(t) {
				a.rcode, a.why = dns.RcodeServerFailure, reasonNotReady
			}
			return
		}
		if set = at.find(q.kind); set == nil {
			set = at.find(dns.TypeCNAME)
		}
		if set == a.set || slices.Contains(a.chain[:a.links], set) {
			return // round and round
		}
		if set == nil || set.records[0].origins != [2]uint16{} { // packed for its own zone
			return
		}
		a.chain[a.links] = set
		a.links++
		if set.kind != dns.TypeCNAME {
			return
		}
	}
}

// pointer adds to what a reverse zone of the cluster file says what the
// catalog knows of the address: nodes and services that the file lacks.
func (z *zone) pointer(q *query, a answer) answer {
	n := z.names.get(q.name)
	if n == nil {
		return a
	}
	a.rcode = dns.RcodeSuccess
	if a.set = n.find(q.kind); a.set == nil && q.kind == dns.TypeANY && len(n.sets) > 0 {
		a.set = &z.any
	}
	a.negative = a.set == nil
	return a
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
	p.start, p.limit, p.glued = len(b), limit-optRoom(q, a.why), p.glued[:0]
	p.b = append(b, make([]byte, headerSize)...)
	p.b = append(p.b, q.question...)

	flags := bitQR | q.flags&(opcodeMask<<opcodeShift|bitRD|bitCD) | uint16(a.rcode&0xf)
	if a.zone != nil && a.delegation == nil && (a.rcode == dns.RcodeSuccess || a.rcode == dns.RcodeNameError) {
		flags |= bitAA
	}
	if recursion {
		flags |= bitRA
	}
	if a.cut {
		flags |= bitTC
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
	switch {
	case a.delegation != nil:
		var whole bool
		if counts[2], whole = p.referral(q, a.delegation); !whole {
			flags |= bitTC
		} else {
			counts[3] = p.additional()
		}
	case a.negative && p.negative(q, a):
		counts[2] = 1
	}
	if q.edns {
		p.b = appendOPT(p.b, q, a.rcode, a.why)
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

// answers appends the answer's sets as far as they fit.
func (p *packer) answers(q *query, a answer) (count uint16, whole bool) {
	p.shuffle(len(a.set.records))
	if a.first.IsValid() {
		p.promote(a.set, a.first)
	}
	owner := headerSize
	last := a.set
	for _, next := range a.chain[:a.links] { // last is a CNAME
		at := len(p.b) - p.start
		if !p.append(owner, &last.records[0], q, a.zone) {
			return count, false
		}
		count++
		owner, last = at+2+offsetData, next
		p.shuffle(len(last.records))
	}
	more, whole := p.set(owner, last, q, a.zone)
	return count + more, whole
}

// set appends records of one owner in p.order, as far as they fit.
func (p *packer) set(owner int, set *rrset, q *query, z *zone) (count uint16, whole bool) {
	for _, i := range p.order {
		r := &set.records[i]
		at := len(p.b) - p.start
		if !p.append(owner, r, q, z) {
			return count, false
		}
		if len(r.glue) > 0 {
			p.glued = append(p.glued, glued{record: r, target: at + 2 + int(r.target)})
		}
		count++
	}
	return count, true
}

// referral appends the servers of a delegation.
func (p *packer) referral(q *query, d *delegation) (count uint16, whole bool) {
	p.shuffle(len(d.servers.records))
	return p.set(headerSize+len(q.name)-len(d.origin), &d.servers, q, d.parent)
}

// negative appends the SOA that says for how long "no" may be remembered: the
// zone's, or with the time that the name has for itself.
func (p *packer) negative(q *query, a answer) bool {
	at := len(p.b)
	if !p.append(originOffset(q, a.zone), &a.zone.negative, q, a.zone) {
		return false
	}
	if a.traits != nil && a.traits.ownNegative {
		binary.BigEndian.PutUint32(p.b[at+2+offsetTTL:], a.traits.negativeTTL)
		binary.BigEndian.PutUint32(p.b[len(p.b)-4:], a.traits.negativeTTL) // MINIMUM is last
	}
	return true
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

// promote moves the record of an address to the front of the order.
func (p *packer) promote(set *rrset, addr netip.Addr) {
	for at, i := range p.order {
		if set.records[i].isAddress(addr) {
			p.order[0], p.order[at] = i, p.order[0]
			return
		}
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
