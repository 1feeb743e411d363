// Package syslog reads syslog messages: RFC 5424, and RFC 3164 in the dialects
// that are out there. It takes anything: what is no message has a text alone.
package syslog

import (
	"bytes"
	"net/netip"
	"time"
	"unicode/utf8"
)

// DefaultPriority is that of a message that has none: user.notice (RFC 3164
// §4.3.3).
const DefaultPriority = 13

// BOM is in front of a text that is said to be in UTF-8 (RFC 5424 §6.4).
const BOM = "\xef\xbb\xbf"

// Message is a message, taken apart. Its parts are parts of what was parsed.
type Message struct {
	Priority uint8     // facility*8 + severity, 0 to 191
	Time     time.Time // zero: the message has none
	RFC3339  []byte    // the time as it stood there, if it was in this format, with 9 digits of a second at most
	Host     []byte    // empty: the message names none
	App      []byte
	Proc     []byte
	ID       []byte // RFC 5424's MSGID
	Data     []byte // RFC 5424's structured data, as it stood there
	Tag      []byte // RFC 3164's, with brackets and colon; empty for RFC 5424
	Text     []byte // what follows, in RFC 3164 mostly with a space in front
	BOM      bool   // RFC 5424's text came with one, which is no part of Text: it is in UTF-8
}

// Facility is 0 (kern) to 23 (local7).
func (m *Message) Facility() int { return int(m.Priority >> 3) }

// Severity is 0 (emerg) to 7 (debug).
func (m *Message) Severity() int { return int(m.Priority & 7) }

// Parse takes b apart into m. A time without a year or a zone is the last
// before received, in received's zone.
func Parse(m *Message, b []byte, received time.Time) {
	*m = Message{Priority: DefaultPriority}
	b = bytes.TrimRight(b, "\n\x00")
	priority, rest, ok := parsePriority(b)
	if ok {
		m.Priority = priority
		if len(rest) > 1 && rest[0] == '1' && rest[1] == ' ' && m.parse5424(rest[2:]) {
			return
		}
	}
	m.parse3164(rest, received)
}

// ParseLocal is Parse for a message of this machine, as syslog(3) writes it to
// /dev/log: it names no host, so the word behind the time is the tag.
func ParseLocal(m *Message, b []byte, received time.Time) {
	*m = Message{Priority: DefaultPriority}
	b = bytes.TrimRight(b, "\n\x00")
	priority, rest, ok := parsePriority(b)
	if ok {
		m.Priority = priority
		if len(rest) > 1 && rest[0] == '1' && rest[1] == ' ' && m.parse5424(rest[2:]) {
			return
		}
	}
	if behind, ok := m.parseTime(rest, received); ok {
		m.parseTag(behind)
	} else if tagged(rest) {
		m.parseTag(rest)
	} else {
		m.Text = rest
	}
}

// Severity reads no more of a message than its severity.
func Severity(b []byte) int {
	priority, _, ok := parsePriority(b)
	if !ok {
		priority = DefaultPriority
	}
	return int(priority & 7)
}

// parsePriority reads "<N>", N from 0 to 191.
func parsePriority(b []byte) (priority uint8, rest []byte, ok bool) {
	if len(b) < 3 || b[0] != '<' {
		return 0, b, false
	}
	n := 0
	for i := 1; i < min(len(b), 5); i++ {
		switch c := b[i]; {
		case c == '>' && i > 1 && n <= 191:
			return uint8(n), b[i+1:], true
		case c < '0' || c > '9':
			return 0, b, false
		default:
			n = n*10 + int(c-'0')
		}
	}
	return 0, b, false
}

// parse5424 reads what follows the version (RFC 5424 §6); false: it is no such
// message.
func (m *Message) parse5424(b []byte) bool {
	var fields [5][]byte // time, host, app, proc, id
	for i := range fields {
		at := bytes.IndexByte(b, ' ')
		if at <= 0 {
			return false
		}
		if fields[i] = b[:at]; at == 1 && b[0] == '-' {
			fields[i] = nil // NILVALUE
		}
		b = b[at+1:]
	}
	n := structuredData(b)
	if n == 0 || n < len(b) && b[n] != ' ' {
		return false
	}
	if fields[0] != nil {
		t, err := time.Parse(time.RFC3339, string(fields[0]))
		if err != nil {
			return false
		}
		m.setTime(t, fields[0])
	}
	m.Host, m.App, m.Proc, m.ID = fields[1], fields[2], fields[3], fields[4]
	if b[0] == '[' {
		m.Data = b[:n]
	}
	m.Text, m.BOM = bytes.CutPrefix(b[min(n+1, len(b)):], []byte(BOM))
	return true
}

// structuredData is how long the structured data at the start of b is; 0 if
// there is none (RFC 5424 §6.3).
func structuredData(b []byte) int {
	if len(b) > 0 && b[0] == '-' {
		return 1
	}
	at := 0
	for at < len(b) && b[at] == '[' {
		quoted, closed := false, false
		for at++; at < len(b) && !closed; at++ {
			switch c := b[at]; {
			case quoted && c == '\\':
				at++
			case c == '"':
				quoted = !quoted
			case c == ']' && !quoted:
				closed = true
			}
		}
		if !closed {
			return 0
		}
	}
	return min(at, len(b))
}

// StrictData tells whether b is structured data as RFC 5424 §6.3 has it, where
// structuredData takes more. None is false.
func StrictData(b []byte) bool {
	for valid := utf8.Valid(b); valid && len(b) > 0; {
		if b[0] != '[' {
			return false
		}
		n := nameLen(b[1:])
		if b = b[1+n:]; n == 0 {
			return false
		}
		for len(b) > 0 && b[0] == ' ' {
			n := nameLen(b[1:])
			if b = b[1+n:]; n == 0 || !bytes.HasPrefix(b, []byte(`="`)) {
				return false
			}
			n = valueLen(b[2:])
			if b = b[2+n:]; len(b) == 0 || b[0] != '"' {
				return false
			}
			b = b[1:]
		}
		if len(b) == 0 || b[0] != ']' {
			return false
		}
		if b = b[1:]; len(b) == 0 {
			return true
		}
	}
	return false
}

// nameLen is how long the SD-NAME at the start of b is; 0: there is none, or it
// is longer than 32 bytes.
func nameLen(b []byte) int {
	for i, c := range b {
		if c <= ' ' || c >= 0x7f || c == '=' || c == ']' || c == '"' {
			return i
		}
		if i == 32 {
			return 0
		}
	}
	return 0
}

// valueLen is how long the PARAM-VALUE at the start of b is: up to its quote, or
// to what must not be in it. Control characters can't go into a line.
func valueLen(b []byte) int {
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '\\':
			if i++; i == len(b) || b[i] != '"' && b[i] != '\\' && b[i] != ']' {
				return i // the backslash itself is not escaped
			}
		case c == '"', c == ']', c < ' ', c == 0x7f:
			return i
		}
	}
	return len(b)
}

// parse3164 reads what follows the priority (RFC 3164 §4.1).
func (m *Message) parse3164(b []byte, received time.Time) {
	if rest, ok := m.parseTime(cisco(b), received); ok {
		b = m.parseHost(rest)
	} else if !tagged(b) {
		m.Text = b
		return
	}
	m.parseTag(b)
}

// tagged tells whether b begins with a program's name and a colon: without a
// time in front, a word alone is text.
func tagged(b []byte) bool {
	end := bytes.IndexAny(b, ": ")
	return end > 0 && b[end] == ':'
}

// parseHost takes a host's name that is followed by a space. A word with a
// colon or a bracket is a tag, unless it is an IPv6 address.
func (m *Message) parseHost(b []byte) (rest []byte) {
	end := bytes.IndexByte(b, ' ')
	word := b
	if end >= 0 {
		word, rest = b[:end], b[end+1:]
	}
	if len(word) == 0 || len(word) > 255 {
		return b
	}
	for _, c := range word {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' {
			continue
		}
		if _, err := netip.ParseAddr(string(word)); err != nil {
			return b
		}
		break
	}
	m.Host = word
	return rest
}

// parseTag takes the tag: all up to a colon, which belongs to it, or a space.
func (m *Message) parseTag(b []byte) {
	end := bytes.IndexAny(b, ": ")
	switch {
	case end < 0:
		end = len(b)
	case b[end] == ':':
		end++
	}
	m.Tag, m.Text = b[:end], b[end:]
	m.App = bytes.TrimSuffix(m.Tag, []byte(":"))
	if at := bytes.IndexByte(m.App, '['); at > 0 && m.App[len(m.App)-1] == ']' {
		m.App, m.Proc = m.App[:at], m.App[at+1:len(m.App)-1]
	}
}

// AppendTag writes the tag, or makes one of RFC 5424's parts: with a colon behind
// it, which rsyslog leaves out there, so that it is told from the text.
func (m *Message) AppendTag(dst []byte) []byte {
	if len(m.Tag) > 0 || len(m.App) == 0 {
		return append(dst, m.Tag...)
	}
	dst = append(dst, m.App...)
	if len(m.Proc) > 0 {
		dst = append(append(append(dst, '['), m.Proc...), ']')
	}
	return append(dst, ':')
}

// AppendPriority writes the priority as rsyslog's pri-text: "user.notice".
func (m *Message) AppendPriority(dst []byte) []byte {
	return append(append(m.AppendFacility(dst), '.'), SeverityName(m.Severity())...)
}

// AppendFacility writes the facility as rsyslog names it: "kern" to "local7".
func (m *Message) AppendFacility(dst []byte) []byte {
	return append(dst, FacilityName(m.Facility())...)
}

// FacilityName is "kern" to "local7" for 0 to 23.
func FacilityName(f int) string {
	if f >= 16 && f <= 23 {
		return "local0local1local2local3local4local5local6local7"[(f-16)*6:][:6]
	}
	switch f {
	case 0:
		return "kern"
	case 1:
		return "user"
	case 2:
		return "mail"
	case 3:
		return "daemon"
	case 4:
		return "auth"
	case 5:
		return "syslog"
	case 6:
		return "lpr"
	case 7:
		return "news"
	case 8:
		return "uucp"
	case 9:
		return "cron"
	case 10:
		return "authpriv"
	case 11:
		return "ftp"
	case 12:
		return "ntp"
	case 13:
		return "audit"
	case 14:
		return "alert"
	}
	return "clock"
}

// SeverityName is "emerg" to "debug" for 0 to 7.
func SeverityName(s int) string {
	switch s {
	case 0:
		return "emerg"
	case 1:
		return "alert"
	case 2:
		return "crit"
	case 3:
		return "err"
	case 4:
		return "warning"
	case 5:
		return "notice"
	case 6:
		return "info"
	}
	return "debug"
}
