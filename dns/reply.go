package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

var (
	// errMalformed is a reply that was meant for us and could not be read.
	errMalformed = errors.New("malformed reply")
	// errStray is a message that is no reply to our question: late or forged.
	errStray = errors.New("no reply to the question")
)

// upstreamQuery is the client's question as we put it, with a random ID. The
// client's EDNS options concern us, not those behind us (RFC 6891 §6.1.1), and
// stay here.
func upstreamQuery(q *query, edns bool) (*dns.Msg, error) {
	asked, err := q.message()
	if err != nil {
		return nil, err
	}
	m := &dns.Msg{Question: asked, MsgHdr: dns.MsgHdr{
		Id: dns.Id(), RecursionDesired: true,
		AuthenticatedData: q.flags&bitAD != 0, CheckingDisabled: q.flags&bitCD != 0,
	}}
	if edns {
		m.SetEdns0(maxUDP, q.do)
	}
	return m, nil
}

// message gives the question as miekg/dns has it.
func (q *query) message() ([]dns.Question, error) {
	n, _, err := dns.UnpackDomainName(q.question, 0)
	if err != nil {
		return nil, fmt.Errorf("dns: question: %w", err)
	}
	return []dns.Question{{Name: n, Qtype: q.kind, Qclass: q.class}}, nil
}

// readReply reads a forwarder's reply to asked, all of it. The error is
// errStray or wraps errMalformed.
func readReply(wire []byte, asked *dns.Msg) (*dns.Msg, error) {
	if len(wire) < headerSize || binary.BigEndian.Uint16(wire) != asked.Id {
		return nil, errStray // before anything is spent on it
	}
	m := new(dns.Msg)
	err := m.Unpack(wire)
	if !repliesTo(m, asked) {
		return nil, errStray
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	// Unpack takes a message that ends between two records for whole.
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		if n := int(binary.BigEndian.Uint16(wire[6+2*i:])); n != len(section) {
			return nil, fmt.Errorf("%w: %d records in section %d, %d announced", errMalformed, len(section), i+1, n)
		}
	}
	return m, nil
}

// repliesTo tells whether m replies to asked: same ID, same question (RFC 5452
// §4.2). A refusal may leave the question out.
func repliesTo(m, asked *dns.Msg) bool {
	if m.Id != asked.Id || !m.Response || m.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(m.Question) == 0 {
		return !isAnswer(m)
	}
	theirs, ours := m.Question[0], asked.Question[0]
	return len(m.Question) == 1 && strings.EqualFold(theirs.Name, ours.Name) &&
		theirs.Qtype == ours.Qtype && theirs.Qclass == ours.Qclass
}

// isAnswer tells whether a reply says what is so: data, NODATA or NXDOMAIN.
// Anything else is a reason to ask another forwarder.
func isAnswer(m *dns.Msg) bool {
	return m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError
}

// relay packs a forwarder's answer for the client: its own ID, flags and
// question, and the records that fit into limit bytes (at least minUDP).
func relay(m *dns.Msg, q *query, limit int) ([]byte, error) {
	asked, err := q.message()
	if err != nil {
		return nil, err
	}
	out := &dns.Msg{
		MsgHdr: dns.MsgHdr{
			Id: q.id, Response: true, Rcode: m.Rcode, RecursionAvailable: true,
			RecursionDesired: q.flags&bitRD != 0, CheckingDisabled: q.flags&bitCD != 0,
			AuthenticatedData: m.AuthenticatedData && (q.do || q.flags&bitAD != 0), // RFC 6840 §5.8
		},
		Question: asked,
		Answer:   m.Answer, Ns: m.Ns, Extra: endToEnd(m.Extra),
	}
	answers, authority := len(out.Answer), len(out.Ns)
	if q.edns {
		out.SetEdns0(maxUDP, q.do)
	}
	out.Truncate(limit)
	// Of what is needed (RFC 2181 §9): the answer, or the authority that
	// stands in its place. Truncate speaks of additional records too.
	out.Truncated = len(out.Answer) < answers || answers == 0 && len(out.Ns) < authority
	out.Compress = true
	wire, err := out.Pack()
	if err == nil && len(wire) > limit {
		err = fmt.Errorf("%d bytes, %d fit", len(wire), limit)
	}
	if err != nil {
		return nil, fmt.Errorf("dns: pack a forwarder's answer: %w", err)
	}
	return wire, nil
}

// endToEnd leaves out what concerns the two ends of a hop only: the OPT
// (RFC 6891 §6.1.1) and signatures of the message, which is another now.
func endToEnd(additional []dns.RR) []dns.RR {
	return slices.DeleteFunc(slices.Clone(additional), func(rr dns.RR) bool {
		switch rr.Header().Rrtype {
		case dns.TypeOPT, dns.TypeTSIG, dns.TypeSIG:
			return true
		}
		return false
	})
}
