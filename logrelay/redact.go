package logrelay

import (
	"bytes"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
)

// redacted stands where something must not be written.
const redacted = "[redacted]"

// secret is a pattern of what is not to be written.
type secret struct {
	*regexp.Regexp
	// loose is the pattern without ^, $, \b and their like: where the pattern
	// fits in a part of a line by itself, this fits in the line.
	loose *regexp.Regexp
}

// compileSecret reads a pattern of what is not to be written.
func compileSecret(text string) (*secret, error) {
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, err
	}
	if re.MatchString("") {
		return nil, fmt.Errorf("%q fits everywhere, between any two letters", text)
	}
	s := &secret{Regexp: re, loose: re}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err == nil && loosen(tree) {
		s.loose, err = regexp.Compile(tree.String())
	}
	return s, err
}

// loosen takes out of a pattern what it asks of its neighbourhood. true: there
// was something.
func loosen(re *syntax.Regexp) (changed bool) {
	switch re.Op {
	case syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		*re = syntax.Regexp{Op: syntax.OpEmptyMatch}
		return true
	}
	for _, sub := range re.Sub {
		changed = loosen(sub) || changed
	}
	return changed
}

// redact replaces what must not be written in a line that begins at from and
// ends where b does, without a line feed: '$' is the line's end, and nothing
// that fits takes its line feed away. Each pattern is tried in the line as it
// came: one that begins as another does would else find its beginning gone.
func (r *rules) redact(b []byte, from int) []byte {
	if r == nil {
		return b
	}
	r.covered = r.covered[:0]
	r.cover(b[from:], nil, from)
	if len(r.covered) == 0 {
		return b
	}
	r.sortCovered()
	if out := r.left(b, from, len(b)); out != nil {
		b = append(b[:from], out...) // a copy: b may be large
	}
	return b
}

// span is where a part stands in a line as appendPlain writes it. One that the
// line has not is empty.
type span struct{ from, to int }

// in is what stands there, without what is behind it; nil if that is no place in
// the line.
func (s span) in(plain []byte) []byte {
	if s.from < 0 || s.to < s.from || s.to > len(plain) {
		return nil
	}
	return plain[s.from:s.to:s.to]
}

// places are where parts stand in a line as appendPlain writes it.
type places struct {
	end                                          int // of what appendFile writes
	claims, tag, app, proc, text, host, id, data span
}

// appendPlain is appendFile, and behind its end what else the line has: every
// part stands somewhere. It says where. dst is empty.
func (l *line) appendPlain(dst []byte) ([]byte, places) {
	var at places
	dst = append(l.appendTime(dst), ' ')
	at.claims.from = len(dst)
	dst = l.appendHost(dst)
	at.claims.to = len(dst)
	dst = append(l.AppendPriority(append(dst, ' ')), ' ')
	at.tag.from = len(dst)
	dst = l.appendBody(dst)
	at.tag.to = at.tag.from + cleanLen(l.tag)
	at.end = len(dst)
	at.text = span{at.end - cleanLen(l.Text), at.end}
	dst = append(dst, ' ')
	if l.record.Source.IsValid() {
		dst = l.record.Source.AppendTo(dst)
	}
	dst = append(dst, ' ')
	at.host.from = len(dst)
	dst = append(dst, l.host...)
	at.host.to = len(dst)
	dst, at.id = appendBehind(dst, l.ID)
	dst, at.data = appendBehind(dst, l.Data)
	// A tag begins with the program, and a bracket with the process follows. RFC
	// 5424 has a process without a program, too, and makes no tag of it.
	behind, ok := bytes.CutPrefix(l.tag, l.App)
	if ok = ok && len(l.App) > 0; ok {
		at.app = span{at.tag.from, at.tag.from + cleanLen(l.App)}
	} else {
		dst, at.app = appendBehind(dst, l.App)
	}
	if behind, bracket := bytes.CutPrefix(behind, []byte{'['}); ok && bracket && bytes.HasPrefix(behind, l.Proc) {
		from := at.app.to + len("[")
		at.proc = span{from, from + cleanLen(l.Proc)}
	} else {
		dst, at.proc = appendBehind(dst, l.Proc)
	}
	return dst, at
}

// appendBehind writes a part behind a blank, and says where it stands.
func appendBehind(dst, part []byte) ([]byte, span) {
	from := len(dst) + 1
	dst = appendClean(append(dst, ' '), part)
	return dst, span{from, len(dst)}
}

// mayHide tells whether something in the line may be what must not be written;
// false: hide would change nothing. It asks each pattern once, of all that
// there is, and allocates nothing but room.
func (r *rules) mayHide(l *line) bool {
	if r == nil || len(r.secrets) == 0 {
		return false
	}
	for _, part := range [...][]byte{l.Host, l.Tag, l.App, l.Proc, l.ID, l.Data, l.Text} {
		if cleanLen(part) != len(part) {
			return true // patterns are tried in it as it came, too
		}
	}
	r.plain, _ = l.appendPlain(r.plain[:0])
	for _, s := range r.secrets {
		if s.loose.Match(r.plain) {
			return true
		}
	}
	return false
}

// hide takes out of the line's parts what must not be written: what a pattern
// covers of them in the line as it stands in the files by default, whichever
// format they are then written in, and what it fits in of a part by itself, as
// it came and as it is written. A part that loses something is clean. Who needs
// them as they were keeps l.Message and l.host.
func (r *rules) hide(l *line) {
	plain, at := l.appendPlain(r.plain[:0])
	r.plain, r.covered = plain, r.covered[:0]
	r.hideAt(l, at)
}

// hideAt is hide of a line whose parts stand at these places in r.plain. One
// that does not stand at its place is hidden whole.
func (r *rules) hideAt(l *line, at places) {
	r.cover(span{0, at.end}.in(r.plain), nil, 0)
	text, textAt := l.Text, at.text
	if bytes.HasPrefix(text, []byte{' '}) {
		text, textAt.from = text[1:], textAt.from+1
	}
	l.tag = append(l.tag[:0], l.host...)
	for _, part := range [...]struct {
		raw []byte
		at  span
	}{
		{l.Host, at.claims}, {l.Tag, at.tag}, {l.App, at.app}, {l.Proc, at.proc}, {text, textAt}, {l.tag, at.host}, {l.ID, at.id}, {l.Data, at.data},
	} {
		r.cover(part.at.in(r.plain), part.raw, part.at.from)
	}
	r.sortCovered()
	host := r.leftOf(l.tag, at.host)
	if len(l.Host) == 0 { // whose it is stands where the name in it would
		if out := r.leftOf(l.tag, at.claims); !bytes.Equal(out, l.tag) {
			host = out
		}
	}
	if !bytes.Equal(host, l.tag) {
		l.host = string(host)
	}
	l.Host, l.Tag, l.App, l.Proc = r.leftOf(l.Host, at.claims), r.leftOf(l.Tag, at.tag), r.leftOf(l.App, at.app), r.leftOf(l.Proc, at.proc)
	l.Text, l.ID, l.Data = r.leftOf(l.Text, at.text), r.leftOf(l.ID, at.id), r.leftOf(l.Data, at.data)
}

// cover notes what patterns fit in: in text, which stands at from in the line,
// and in what that was before it was made clean.
func (r *rules) cover(text, raw []byte, from int) {
	for _, s := range r.secrets {
		if s.Match(text) {
			for _, at := range s.FindAllIndex(text, -1) {
				r.covered = append(r.covered, [2]int{from + at[0], from + at[1]})
			}
		}
		if len(raw) > 0 && len(raw) != len(text) && s.Match(raw) {
			for _, at := range s.FindAllIndex(raw, -1) {
				begin := from + cleanLen(raw[:at[0]])
				r.covered = append(r.covered, [2]int{begin, begin + cleanLen(raw[at[0]:at[1]])})
			}
		}
	}
}

func (r *rules) sortCovered() {
	slices.SortFunc(r.covered, func(a, b [2]int) int { return a[0] - b[0] })
}

// left is what is left of plain between two places: another piece of memory,
// and nil if nothing is covered there.
func (r *rules) left(plain []byte, from, to int) (out []byte) {
	done := from
	for _, c := range r.covered {
		if begin, end := max(c[0], done), min(c[1], to); begin < end {
			if out = append(out, plain[done:begin:begin]...); c[0] >= done || done == from {
				out = append(out, redacted...)
			}
			done = end
		}
	}
	if done == from {
		return nil
	}
	return append(out, plain[done:to:to]...)
}

// leftOf is what is left of a part that stands at a place: the part itself, or
// another that is clean. What does not stand there is not looked for: nobody
// knows what of it is covered.
func (r *rules) leftOf(part []byte, at span) []byte {
	switch {
	case len(part) == 0:
		return part
	case !isClean(at.in(r.plain), part):
		return []byte(redacted)
	}
	if out := r.left(r.plain, at.from, at.to); out != nil {
		return out
	}
	return part
}

// isClean tells whether text is what appendClean writes of a part.
func isClean(text, part []byte) bool {
	var room [4]byte
	for len(part) > 0 {
		n := clean(part)
		one := part[:n]
		if n == 0 {
			n, one = 1, appendClean(room[:0], part[:1])
		}
		if !bytes.HasPrefix(text, one) {
			return false
		}
		text, part = text[len(one):], part[n:]
	}
	return len(text) == 0
}

// app is the program of a line as it may be written. covered: some of it may
// not. What it found out is kept for who writes the line as it is now.
func (r *rules) app(l *line) (app []byte, covered bool) {
	if l.hides = hidesNothing; !r.mayHide(l) {
		return l.App, false
	}
	l.hides = hidesMaybe
	said, host := l.Message, l.host
	r.hide(l)
	app, l.Message, l.host = l.App, said, host
	return app, !bytes.Equal(app, l.App)
}

// mayHideStill is mayHide, of a line that app may have been asked of since it
// was made: patterns are asked once then.
func (r *rules) mayHideStill(l *line) bool {
	known := l.hides
	if l.hides = hidesUnknown; known == hidesUnknown {
		return r.mayHide(l)
	}
	return known == hidesMaybe
}

// What is known of what must not be written in a line.
const (
	hidesUnknown uint8 = iota
	hidesNothing
	hidesMaybe
)

// cleanLen is how many bytes appendClean writes.
func cleanLen(text []byte) int {
	n := len(text)
	for _, c := range text {
		if c < 0x20 || c == 0x7f {
			n += len("#012") - 1
		}
	}
	return n
}
