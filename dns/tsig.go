package dns

import (
	"errors"
	"time"

	"github.com/miekg/dns"
)

// tsigFudge is how far two clocks may differ, in seconds (RFC 8945 §10).
const tsigFudge = 300

// signed is a message that came with a TSIG.
type signed struct {
	key   string // its name
	tsig  *dns.TSIG
	mac   string // of the last message, for the next
	rcode int    // BADKEY, BADSIG, BADTIME; 0: the signature is good
	set   *transferSettings
}

// verify reads the TSIG of a query; nil when it has none.
func (t *transferSettings) verify(packet []byte) (*signed, error) {
	m := new(dns.Msg)
	if err := m.Unpack(packet); err != nil {
		return nil, err
	}
	tsig := m.IsTsig()
	if tsig == nil {
		return nil, nil
	}
	s := &signed{key: dns.CanonicalName(tsig.Hdr.Name), tsig: tsig, mac: tsig.MAC, set: t}
	key, known := t.keys[s.key]
	if !known || dns.CanonicalName(tsig.Algorithm) != key.algorithm {
		s.rcode, tsig.Algorithm = dns.RcodeBadKey, dns.HmacSHA256 // theirs may be no name at all
		return s, nil
	}
	err := dns.TsigVerify(packet, key.secret, "", false)
	switch {
	case errors.Is(err, dns.ErrTime):
		s.rcode = dns.RcodeBadTime
	case err != nil:
		s.rcode = dns.RcodeBadSig
	}
	return s, nil
}

// good tells whether a query was signed, and well.
func (s *signed) good() bool { return s != nil && s.rcode == 0 }

// sign packs a reply with its TSIG; more tells that it is not the first of a
// transfer (RFC 8945 §5.3.1). A query whose own signature was bad is answered
// without one, but for BADTIME.
func (s *signed) sign(m *dns.Msg, more bool) ([]byte, error) {
	if s == nil {
		return m.Pack()
	}
	key := s.set.keys[s.key]
	m.SetTsig(s.key, s.tsig.Algorithm, tsigFudge, time.Now().Unix())
	tsig := m.Extra[len(m.Extra)-1].(*dns.TSIG)
	tsig.OrigId, tsig.Error = m.Id, uint16(s.rcode)
	if s.rcode == dns.RcodeBadKey || s.rcode == dns.RcodeBadSig {
		return m.Pack()
	}
	wire, mac, err := dns.TsigGenerate(m, key.secret, s.mac, more)
	s.mac = mac
	return wire, err
}

// tsigRoom is what a TSIG takes at most here, in bytes: a key's name, an
// algorithm's and a MAC of SHA-512.
const tsigRoom = maxName + 26 + 64 + 32

// signedReply answers a signed query that is no transfer: a secondary's
// question for the serial, mostly.
func (w *worker) signedReply(t *table, packet, unsigned []byte) []byte {
	s, err := t.transfer.verify(packet)
	if err != nil || s == nil {
		return unsigned
	}
	m := new(dns.Msg)
	if err := m.Unpack(unsigned); err != nil {
		return unsigned
	}
	if !s.good() {
		m.Rcode, m.Answer, m.Ns, m.Authoritative = dns.RcodeNotAuth, nil, nil, false
	}
	m.Compress = true
	wire, err := s.sign(m, false)
	if err != nil {
		return unsigned
	}
	return wire
}
