package logrelay

import (
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
	why := o.bugs.caught(panicked, "output files", "line", l.number, "bytes", len(l.record.Data), "input", inputName(l.record.Input))
	o.metrics.broken.Inc()
	l.standIn(why)
}

// judge reads a record and tells whether its line goes into a file.
func (o *files) judge(number uint64, r journal.Record) (wanted bool) {
	defer func() {
		if p := recover(); p != nil {
			o.standIn(&o.line, p)
			wanted = true
		}
	}()
	o.line.number = number
	o.line.read(r, o.names)
	// The sender's numbers have no gap where a rule makes one.
	if n := sequenceOf(o.line.Data); n > 0 {
		o.missing.Add(float64(o.gaps.saw(o.line.host, n, o.line.received)))
	}
	return o.metrics.lets(o.rules.judge(&o.line, "files"))
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
			out = l.appendLost(dst, o.config.format.json)
		}
	}()
	return o.config.format.append(dst, l, o.rules)
}

// standIn is that of files: what is sent in the line's place has its place in
// the journal as well, so that what a target acknowledges is as ever.
func (f *forward) standIn(l *line, panicked any) {
	why := f.bugs.caught(panicked, "output "+f.target.name, "line", l.number, "bytes", len(l.record.Data), "input", inputName(l.record.Input))
	f.metrics.broken.Inc()
	l.standIn(why)
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
		case f.target.format == format5424:
			text = fmt.Appendf(nil, "<%d>1 %s - %s - - - %s", standInPriority, l.appendReceived(nil), announceApp, l.lost)
		default:
			text = fmt.Appendf(nil, "<%d>%s - %s: %s", standInPriority, l.appendReceived(nil), announceApp, l.lost)
		}
	}()
	if format := lineFormats[format5424]; f.target.format == format5424 {
		return format.append(nil, l, f.rules)
	}
	return f.rules.redact(l.appendForward(nil), 0)
}

// standIn has the line be one that says that it could not be shown.
func (f *filter) standIn(panicked any) {
	l := &f.line
	l.standIn(f.bugs.caught(panicked, "a query", "line", l.number, "bytes", len(l.record.Data), "input", inputName(l.record.Input)))
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
// wanted. One that something panics over is one of the others.
func (f *filter) name(number uint64, r journal.Record, by func(*filter) string) (name string, wanted bool) {
	defer func() {
		if p := recover(); p != nil {
			f.standIn(p)
			name, wanted = overflow, true
		}
	}()
	f.line.number = number
	if !f.take(r) {
		return "", false
	}
	return by(f), true
}
