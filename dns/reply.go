package dns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

var (
	// errMalformed is a reply that was meant for us and could not be read.
	errMalformed = errors.New("malformed reply")
	// errFolded is a reply that does not keep the case of our question: from
	// a server that folds names, or forged.
	errFolded = errors.New("the reply does not keep the case of the question")
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
		// AD asks for the forwarder's verdict (RFC 6840 §5.7), which is kept
		// for those who ask for it later.
		AuthenticatedData: true, CheckingDisabled: q.flags&bitCD != 0,
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

// mixCase gives a name letters of random case (draft-vixie-dnsext-dns0x20): a
// bit more to guess for each. name is in presentation form, whose escapes have
// no letters.
func mixCase(name string, random func() uint64) string {
	b := []byte(name)
	var bits uint64
	for i, c := range b {
		if i%64 == 0 {
			bits = random()
		}
		if c = lower(c); 'a' <= c && c <= 'z' && bits>>(i%64)&1 == 1 {
			c -= 'a' - 'A'
		}
		b[i] = c
	}
	return string(b)
}

// readReply reads a forwarder's reply to asked, all of it. The error is
// errStray or wraps errMalformed; or errFolded, with a reply that is good but
// for the case of its question.
func readReply(wire []byte, asked *dns.Msg) (*dns.Msg, error) {
	if len(wire) < headerSize || binary.BigEndian.Uint16(wire) != asked.Id {
		return nil, errStray // before anything is spent on it
	}
	wire, exact := foldQuestion(wire, asked)
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
	if len(m.Question) > 0 && !exact {
		return m, errFolded
	}
	return m, nil
}

// foldQuestion tells whether a reply repeats the question byte for byte, and
// gives it with the name in lower case, so that names in it that point at the
// question's don't come out in our random case.
func foldQuestion(wire []byte, asked *dns.Msg) (folded []byte, exact bool) {
	var sent [maxName]byte
	n, err := dns.PackDomainName(asked.Question[0].Name, sent[:], 0, nil, false)
	if err != nil || len(wire) < headerSize+n || !bytes.Equal(wire[headerSize:headerSize+n], sent[:n]) {
		return wire, false
	}
	folded = bytes.Clone(wire)
	for i := headerSize; i < headerSize+n; i++ {
		folded[i] = lower(folded[i]) // a length is no letter
	}
	return folded, true
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
