package dns

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// record is a resource record packed beforehand: all of it but its owner,
// which an answer takes from the question (RFC 1035 §4.1.3).
type record struct {
	wire []byte // TYPE, CLASS, TTL, RDLENGTH, RDATA
	// origins are offsets in wire of two bytes each where the answer writes
	// a compression pointer to the zone's origin; 0 none. Only the RDATA of
	// RFC 1035's own types may be compressed (RFC 3597 §4).
	origins [2]uint16
	// target is the offset in wire of a whole name in RDATA, which the
	// owner of glue points at; 0 none.
	target uint16
	glue   []record
}

// rrset is all records of one type at a name. Answers give them in random
// order.
type rrset struct {
	kind    uint16
	records []record
}

// node is what a name has. A node without sets is an empty non-terminal
// (RFC 8020 §1): it exists, and has no data.
type node struct {
	sets   []rrset
	traits *traits // nil: none
}

// traits are what answers about a name have beside records.
type traits struct {
	denied      bool // NXDOMAIN: the name is here for its reason alone
	why         *extended
	ownFirst    bool   // who runs an instance is given it first
	ownNegative bool   // negativeTTL counts, not the zone's
	negativeTTL uint32 // seconds
}

// find returns the set of a type; nil when the node has none.
func (n *node) find(kind uint16) *rrset {
	for i := range n.sets {
		if n.sets[i].kind == kind {
			return &n.sets[i]
		}
	}
	return nil
}

// add puts a record in the node's set of its type; finish must follow.
func (n *node) add(r record) {
	kind := r.kind()
	set := n.find(kind)
	if set == nil {
		n.sets = append(n.sets, rrset{kind: kind})
		set = &n.sets[len(n.sets)-1]
	}
	set.records = append(set.records, r)
}

// addAddress adds an A or AAAA; a zone (fe80::1%eth0) means nothing elsewhere
// and is left out with its address.
func (n *node) addAddress(addr netip.Addr, ttl uint32) {
	if addr = addr.Unmap(); addr.IsValid() && addr.Zone() == "" {
		n.add(addressRecord(addr, ttl))
	}
}

// finish ends the adding: sets and records get an order that depends on
// nothing but themselves, so that equal inputs give equal tables, and of equal
// records (RFC 2181 §5) the first that was added stays.
func (n *node) finish() {
	slices.SortFunc(n.sets, func(a, b rrset) int { return cmp.Compare(a.kind, b.kind) })
	for i := range n.sets {
		set := &n.sets[i]
		slices.SortStableFunc(set.records, func(a, b record) int { return bytes.Compare(a.wire, b.wire) })
		set.records = slices.CompactFunc(set.records, func(a, b record) bool { return bytes.Equal(a.wire, b.wire) })
	}
	if cap(n.sets) > len(n.sets) { // there are many nodes
		n.sets = append(make([]rrset, 0, len(n.sets)), n.sets...)
	}
}

// levelTTLs gives the records of a set one TTL, the least (RFC 2181 §5.2).
func (n *node) levelTTLs() {
	for _, set := range n.sets {
		least := uint32(1<<32 - 1)
		for _, r := range set.records {
			least = min(least, binary.BigEndian.Uint32(r.wire[offsetTTL:]))
		}
		for i, r := range set.records {
			if binary.BigEndian.Uint32(r.wire[offsetTTL:]) != least {
				set.records[i].wire = bytes.Clone(r.wire) // others share it
				binary.BigEndian.PutUint32(set.records[i].wire[offsetTTL:], least)
			}
		}
	}
}

// isAddress tells whether the record is the A or AAAA of an address.
func (r *record) isAddress(addr netip.Addr) bool {
	if addr.Is4() {
		a := addr.As4()
		return r.kind() == dns.TypeA && bytes.Equal(r.wire[offsetData:], a[:])
	}
	a := addr.As16()
	return r.kind() == dns.TypeAAAA && bytes.Equal(r.wire[offsetData:], a[:])
}

// saysTheSame tells whether two records of one type differ in their TTL at
// most.
func (r *record) saysTheSame(other record) bool {
	return bytes.Equal(r.wire[offsetLength:], other.wire[offsetLength:])
}

func (r *record) kind() uint16 { return binary.BigEndian.Uint16(r.wire) }

// Offsets in record.wire.
const (
	offsetTTL    = 4
	offsetLength = 8
	offsetData   = 10
)

func newRecord(kind, class uint16, ttl uint32, rdata []byte) record {
	wire := make([]byte, 0, offsetData+len(rdata))
	wire = binary.BigEndian.AppendUint16(wire, kind)
	wire = binary.BigEndian.AppendUint16(wire, class)
	wire = binary.BigEndian.AppendUint32(wire, ttl)
	wire = binary.BigEndian.AppendUint16(wire, uint16(len(rdata)))
	return record{wire: append(wire, rdata...)}
}

func addressRecord(addr netip.Addr, ttl uint32) record {
	kind := dns.TypeAAAA
	if addr.Is4() {
		kind = dns.TypeA
	}
	return newRecord(kind, dns.ClassINET, ttl, addr.AsSlice())
}

// nameRecord is a record whose RDATA is one name (NS, PTR), compressed
// against the origin of its zone where it can be.
func nameRecord(kind uint16, ttl uint32, target, origin name) record {
	rdata, at := compress(nil, target, origin)
	r := newRecord(kind, dns.ClassINET, ttl, rdata)
	if at >= 0 {
		r.origins[0] = uint16(offsetData + at)
	}
	r.target = offsetData
	return r
}

// compress appends a name. When it lies below origin, two bytes at the offset
// returned stand for origin; otherwise the name is whole and the offset -1.
func compress(b []byte, n, origin name) (rdata []byte, at int) {
	if origin == root || !n.below(origin) {
		return append(b, n...), -1
	}
	b = append(b, n[:len(n)-len(origin)]...)
	at = len(b)
	return append(b, 0, 0), at
}

// soa are the fields of a zone's SOA that are not the same for all.
type soa struct {
	origin, primary, mailbox name
	serial                   uint32
	ttl, minimum             uint32 // seconds
}

// Timers that secondaries would go by (RFC 1912 §2.2), in seconds.
const (
	soaRefresh = 3600
	soaRetry   = 600
	soaExpire  = 1209600
)

func (s soa) record(ttl uint32) record {
	rdata, first := compress(nil, s.primary, s.origin)
	rdata, second := compress(rdata, s.mailbox, s.origin)
	for _, v := range []uint32{s.serial, soaRefresh, soaRetry, soaExpire, s.minimum} {
		rdata = binary.BigEndian.AppendUint32(rdata, v)
	}
	r := newRecord(dns.TypeSOA, dns.ClassINET, ttl, rdata)
	for i, at := range []int{first, second} {
		if at >= 0 {
			r.origins[i] = uint16(offsetData + at)
		}
	}
	return r
}

// negative is the SOA that says for how long "no" may be remembered: the
// lesser of its own TTL and its last field (RFC 2308 §3).
func (s soa) negative() record { return s.record(min(s.ttl, s.minimum)) }

// srvRecord is RFC 2782's; its target is never compressed.
func srvRecord(ttl uint32, weight, port uint16, target name, glue []record) record {
	rdata := binary.BigEndian.AppendUint16(nil, srvPriority)
	rdata = binary.BigEndian.AppendUint16(rdata, weight)
	rdata = binary.BigEndian.AppendUint16(rdata, port)
	r := newRecord(dns.TypeSRV, dns.ClassINET, ttl, append(rdata, target...))
	r.target, r.glue = offsetData+6, glue
	return r
}

// srvPriority is Consul's.
const srvPriority = 1

// txtRecord holds text in as many strings as it takes.
func txtRecord(class uint16, ttl uint32, text string) record {
	var rdata []byte
	for first := true; first || text != ""; first = false {
		n := min(len(text), maxString)
		rdata = append(append(rdata, byte(n)), text[:n]...)
		text = text[n:]
	}
	return newRecord(dns.TypeTXT, class, ttl, rdata)
}

// anyRecord is the whole answer to a query of type ANY (RFC 8482 §4.2).
func anyRecord(ttl uint32) record {
	return newRecord(dns.TypeHINFO, dns.ClassINET, ttl, []byte("\x07RFC8482\x00"))
}
