package dns

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// Sizes on the wire, in bytes.
const (
	headerSize = 12
	optSize    = 11   // an OPT record without options
	minUDP     = 512  // RFC 1035 §4.2.1
	maxUDP     = 1232 // what passes every path unfragmented (DNS Flag Day 2020)
	maxTCP     = 65535
)

// Bits of the header's second word (RFC 1035 §4.1.1, RFC 4035 §3.2).
const (
	bitQR = 1 << 15
	bitAA = 1 << 10
	bitTC = 1 << 9
	bitRD = 1 << 8
	bitRA = 1 << 7
	bitAD = 1 << 5
	bitCD = 1 << 4

	opcodeShift = 11
	opcodeMask  = 0xf
)

// query is one question as it came in. Its slices alias the packet and the
// query itself: it is read before either is used again, and never copied.
type query struct {
	packet   []byte
	id       uint16
	flags    uint16
	question []byte // as received: QNAME, QTYPE, QCLASS
	name     []byte // QNAME in lower case
	kind     uint16
	class    uint16

	edns    bool
	size    uint16 // the client's UDP payload size, EDNS only
	version uint8
	do      bool

	signed    bool   // with a TSIG, which is looked at elsewhere
	hasCookie bool   // RFC 7873
	cookie    []byte // as it came: the client's, and ours behind it if any
	known     bool   // the cookie was ours: the client's address is its own
	reply     [cookieSize]byte

	lowered [maxName]byte
	scratch [maxName]byte
	target  [maxName]byte // where an alias leads
	made    synthetic
}

// fault is why a packet is no question that can be looked up. The empty fault
// is none. Its text is the reason in metrics.
type fault string

const (
	faultShort    fault = "short"    // no header: dropped
	faultResponse fault = "response" // never answered, or two servers talk for ever
	faultCount    fault = "qdcount"  // RFC 9619 §4
	faultQuestion fault = "question" // name or question cut short
	faultRecord   fault = "record"   // a record behind the question is broken
	faultTrailing fault = "trailing" // bytes behind the last record
	faultOPT      fault = "opt"      // more than one, not at the root, or broken (RFC 6891 §6.1)
	faultCookie   fault = "cookie"   // of a length that there is not (RFC 7873 §5.2.2)
	faultOpcode   fault = "opcode"   // anything but QUERY
	faultVersion  fault = "ednsversion"
)

// rcode is what a fault is answered with; not ok: with nothing.
func (f fault) rcode() (rcode int, ok bool) {
	switch f {
	case faultShort, faultResponse:
		return 0, false
	case faultOpcode:
		return dns.RcodeNotImplemented, true
	case faultVersion:
		return dns.RcodeBadVers, true
	}
	return dns.RcodeFormatError, true
}

// parse reads a packet. After a fault that has an rcode, id and flags are
// valid, and question when it is not empty; after faultVersion all of it is.
func (q *query) parse(packet []byte) fault {
	q.packet = packet
	q.question, q.name, q.kind, q.class = nil, nil, 0, 0
	q.edns, q.size, q.version, q.do = false, 0, 0, false
	q.signed, q.hasCookie, q.cookie, q.known = false, false, nil, false
	if len(packet) < headerSize {
		return faultShort
	}
	q.id = binary.BigEndian.Uint16(packet)
	q.flags = binary.BigEndian.Uint16(packet[2:])
	if q.flags&bitQR != 0 {
		return faultResponse
	}
	if q.flags>>opcodeShift&opcodeMask != dns.OpcodeQuery {
		return faultOpcode
	}
	switch binary.BigEndian.Uint16(packet[4:]) {
	case 1:
	case 0:
		return q.parseCookieOnly(packet)
	default:
		return faultCount
	}
	at, ok := q.parseQuestion(packet)
	if !ok {
		return faultQuestion
	}
	if f := q.parseRecords(packet, at); f != "" {
		return f
	}
	if q.version != 0 {
		return faultVersion
	}
	return ""
}

// parseCookieOnly reads a query without a question: who has a cookie may ask
// for a fresh one that way (RFC 7873 §5.4); from others it is a fault.
func (q *query) parseCookieOnly(packet []byte) fault {
	f := q.parseRecords(packet, headerSize)
	switch {
	case f != "" || !q.hasCookie:
		q.edns, q.hasCookie = false, false
		return faultCount
	case q.version != 0:
		return faultVersion
	}
	return ""
}

// parseQuestion reads the first name, which nothing before it could be a
// compression target of, and its type and class.
func (q *query) parseQuestion(packet []byte) (at int, ok bool) {
	at = headerSize
	n := 0
	for {
		if at >= len(packet) {
			return 0, false
		}
		size := int(packet[at])
		if size > maxLabel || at+1+size > len(packet) || n+1+size > maxName {
			return 0, false
		}
		q.lowered[n] = byte(size)
		for i := 1; i <= size; i++ {
			q.lowered[n+i] = lower(packet[at+i])
		}
		n += 1 + size
		at += 1 + size
		if size == 0 {
			break
		}
	}
	if at+4 > len(packet) {
		return 0, false
	}
	q.kind = binary.BigEndian.Uint16(packet[at:])
	q.class = binary.BigEndian.Uint16(packet[at+2:])
	q.name = q.lowered[:n]
	q.question = packet[headerSize : at+4]
	return at + 4, true
}

// parseRecords walks the records behind the question for an OPT. What else
// stands there (a TSIG, say) is well-formed or a fault, and means nothing.
func (q *query) parseRecords(packet []byte, at int) fault {
	additional := int(binary.BigEndian.Uint16(packet[6:])) + int(binary.BigEndian.Uint16(packet[8:]))
	count := additional + int(binary.BigEndian.Uint16(packet[10:]))
	for i := range count {
		owner := at
		var ok bool
		if at, ok = skipName(packet, at); !ok || at+10 > len(packet) {
			return faultRecord
		}
		fixed := packet[at:]
		size := int(binary.BigEndian.Uint16(fixed[8:]))
		at += 10 + size
		if at > len(packet) {
			return faultRecord
		}
		if kind := binary.BigEndian.Uint16(fixed); kind != dns.TypeOPT {
			q.signed = q.signed || kind == dns.TypeTSIG
			continue
		}
		if i < additional || q.edns || packet[owner] != 0 {
			return faultOPT
		}
		q.edns = true
		q.size = binary.BigEndian.Uint16(fixed[2:])
		q.version = fixed[5]
		q.do = fixed[6]&0x80 != 0
		if f := q.parseOptions(fixed[10 : 10+size]); f != "" {
			return f
		}
	}
	if at != len(packet) {
		return faultTrailing
	}
	return ""
}

// skipName returns the offset behind a name, which may end in a pointer.
func skipName(packet []byte, at int) (int, bool) {
	for at < len(packet) {
		size := int(packet[at])
		switch {
		case size == 0:
			return at + 1, true
		case size&0xc0 == 0xc0:
			return at + 2, at+2 <= len(packet)
		case size > maxLabel:
			return 0, false
		}
		at += 1 + size
	}
	return 0, false
}

// limit is the most bytes that an answer over UDP may have.
func (q *query) limit() int {
	if !q.edns {
		return minUDP
	}
	return min(max(int(q.size), minUDP), maxUDP)
}
