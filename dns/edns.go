package dns

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// extended is an extended DNS error (RFC 8914): why an answer is as it is, for
// the person behind dig. It is made beforehand, or from parts that the query
// path does not have to format.
type extended struct {
	code uint16
	text string // at most maxReason bytes of UTF-8
}

// maxReason bounds the text of an extended error, in bytes, so that it takes
// no room that an answer needs.
const maxReason = 120

// newExtended makes an extended error; the text is cut between two runes.
func newExtended(code uint16, text string) *extended {
	if len(text) > maxReason {
		end := maxReason
		for end > 0 && text[end]&0xc0 == 0x80 {
			end--
		}
		text = text[:end]
	}
	return &extended{code: code, text: text}
}

// reasons are the extended errors that do not depend on the moment.
var (
	reasonNotReady    = newExtended(dns.ExtendedErrorCodeNotReady, "no leader was heard of since the start: ask another server")
	reasonUnconfirmed = newExtended(dns.ExtendedErrorCodeStaleAnswer, "no leader was heard of since the start: this is what was known before")
	reasonProhibited  = newExtended(dns.ExtendedErrorCodeProhibited, "only the cluster's own networks may ask for names outside it")
	reasonUntold      = newExtended(dns.ExtendedErrorCodeProhibited, "only networks of dns.allow_explain may ask why")
	reasonBusyTelling = newExtended(dns.ExtendedErrorCodeOther, "too many explanations at a time: ask again, or holdfast explain")
	reasonNotOurs     = newExtended(dns.ExtendedErrorCodeNotAuthoritative, "not a zone of this cluster, and no forwarder is configured for it")
	reasonNoRD        = newExtended(dns.ExtendedErrorCodeNotAuthoritative, "not a zone of this cluster; recursion was not asked for")
)

// EDNS option codes that the query path reads or writes.
const (
	optionCookie   = dns.EDNS0COOKIE
	optionExtended = dns.EDNS0EDE
	optionHeader   = 4 // code and length, in bytes
)

// parseOptions reads the options of an OPT. They must fill its RDATA exactly;
// unknown ones are ignored (RFC 6891 §6.1.2). Of several cookies the first
// counts (RFC 7873 §5.2).
func (q *query) parseOptions(rdata []byte) fault {
	for len(rdata) >= optionHeader {
		code := binary.BigEndian.Uint16(rdata)
		size := optionHeader + int(binary.BigEndian.Uint16(rdata[2:]))
		if size > len(rdata) {
			return faultOPT
		}
		if code == optionCookie && !q.hasCookie {
			if !cookieFits(size - optionHeader) {
				return faultCookie
			}
			q.hasCookie, q.cookie = true, rdata[optionHeader:size]
		}
		rdata = rdata[size:]
	}
	if len(rdata) != 0 {
		return faultOPT
	}
	return ""
}

// optRoom is what the OPT of the reply to q takes, in bytes.
func optRoom(q *query, why *extended) int {
	if !q.edns {
		return 0
	}
	size := optSize
	if q.hasCookie {
		size += optionHeader + cookieSize
	}
	if why != nil {
		size += optionHeader + 2 + len(why.text)
	}
	return size
}

// appendOPT appends our OPT (RFC 6891 §6.1.3): DO as it came (RFC 3225 §3),
// version 0, and the options that optRoom counted.
func appendOPT(b []byte, q *query, rcode int, why *extended) []byte {
	var z byte
	if q.do {
		z = 0x80
	}
	b = append(b, 0, 0, byte(dns.TypeOPT))
	b = binary.BigEndian.AppendUint16(b, maxUDP)
	b = append(b, byte(rcode>>4), 0, z, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(optRoom(q, why)-optSize))
	if q.hasCookie {
		b = binary.BigEndian.AppendUint16(b, optionCookie)
		b = binary.BigEndian.AppendUint16(b, cookieSize)
		b = append(b, q.reply[:]...)
	}
	if why != nil {
		b = binary.BigEndian.AppendUint16(b, optionExtended)
		b = binary.BigEndian.AppendUint16(b, uint16(2+len(why.text)))
		b = binary.BigEndian.AppendUint16(b, why.code)
		b = append(b, why.text...)
	}
	return b
}
