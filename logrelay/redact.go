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

// places are where parts stand in a line as appendPlain writes it.
type places struct{ claims, tag, text, end, host, id, data int }

// appendPlain is appendFile, and behind its end what else the line has. It says
// where the parts are. dst is empty.
func (l *line) appendPlain(dst []byte) ([]byte, places) {
	var at places
	dst = append(l.appendTime(dst), ' ')
	at.claims = len(dst)
	dst = append(l.appendHost(dst), ' ')
	dst = append(l.AppendPriority(dst), ' ')
	at.tag = len(dst)
	dst = l.appendBody(dst)
	at.end = len(dst)
	at.text = at.end - cleanLen(l.Text)
	dst = append(dst, ' ')
	if l.record.Source.IsValid() {
		dst = l.record.Source.AppendTo(dst)
	}
	dst = append(dst, ' ')
	at.host = len(dst)
	dst = append(append(dst, l.host...), ' ')
	at.id = len(dst)
	dst = append(appendClean(dst, l.ID), ' ')
	at.data = len(dst)
	return appendClean(dst, l.Data), at
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
	r.cover(plain[:at.end], nil, 0)
	proc := at.tag + cleanLen(l.App) + len("[")
	text, blank := bytes.CutPrefix(l.Text, []byte{' '})
	textAt := at.text
	if blank {
		textAt++
	}
	l.tag = append(l.tag[:0], l.host...)
	for _, part := range [...]struct {
		raw  []byte
		from int
	}{
		{l.Host, at.claims}, {l.Tag, at.tag}, {l.App, at.tag}, {l.Proc, proc}, {text, textAt}, {l.tag, at.host}, {l.ID, at.id}, {l.Data, at.data},
	} {
		r.cover(plain[part.from:][:cleanLen(part.raw)], part.raw, part.from)
	}
	if len(r.covered) == 0 {
		return
	}
	r.sortCovered()
	if len(l.Host) > 0 {
		l.Host = r.leftOf(l.Host, at.claims)
		l.host = string(r.leftOf(l.tag, at.host))
	} else if out := r.leftOf(l.tag, at.claims); !bytes.Equal(out, l.tag) {
		l.host = string(out)
	} else {
		l.host = string(r.leftOf(l.tag, at.host))
	}
	l.Tag, l.App, l.Proc, l.Text = r.leftOf(l.Tag, at.tag), r.leftOf(l.App, at.tag), r.leftOf(l.Proc, proc), r.leftOf(l.Text, at.text)
	l.ID, l.Data = r.leftOf(l.ID, at.id), r.leftOf(l.Data, at.data)
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
			if out = append(out, plain[done:begin]...); c[0] >= done || done == from {
				out = append(out, redacted...)
			}
			done = end
		}
	}
	if done == from {
		return nil
	}
	return append(out, plain[done:to]...)
}

// leftOf is what is left of a part that stands at from: the part itself, or
// another that is clean.
func (r *rules) leftOf(part []byte, from int) []byte {
	if out := r.left(r.plain, from, from+cleanLen(part)); out != nil {
		return out
	}
	return part
}

// app is the program of a line as it may be written. covered: some of it may
// not.
func (r *rules) app(l *line) (app []byte, covered bool) {
	if !r.mayHide(l) {
		return l.App, false
	}
	said, host := l.Message, l.host
	r.hide(l)
	app, l.Message, l.host = l.App, said, host
	return app, !bytes.Equal(app, l.App)
}

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
