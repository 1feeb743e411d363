package dns

import (
	"encoding/binary"
	"fmt"

	"github.com/miekg/dns"
)

// response is a forwarder's reply. Its structure was checked; what its records
// say is between the forwarder and the client, and passed on as it is.
type response struct {
	wire    []byte
	records []span // empty when the reply has no question, as refusals may
	rcode   int    // with the OPT's upper bits (RFC 6891 §6.1.3)
}

// span is where a record of a message stands.
type span struct {
	start, end int
	section    uint8 // 1 answer, 2 authority, 3 additional
	kind       uint16
}

// readResponse checks a reply to q, as replies lets it through: each record
// that the header announces is there, whole. Bytes behind them are ignored.
func readResponse(wire []byte, q *query) (response, error) {
	r := response{wire: wire, rcode: int(wire[3] & 0xf)}
	if binary.BigEndian.Uint16(wire[4:]) == 0 {
		return r, nil
	}
	at := headerSize + len(q.question)
	for section := uint8(1); section <= 3; section++ {
		for n := binary.BigEndian.Uint16(wire[4+2*section:]); n > 0; n-- {
			s := span{start: at, section: section}
			fixed, ok := skipName(wire, at)
			if !ok || fixed+10 > len(wire) {
				return response{}, fmt.Errorf("%w: record %d is cut", errMalformed, len(r.records)+1)
			}
			s.kind = binary.BigEndian.Uint16(wire[fixed:])
			s.end = fixed + 10 + int(binary.BigEndian.Uint16(wire[fixed+8:]))
			if s.end > len(wire) {
				return response{}, fmt.Errorf("%w: record %d is cut", errMalformed, len(r.records)+1)
			}
			if s.kind == dns.TypeOPT {
				r.rcode |= int(wire[fixed+4]) << 4
			}
			r.records = append(r.records, s)
			at = s.end
		}
	}
	return r, nil
}

// answers tells whether the reply says what is so: data, NODATA or NXDOMAIN.
// Anything else is a reason to ask another forwarder.
func (r response) answers() bool {
	return r.rcode == dns.RcodeSuccess || r.rcode == dns.RcodeNameError
}

// relay is the reply for the client, if it answers: its own ID, flags and question, and the
// records that fit into limit bytes, byte for byte where they stood, so that
// compressed names go on pointing to the right places. Their OPT is theirs
// (RFC 6891 §6.1.1); the client has ours if it asked with one. What stands
// behind theirs, a signature of the message at most, is left out with it.
func (r response) relay(q *query, limit int) []byte {
	if q.edns {
		limit -= optSize
	}
	flags := bitQR | bitRA | q.flags&(bitRD|bitCD) | uint16(r.rcode&0xf)
	if theirs := binary.BigEndian.Uint16(r.wire[2:]); q.do || q.flags&bitAD != 0 {
		flags |= theirs & bitAD // RFC 6840 §5.8
	}
	var counts [4]uint16
	counts[0] = 1 // a reply without a question answers nothing: see replies
	end := headerSize + len(q.question)
	for _, s := range r.records {
		if s.kind == dns.TypeOPT {
			break
		}
		if s.end > limit {
			// Of what is needed (RFC 2181 §9): the answer, or the
			// authority that stands in its place.
			if s.section == 1 || s.section == 2 && counts[1] == 0 {
				flags |= bitTC
			}
			break
		}
		counts[s.section]++
		end = s.end
	}
	b := make([]byte, headerSize, end+optSize)
	b = append(b, q.question...)
	b = append(b, r.wire[len(b):end]...)
	if q.edns {
		b = appendOPT(b, r.rcode, q.do)
		counts[3]++
	}
	binary.BigEndian.PutUint16(b, q.id)
	binary.BigEndian.PutUint16(b[2:], flags)
	for i, n := range counts {
		binary.BigEndian.PutUint16(b[4+2*i:], n)
	}
	return b
}
