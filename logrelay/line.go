package logrelay

import (
	"bytes"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

// Ways in, as the journal has them. A number is never given to another.
const (
	viaRELP uint8 = iota + 1
	viaUDP
	viaTCP
	viaTLS
	viaRELPTLS
	viaReplica // no line has it: theirs is that of the node that took them
	viaUnix    // a socket of this node, as /dev/log
	viaJournald
	viaLast = viaJournald
)

func inputName(via uint8) string {
	switch via &^ viaOther {
	case viaRELP:
		return "relp"
	case viaUDP:
		return "udp"
	case viaTCP:
		return "tcp"
	case viaTLS:
		return "tls"
	case viaRELPTLS:
		return "relp-tls"
	case viaReplica:
		return "replica"
	case viaUnix:
		return "unix"
	case viaJournald:
		return "journald"
	}
	return strconv.Itoa(int(via))
}

// line is a record of the journal, taken apart.
type line struct {
	syslog.Message
	record   journal.Record
	number   uint64 // of the record, where an output set it
	received time.Time
	names    *names // that decided
	host     string // that it belongs to, safe in a file's name
	tag      []byte // room to write it
	day      []byte // see date
	dayAt    int64  // when that day began, in seconds since 1970
	hides    uint8  // what rules.app found, until the line is written or another
	lost     string // what it says, if it stands in the place of one that could not be handled
}

// read takes a record apart. names says whose it is.
func (l *line) read(r journal.Record, names *names) {
	r.Source = r.Source.Unmap()
	l.record, l.received, l.names, l.hides, l.lost = r, time.Unix(0, r.Time), names, hidesUnknown, ""
	l.host = "" // not that of the line before, should this one not come to it
	syslog.Parse(&l.Message, r.Data, l.received)
	l.host = names.host(r.Source, l.Host)
}

// rename makes the line one of another host, in its file too. false: there is
// no such name.
func (l *line) rename(name string) bool {
	name = safeName(name)
	if name == "" {
		return false
	}
	l.Host, l.host, l.hides = []byte(name), l.names.admit(name), hidesUnknown
	return true
}

// maxTag is the greatest length in bytes of a tag that a rule gives.
const maxTag = 256

// retag gives the line a tag: "sshd" or "sshd[12]", with or without a colon;
// empty: none. What would end it early is '_'.
func (l *line) retag(tag string) {
	tag = strings.TrimSuffix(tag, ":")
	word := []byte(tag[:min(len(tag), maxTag)])
	for i, c := range word {
		if c <= ' ' || c == ':' || c == 0x7f {
			word[i] = '_'
		}
	}
	l.Tag, l.App, l.Proc, l.hides = nil, word, nil, hidesUnknown
	if at := bytes.IndexByte(word, '['); at > 0 && word[len(word)-1] == ']' {
		l.App, l.Proc = word[:at], word[at+1:len(word)-1]
	}
}

// appendTime writes the message's time in RFC 3339, as it stood there if it
// was, else the time it was received.
func (l *line) appendTime(dst []byte) []byte {
	switch {
	case l.RFC3339 != nil:
		return append(dst, l.RFC3339...)
	case !l.Time.IsZero():
		return l.Time.AppendFormat(dst, "2006-01-02T15:04:05.999999999-07:00")
	}
	return l.appendReceived(dst)
}

// appendTime5424 is appendTime with six digits of a second at most (RFC 5424
// §6.2.3).
func (l *line) appendTime5424(dst []byte) []byte {
	const most = len("2006-01-02T15:04:05.000000")
	dot := most - len(".000000")
	switch {
	case l.RFC3339 == nil && !l.Time.IsZero():
		return l.Time.AppendFormat(dst, "2006-01-02T15:04:05.999999-07:00")
	case len(l.RFC3339) <= dot || l.RFC3339[dot] != '.':
		return l.appendTime(dst)
	}
	zone := dot + bytes.IndexAny(l.RFC3339[dot:], "Z+-")
	return append(append(dst, l.RFC3339[:min(zone, most)]...), l.RFC3339[zone:]...)
}

// appendHost writes the name that the message claims, or whose it is.
func (l *line) appendHost(dst []byte) []byte {
	if len(l.Host) == 0 {
		return append(dst, l.host...)
	}
	return appendClean(dst, l.Host)
}

// appendBody writes tag and text with one space between them at least.
func (l *line) appendBody(dst []byte) []byte {
	l.tag = l.AppendTag(l.tag[:0])
	dst = appendClean(dst, l.tag)
	if len(l.tag) > 0 && len(l.Text) > 0 && l.Text[0] != ' ' {
		dst = append(dst, ' ')
	}
	return appendClean(dst, l.Text)
}

// appendFile writes the line as Scibian's template has it, without the line
// feed that ends it in a file: patterns of secrets are of the line alone.
// %TIMESTAMP:::date-rfc3339% %HOSTNAME% %pri-text% %syslogtag%%msg%.
func (l *line) appendFile(dst []byte) []byte {
	dst = append(l.appendTime(dst), ' ')
	dst = append(l.appendHost(dst), ' ')
	dst = append(l.AppendPriority(dst), ' ')
	return l.appendBody(dst)
}

// appendForward writes the line for another relay, as rsyslog's
// RSYSLOG_ForwardFormat: RFC 3164 with a precise time, and always with a host.
func (l *line) appendForward(dst []byte) []byte {
	dst = append(dst, '<')
	dst = strconv.AppendUint(dst, uint64(l.Priority), 10)
	dst = append(l.appendTime(append(dst, '>')), ' ')
	dst = append(l.appendHost(dst), ' ')
	return l.appendBody(dst)
}

// append5424 writes the line for another relay as RFC 5424 §6 has it, with the
// structured data that it came with if that is as §6.3 has it: the next relay
// would else take all of it for text.
func (l *line) append5424(dst []byte) []byte {
	dst = append(dst, '<')
	dst = strconv.AppendUint(dst, uint64(l.Priority), 10)
	dst = append(dst, ">1 "...)
	dst = append(l.appendTime5424(dst), ' ')
	if len(l.Host) > 0 {
		dst = appendWord(dst, l.Host, 255)
	} else {
		dst = append(dst, l.host...)
	}
	dst = append(dst, ' ')
	for i, part := range [][]byte{l.App, l.Proc, l.ID} {
		dst = append(appendWord(dst, part, [...]int{48, 128, 32}[i]), ' ')
	}
	switch {
	case syslog.StrictData(l.Data):
		dst = append(append(dst, l.Data...), ' ')
	case len(l.Data) > 0: // it is text to who reads strictly
		dst = append(appendClean(append(dst, "- "...), l.Data), ' ')
	default:
		dst = append(dst, "- "...)
	}
	if l.BOM && utf8.Valid(l.Text) && (len(l.Data) == 0 || syslog.StrictData(l.Data)) {
		dst = append(dst, syslog.BOM...)
	}
	return appendClean(dst, bytes.TrimPrefix(l.Text, []byte{' '}))
}

// appendWord writes what RFC 5424 has as 1 to most printable characters of
// ASCII without a space; others are '?'.
func appendWord(dst, word []byte, most int) []byte {
	if len(word) == 0 {
		return append(dst, '-')
	}
	for _, c := range word[:min(len(word), most)] {
		if c <= ' ' || c >= 0x7f {
			c = '?'
		}
		dst = append(dst, c)
	}
	return dst
}
