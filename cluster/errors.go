package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Error is one mistake in a cluster file.
type Error struct {
	File         string
	Line, Column int // from 1; columns count characters; 0 unknown
	Message      string
}

// Error gives "file:line:column: message".
func (e *Error) Error() string {
	switch {
	case e.File == "":
		return e.Message
	case e.Line == 0:
		return e.File + ": " + e.Message
	case e.Column == 0:
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Errors is every mistake found, in the order of the file.
type Errors []*Error

// Error gives one line a mistake.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the mistakes one by one.
func (e Errors) Unwrap() []error {
	list := make([]error, len(e))
	for i, one := range e {
		list[i] = one
	}
	return list
}

// problems collects the mistakes of one file.
type problems struct {
	file  string
	list  Errors
	refs  int             // nodes named by node sets so far
	asked map[string]bool // every key that was asked for; nil: not recorded
}

// at notes a mistake. path names the key that it is about ("" the file).
func (p *problems) at(pos position, path, format string, args ...any) {
	p.list = append(p.list, newError(p.file, pos, path, format, args...))
}

func newError(file string, pos position, path, format string, args ...any) *Error {
	message := fmt.Sprintf(format, args...)
	if path != "" {
		message = path + ": " + message
	}
	return &Error{File: file, Line: pos.line, Column: pos.column, Message: message}
}

// merge takes over what a section's validator returned. An error that bears
// no position stands at pos.
func (p *problems) merge(pos position, path string, err error) {
	var list Errors
	var one *Error
	switch {
	case err == nil:
	case errors.As(err, &list):
		p.list = append(p.list, list...)
	default:
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, inner := range joined.Unwrap() {
				p.merge(pos, path, inner)
			}
			return
		}
		if errors.As(err, &one) {
			p.list = append(p.list, one)
			return
		}
		p.at(pos, path, "%v", err)
	}
}

// err gives the mistakes in the order of the file, each once; nil when there
// are none.
func (p *problems) err() error {
	if len(p.list) == 0 {
		return nil
	}
	slices.SortStableFunc(p.list, func(a, b *Error) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	p.list = slices.CompactFunc(p.list, func(a, b *Error) bool { return *a == *b })
	return p.list
}

// nearest finds the known name that a mistyped one may have meant.
func nearest(name string, known []string) (string, bool) {
	best, least := "", 1+max(1, len(name)/3)
	lower := strings.ToLower(name)
	for _, candidate := range known {
		if abs(len(candidate)-len(name)) >= least {
			continue
		}
		if d := distance(lower, strings.ToLower(candidate)); d < least {
			best, least = candidate, d
		}
	}
	return best, best != ""
}

func abs(n int) int { return max(n, -n) }

// distance counts the insertions, deletions, substitutions and swaps of
// neighbours that make b out of a (optimal string alignment), bytewise.
func distance(a, b string) int {
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}

// suggest ends a message about an unknown name: the nearest one, or what
// there is.
func suggest(name string, known []string) string {
	if near, ok := nearest(name, known); ok {
		return fmt.Sprintf("did you mean %q?", near)
	}
	if len(known) == 0 {
		return "there is none"
	}
	if len(known) > 20 {
		return "there are " + clipTo(Fold(known), 160)
	}
	return "known here: " + strings.Join(known, ", ")
}

// clip shortens what an error quotes.
func clip(s string) string { return clipTo(s, 60) }

func clipTo(s string, length int) string {
	if len(s) <= length {
		return s
	}
	return strings.ToValidUTF8(s[:length-3], "") + "..."
}
