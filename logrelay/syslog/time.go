package syslog

import (
	"bytes"
	"time"
)

// cisco passes over the sequence number, and the mark of an unsure clock, that
// Cisco's devices put before the time: "123: *Mar  1 00:00:00.123: ...".
func cisco(b []byte) []byte {
	rest := b
	for len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' {
		rest = rest[1:]
	}
	if len(rest) < len(b) && bytes.HasPrefix(rest, []byte(": ")) {
		b = rest[2:]
	}
	if len(b) > 1 && (b[0] == '*' || b[0] == '.') && b[1] >= 'A' && b[1] <= 'Z' {
		b = b[1:]
	}
	return b
}

// parseTime takes a time and the space behind it: RFC 3339 or RFC 3164, this
// one with a year before or behind the time of day, or with fractions.
func (m *Message) parseTime(b []byte, received time.Time) (rest []byte, ok bool) {
	if len(b) > 0 && b[0] == ' ' {
		b = b[1:]
	}
	if end := bytes.IndexByte(b, ' '); end >= 20 && b[4] == '-' {
		t, err := time.Parse(time.RFC3339, string(bytes.TrimSuffix(b[:end], []byte(":"))))
		if err != nil {
			return b, false
		}
		m.setTime(t, bytes.TrimSuffix(b[:end], []byte(":")))
		return b[end+1:], true
	}
	return m.parseBSD(b, received)
}

// setTime takes a time that was read, and as it stood there if that is RFC 3339.
func (m *Message) setTime(t time.Time, text []byte) {
	if _, offset := t.Zone(); offset <= -24*3600 || offset >= 24*3600 {
		t = t.UTC() // there is no such zone to write
	}
	if t.Year() < 0 || t.Year() > 9999 {
		return // nor such a year
	}
	if m.Time = t; strict3339(text) {
		m.RFC3339 = text
	}
}

// maxFraction is the most digits of a second that are taken as they came: more
// than nanoseconds nobody means.
const maxFraction = 9

// strict3339 tells whether a time that package time could read is as RFC 3339
// §5.6 has it, with upper-case letters (RFC 5424 §6.2.3): the package takes a
// comma, an hour of one digit and zones of a day and more, too.
func strict3339(b []byte) bool {
	const form = "0000-00-00T00:00:00"
	if len(b) <= len(form) || !hasForm(b[:len(form)], form) {
		return false
	}
	if b = b[len(form):]; b[0] == '.' {
		digits := 1
		for digits < len(b) && b[digits] >= '0' && b[digits] <= '9' {
			digits++
		}
		if digits == 1 || digits > 1+maxFraction {
			return false
		}
		b = b[digits:]
	}
	if len(b) == 1 {
		return b[0] == 'Z'
	}
	return (hasForm(b, "+00:00") || hasForm(b, "-00:00")) && (b[1] < '2' || b[1] == '2' && b[2] < '4') && b[4] < '6'
}

// hasForm tells whether b is form, with any digit for a 0.
func hasForm(b []byte, form string) bool {
	if len(b) != len(form) {
		return false
	}
	for i, c := range b {
		if form[i] != '0' && c != form[i] || form[i] == '0' && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// parseBSD takes "Mmm dd hh:mm:ss" and its kin.
func (m *Message) parseBSD(b []byte, received time.Time) (rest []byte, ok bool) {
	if len(b) < 14 || b[3] != ' ' {
		return b, false
	}
	month := monthOf(b)
	r := reader{b: b[4:]}
	r.skip(' ')
	day := r.number(2)
	r.want(' ')
	year := 0
	if len(r.b) > 5 && r.b[4] == ' ' {
		year = r.number(4)
		r.want(' ')
	}
	hour := r.number(2)
	r.want(':')
	minute := r.number(2)
	r.want(':')
	second := r.number(2)
	if month == 0 || r.failed || day < 1 || day > 31 || hour > 23 || minute > 59 || second > 60 {
		return b, false
	}
	nanoseconds := r.fraction()
	if len(r.b) > 5 && r.b[0] == ' ' && year == 0 {
		if y := (reader{b: r.b[1:]}); y.number(4) >= 1970 && !y.failed && (y.b[0] == ' ' || y.b[0] == ':') {
			year = (&reader{b: r.b[1:]}).number(4)
			r.b = y.b
		}
	}
	r.skip(':')
	if len(r.b) > 0 && r.b[0] != ' ' {
		return b, false
	}
	r.skip(' ')
	at := func(year int) time.Time {
		return time.Date(year, month, day, hour, minute, second, nanoseconds, received.Location())
	}
	if year != 0 {
		m.Time = at(year)
	} else {
		m.Time = latest(at, received)
	}
	return r.b, true
}

// latest chooses the year: the last in which the time is not in the future. A
// sender's clock may be ahead by up to a week, as at New Year.
func latest(at func(year int) time.Time, received time.Time) time.Time {
	t := at(received.Year() + 1)
	for year := received.Year(); t.Sub(received) > 7*24*time.Hour; year-- {
		t = at(year)
	}
	return t
}

func monthOf(b []byte) time.Month {
	const names = "JanFebMarAprMayJunJulAugSepOctNovDec"
	for i := 0; i < len(names); i += 3 {
		if names[i] == b[0] && names[i+1]|0x20 == b[1]|0x20 && names[i+2]|0x20 == b[2]|0x20 {
			return time.Month(i/3 + 1)
		}
	}
	return 0
}

// reader takes parts off the front; the first that is not there fails it.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) skip(c byte) {
	if len(r.b) > 0 && r.b[0] == c {
		r.b = r.b[1:]
	}
}

func (r *reader) want(c byte) {
	if len(r.b) == 0 || r.b[0] != c {
		r.failed = true
		return
	}
	r.b = r.b[1:]
}

// number takes at most that many digits, one at least.
func (r *reader) number(most int) (n int) {
	taken := 0
	for taken < min(most, len(r.b)) && r.b[taken] >= '0' && r.b[taken] <= '9' {
		n = n*10 + int(r.b[taken]-'0')
		taken++
	}
	r.failed = r.failed || taken == 0
	r.b = r.b[taken:]
	return n
}

// fraction takes a fraction of a second, if there is one, in nanoseconds.
func (r *reader) fraction() (n int) {
	if len(r.b) < 2 || r.b[0] != '.' && r.b[0] != ',' || r.b[1] < '0' || r.b[1] > '9' {
		return 0
	}
	r.b = r.b[1:]
	scale := 100_000_000
	for len(r.b) > 0 && r.b[0] >= '0' && r.b[0] <= '9' {
		n += int(r.b[0]-'0') * scale
		scale /= 10
		r.b = r.b[1:]
	}
	return n
}
