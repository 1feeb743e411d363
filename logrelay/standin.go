package logrelay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

// A line over which something of ours panics, when an output judges it or writes
// it, is lost neither in silence nor with all that stand behind it: a line of ours
// stands in its place, which has nothing of it but whose it is.

// standInPriority is syslog.err (RFC 5424 §6.2.1).
const standInPriority = 5<<3 | 3

// standIn makes the line one that says that it could not be handled, and why.
func (l *line) standIn(why string) {
	r, host := l.record, l.hostStill()
	what := fmt.Sprintf("line %d of this node's journal (%d bytes, by %s)", l.number, len(r.Data), inputName(r.Input))
	if r.Input == 0 {
		what = "a line that says what a limit left out"
	}
	text := fmt.Sprintf("%s could not be handled and is left out here: %s (condition %s)", what, why, conditionFailed)
	l.Message = syslog.Message{Priority: standInPriority, Host: []byte(host), App: []byte(announceApp), Text: []byte(text)}
	l.record, l.received = journal.Record{Time: r.Time, Input: r.Input}, time.Unix(0, r.Time)
	l.host, l.hides, l.lost = host, hidesUnknown, text
}

// hostStill is whose a line is that something panicked over: of one that could
// not be read, what its sender says, and where that can't be judged either, it is
// everybody's.
func (l *line) hostStill() (host string) {
	if l.host != "" && safeName(l.host) == l.host { // it is other where redaction broke off
		return l.host
	}
	defer func() {
		if recover() != nil {
			host = overflow
		}
	}()
	return l.names.host(l.record.Source.Unmap(), nil)
}

// appendLost writes what standIn made of the line where the format of the files
// panics over that as well.
func (l *line) appendLost(dst []byte, asJSON bool) []byte {
	at := string(l.appendReceived(nil))
	if !asJSON {
		return fmt.Appendf(dst, "%s - syslog.err %s: %s", at, announceApp, l.lost)
	}
	b, _ := json.Marshal(struct { // of texts alone, so it can't fail
		Received string `json:"received"`
		App      string `json:"app"`
		Text     string `json:"text"`
	}{at, announceApp, l.lost})
	return append(dst, b...)
}

// standIn has a line that says so stand in the place of one that it panicked
// over.
func (o *files) standIn(l *line, panicked any) {
	o.metrics.broken.Inc()
	l.standIn(o.caught(l, panicked))
}

// caught tells of a panic over a line, or over the one in its place.
func (o *files) caught(l *line, panicked any) (why string) {
	return o.bugs.caught(panicked, "output files", "line", l.number, "bytes", len(l.record.Data), "input", inputName(l.record.Input))
}

// judge reads a record and tells whether its line goes into a file.
func (o *files) judge(number uint64, r journal.Record) (wanted bool) {
	counted := false
	defer func() {
		if p := recover(); p != nil {
			o.standIn(&o.line, p)
			if wanted = true; !counted {
				o.countStill(&o.line, r)
			}
		}
	}()
	o.line.number = number
	o.line.read(r, o.names)
	// The sender's numbers have no gap where a rule makes one.
	o.count(o.line.host, o.line.Data, o.line.received)
	counted = true // for this host: a rule may give it another
	return o.metrics.lets(o.rules.judge(&o.line, "files"))
}

// count counts the lines that are missing in front of one with a number.
func (o *files) count(host string, data []byte, at time.Time) {
	if n := sequenceOf(data); n > 0 {
		o.missing.Add(float64(o.gaps.saw(host, n, at)))
	}
}

// countStill is count, of a line that could not be read: it came, so its number is not
// missing. Where nobody knows whose number it is, as of a relay's line, which may be
// another host's, the next has a gap in front of it.
func (o *files) countStill(l *line, r journal.Record) {
	defer func() {
		if p := recover(); p != nil {
			o.caught(l, p)
		}
	}()
	_, text, _ := bytes.Cut(r.Data, []byte{'>'})
	if l.host != overflow && bytes.HasPrefix(text, []byte("1 ")) && !o.names.relayed(r.Source.Unmap()) {
		o.count(l.host, text, l.received)
	}
}

// place writes the path of the line's file into o.path. Where that panics it is
// that of its host's spare file, which no template gives.
func (o *files) place(l *line) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if l.lost == "" {
			o.standIn(l, p)
		} else {
			o.caught(l, p)
		}
		o.path = append(append(o.path[:0], l.host...), spareSuffix...)
	}()
	var app []byte
	if o.layout.path.has[varApp] {
		app = o.apps.of(l)
	}
	o.path = o.layout.path.append(o.path[:0], l, app)
}

// render writes the line behind dst, as it stands in its file without its end.
func (o *files) render(dst []byte, l *line) (out []byte) {
	defer func() {
		p := recover()
		switch {
		case p == nil:
		case l.lost == "":
			o.standIn(l, p)
			out = o.render(dst, l)
		default: // over what says so as well
			o.caught(l, p)
			out = l.appendLost(dst, o.config.format.json)
		}
	}()
	return o.config.format.append(dst, l, o.rules)
}

// standIn is that of files: what is sent in the line's place has its place in
// the journal as well, so that what a target acknowledges is as ever.
func (f *forward) standIn(l *line, panicked any) {
	f.metrics.broken.Inc()
	l.standIn(f.caught(l, panicked))
}

// caught is that of files.
func (f *forward) caught(l *line, panicked any) (why string) {
	return f.bugs.caught(panicked, "output "+f.target.name, "line", l.number, "bytes", len(l.record.Data), "input", inputName(l.record.Input))
}

// judge reads a record and tells whether its line goes to the target.
func (f *forward) judge(number uint64, r journal.Record) (wanted bool) {
	defer func() {
		if p := recover(); p != nil {
			f.standIn(&f.line, p)
			wanted = true
		}
	}()
	f.line.number = number
	f.line.read(r, f.names)
	return f.metrics.lets(f.rules.judge(&f.line, f.target.name))
}

// render is the line as the target is sent it.
func (f *forward) render(l *line) (text []byte) {
	defer func() {
		p := recover()
		switch {
		case p == nil:
		case l.lost == "":
			f.standIn(l, p)
			text = f.render(l)
		default:
			f.caught(l, p)
			text = f.appendLost(l)
		}
	}()
	if format := lineFormats[format5424]; f.target.format == format5424 {
		return format.append(nil, l, f.rules)
	}
	return f.rules.redact(l.appendForward(nil), 0)
}

// appendLost is that of a line, for the target.
func (f *forward) appendLost(l *line) []byte {
	if f.target.format == format5424 {
		return fmt.Appendf(nil, "<%d>1 %s - %s - - - %s", standInPriority, l.appendReceived(nil), announceApp, l.lost)
	}
	return fmt.Appendf(nil, "<%d>%s - %s: %s", standInPriority, l.appendReceived(nil), announceApp, l.lost)
}

// standIn has the line be one that says that it could not be shown.
func (f *filter) standIn(panicked any) {
	l := &f.line
	l.standIn(f.bugs.logged(panicked, "a query", "line", l.number, "bytes", len(l.record.Data), "input", inputName(l.record.Input)))
}

// look judges a record, and gives its line if it is wanted; nil: it is not. One
// that something panics over may be, and is given as one that says so.
func (f *filter) look(number uint64, r journal.Record) (e *Entry) {
	defer func() {
		if p := recover(); p != nil {
			f.standIn(p)
			if l := &f.line; f.hosts == nil || f.hosts[l.host] {
				e = &Entry{
					Time: l.received, Host: l.host, Input: inputName(l.record.Input), Facility: l.Facility(), Severity: l.Severity(),
					App: announceApp, Line: string(l.appendLost(nil, false)),
				}
			}
		}
	}()
	f.line.number = number
	if !f.take(r) {
		return nil
	}
	return f.entry()
}

// name judges a record, and says by what its line is counted; false: it is not
// wanted. One that something panics over is one of the others, if it is of a host that
// is wanted.
func (f *filter) name(number uint64, r journal.Record, by func(*filter) string) (name string, wanted bool) {
	defer func() {
		if p := recover(); p != nil {
			f.standIn(p)
			name, wanted = overflow, f.hosts == nil || f.hosts[f.line.host]
		}
	}()
	f.line.number = number
	if !f.take(r) {
		return "", false
	}
	return by(f), true
}
