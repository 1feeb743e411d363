package logrelay

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"holdfast/logrelay/syslog"
)

// defaultFormat is a line's in the files unless the cluster file says otherwise.
const defaultFormat = "scibian"

// Bounds of a template of lines: each of its variables may be all of a line.
const (
	maxFormat  = 1024 // bytes of its text
	maxRepeats = 2    // of one variable
)

// lineFormat says how a line stands in its file. It is never changed.
type lineFormat struct {
	// One of these.
	whole func(*line, []byte) []byte
	json  bool
	apart bool   // parts don't stand behind each other as in the default: see rules.hide
	steps []step // variables are lineVariables
}

// lineFormats are those that have names: rsyslog's templates, but for Scibian's
// and JSON. Behind them stands what they are as a template.
var lineFormats = map[string]lineFormat{
	"scibian":     {whole: (*line).appendFile},              // {time} {claims} {facility}.{severity} {tag}{text}
	"rsyslog":     {whole: (*line).appendFileFormat},        // RSYSLOG_FileFormat: {time} {claims} {tag}{text}
	"traditional": {whole: (*line).appendTraditional},       // RSYSLOG_TraditionalFileFormat: {stamp} {claims} {tag}{text}
	"rfc5424":     {whole: (*line).append5424, apart: true}, // RSYSLOG_SyslogProtocol23Format
	"json":        {json: true, apart: true},
}

// lineVariables are what a template of lines can have, in the order of their
// numbers.
var lineVariables = [...]string{
	lineTime: "time", lineStamp: "stamp", lineReceived: "received", lineHost: "host", lineClaims: "claims", lineSource: "source",
	lineFacility: "facility", lineSeverity: "severity", linePriority: "priority", lineApp: "app", lineProc: "proc",
	lineTag: "tag", lineText: "text",
}

const (
	lineTime = iota
	lineStamp
	lineReceived
	lineHost
	lineClaims
	lineSource
	lineFacility
	lineSeverity
	linePriority
	lineApp
	lineProc
	lineTag
	lineText
	lineBody // {tag}{text}
)

// parseFormat reads a name of a format, or a template such as
// "{received} {host} {tag}{text}".
func parseFormat(text string) (lineFormat, error) {
	if f, ok := lineFormats[text]; ok {
		return f, nil
	}
	if !strings.Contains(text, "{") {
		return lineFormat{}, errors.New("is no format: want scibian, rsyslog, traditional, rfc5424, json, or a template such as \"{received} {host} {tag}{text}\"")
	}
	list, err := parseSteps(text, func(name string) int { return slices.Index(lineVariables[:], name) })
	if err != nil {
		return lineFormat{}, fmt.Errorf("%w: want {%s}, and {{ or }} for a brace that is to stand there", err, strings.Join(lineVariables[:], "} {"))
	}
	if len(text) > maxFormat {
		return lineFormat{}, fmt.Errorf("has %d bytes, want %d at most", len(text), maxFormat)
	}
	if word := strings.TrimSpace(list[0].text); lineFormats[word].whole != nil || lineFormats[word].json {
		return lineFormat{}, fmt.Errorf("is %s and a template: want one of the two", word)
	}
	var steps []step
	var count [len(lineVariables)]int
	said := false
	for _, s := range list {
		if s.text == "" {
			if count[s.variable]++; count[s.variable] > maxRepeats {
				return lineFormat{}, fmt.Errorf("has {%s} more than %d times", lineVariables[s.variable], maxRepeats)
			}
		}
		for _, c := range s.text {
			if c != '\t' && (c < 0x20 || c >= 0x7f && c <= 0x9f || c == '\u2028' || c == '\u2029') {
				return lineFormat{}, fmt.Errorf("%q has a control character: what stands in a file is one line, and only a tab can be in it", s.text)
			}
		}
		said = said || s.text == "" && s.variable == lineText
		if n := len(steps); n > 0 && s == (step{variable: lineText}) && steps[n-1] == (step{variable: lineTag}) {
			steps[n-1].variable = lineBody
			continue
		}
		steps = append(steps, s)
	}
	if !said {
		return lineFormat{}, errors.New("{text} is missing: what a sender said would be in no file")
	}
	return lineFormat{steps: steps, apart: true}, nil
}

// append writes the line without the line feed that ends it in a file, and
// without what must not be written. Whatever the format is, nothing that a
// sender wrote begins a new line. It allocates nothing but room, unless
// something is redacted.
func (f *lineFormat) append(dst []byte, l *line, r *rules) []byte {
	if !f.apart || !r.mayHideStill(l) {
		return f.write(dst, l, r, false)
	}
	said, host := l.Message, l.host
	r.hide(l)
	dst = f.write(dst, l, r, true)
	l.Message, l.host = said, host
	return dst
}

// write is append with the line's parts as they may be written. some: there is
// something in the line that patterns may fit.
func (f *lineFormat) write(dst []byte, l *line, r *rules, some bool) []byte {
	from := len(dst)
	if f.json { // patterns that are tried in all of it could take a quote away
		if !some {
			r = nil
		}
		return l.appendJSON(dst, r)
	}
	if f.whole != nil {
		return r.redact(f.whole(l, dst), from)
	}
	for _, s := range f.steps {
		if s.text != "" {
			dst = append(dst, s.text...)
			continue
		}
		dst = l.appendVariable(dst, s.variable)
	}
	return r.redact(dst, from)
}

func (l *line) appendVariable(dst []byte, variable int) []byte {
	switch variable {
	case lineTime:
		return l.appendTime(dst)
	case lineStamp:
		return l.appendStamp(dst)
	case lineReceived:
		return l.appendReceived(dst)
	case lineHost:
		return append(dst, l.host...)
	case lineClaims:
		return l.appendHost(dst)
	case lineSource:
		if !l.record.Source.IsValid() {
			return append(dst, '-')
		}
		return l.record.Source.AppendTo(dst)
	case lineFacility:
		return l.AppendFacility(dst)
	case lineSeverity:
		return append(dst, syslog.SeverityName(l.Severity())...)
	case linePriority:
		return strconv.AppendUint(dst, uint64(l.Priority), 10)
	case lineApp:
		return appendCleanOr(dst, l.App)
	case lineProc:
		return appendCleanOr(dst, l.Proc)
	case lineTag:
		l.tag = l.AppendTag(l.tag[:0])
		return appendClean(dst, l.tag)
	case lineBody:
		return l.appendBody(dst)
	}
	return appendClean(dst, bytes.TrimPrefix(l.Text, []byte{' '}))
}

// appendCleanOr is appendClean, with "-" for nothing.
func appendCleanOr(dst, text []byte) []byte {
	if len(text) == 0 {
		return append(dst, '-')
	}
	return appendClean(dst, text)
}

// appendFileFormat writes the line as RSYSLOG_FileFormat.
func (l *line) appendFileFormat(dst []byte) []byte {
	dst = append(l.appendTime(dst), ' ')
	dst = append(l.appendHost(dst), ' ')
	return l.appendSpaced(dst)
}

// appendTraditional writes the line as RSYSLOG_TraditionalFileFormat: RFC 3164.
func (l *line) appendTraditional(dst []byte) []byte {
	dst = append(l.appendStamp(dst), ' ')
	dst = append(l.appendHost(dst), ' ')
	return l.appendSpaced(dst)
}

// appendSpaced is appendBody, with the blank behind the tag also where no text
// follows, as rsyslog's sp-if-no-1st-sp has it.
func (l *line) appendSpaced(dst []byte) []byte {
	dst = l.appendBody(dst)
	if len(l.tag) > 0 && len(l.Text) == 0 {
		dst = append(dst, ' ')
	}
	return dst
}

// appendStamp writes the message's time as RFC 3164 §4.1.2 has it, in the
// message's own zone as rsyslog does; the time it was received if it has none.
func (l *line) appendStamp(dst []byte) []byte {
	if l.Time.IsZero() {
		return l.received.AppendFormat(dst, time.Stamp)
	}
	return l.Time.AppendFormat(dst, time.Stamp)
}

// appendReceived writes when the line was received, in RFC 3339 to the
// microsecond.
func (l *line) appendReceived(dst []byte) []byte {
	return l.received.AppendFormat(dst, "2006-01-02T15:04:05.000000-07:00")
}

// appendJSON writes the line as an object of JSON (RFC 8259). What the message
// does not have is not there, but for the text. The parts are as they may be
// written, but for the source: r looks at that, unless it is nil.
func (l *line) appendJSON(dst []byte, r *rules) []byte {
	part := func(name string, value []byte) {
		if len(value) > 0 {
			dst = append(append(append(dst, `,"`...), name...), `":"`...)
			dst = append(appendQuoted(dst, value), '"')
		}
	}
	dst = append(l.appendTime(append(dst, `{"time":"`...)), `","received":"`...)
	dst = append(l.appendReceived(dst), `","host":"`...)
	dst = append(append(dst, l.host...), '"')
	part("claims", l.Host)
	if l.record.Source.IsValid() {
		l.tag = r.redact(l.record.Source.AppendTo(l.tag[:0]), 0)
		part("source", l.tag)
	}
	dst = append(l.AppendFacility(append(dst, `,"facility":"`...)), `","severity":"`...)
	dst = append(append(dst, syslog.SeverityName(l.Severity())...), `","priority":`...)
	dst = strconv.AppendUint(dst, uint64(l.Priority), 10)
	part("app", l.App)
	part("proc", l.Proc)
	part("id", l.ID)
	part("data", l.Data)
	dst = appendQuoted(append(dst, `,"text":"`...), bytes.TrimPrefix(l.Text, []byte{' '}))
	return append(dst, `"}`...)
}

// appendQuoted writes text as it stands between the quotes of JSON. Control
// characters, and the two of Unicode that some programs end a line at, are
// escaped; what is no UTF-8 is U+FFFD.
func appendQuoted(dst, text []byte) []byte {
	const digits = "0123456789abcdef"
	from := 0
	for i := 0; i < len(text); {
		c, size := rune(text[i]), 1
		if c >= utf8.RuneSelf {
			c, size = utf8.DecodeRune(text[i:])
		}
		if c >= 0x20 && c < 0x7f && c != '"' && c != '\\' || c > 0x9f && c != '\u2028' && c != '\u2029' && (c != utf8.RuneError || size > 1) {
			i += size
			continue
		}
		dst = append(dst, text[from:i]...)
		if c == '"' || c == '\\' {
			dst = append(dst, '\\', byte(c))
		} else {
			dst = append(dst, '\\', 'u', digits[c>>12&15], digits[c>>8&15], digits[c>>4&15], digits[c&15])
		}
		i += size
		from = i
	}
	return append(dst, text[from:]...)
}

// format reads how lines stand in the files.
func (d *decoder) format(raw string) lineFormat {
	f, err := parseFormat(raw)
	if err != nil {
		d.errorf("files.format", "%q: %v", raw, err)
	}
	return f
}
