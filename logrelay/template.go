package logrelay

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"holdfast/logrelay/syslog"
)

// defaultPath is where a host's lines go unless the cluster file says otherwise.
const defaultPath = "{host}" + fileSuffix

// Bounds of a path below the folder of files.
const (
	maxPath     = 1024 // bytes of all of it
	maxElement  = 200  // bytes of one name: with ".TIME.zst", and while it is compressed a dot and a number, less than NAME_MAX (255)
	maxApp      = 48   // bytes of a program's name, as RFC 5424 §6 has it
	defaultApps = 100
	maxApps     = 1000
	maxHostApps = 10_000_000 // of all hosts

	folderMark = '+' // behind a folder's name that could be a file's

	noApp     = "none"     // the name of a line's program where it names none
	hiddenApp = "redacted" // where it is what must not be written
)

// pathVariable is what a path is made of, beside what stands in it.
type pathVariable struct {
	name    string
	most    int    // bytes
	pattern string // of what is written for it
	dated   bool   // of the time at which the line was received, in UTC
}

const (
	safePattern = `[a-z0-9_-][a-z0-9._-]*`
	// That of 12 to 15, which have names now, is written no more.
	facilityPattern = `kern|user|mail|daemon|auth|syslog|lpr|news|uucp|cron|authpriv|ftp|ntp|audit|alert|clock|facility1[2-5]|local[0-7]`
)

// pathVariables in the order of the numbers that steps have.
var pathVariables = [...]pathVariable{
	varHost:     {name: "host", most: maxName, pattern: safePattern},
	varApp:      {name: "app", most: maxApp, pattern: safePattern},
	varFacility: {name: "facility", most: len("facility12"), pattern: facilityPattern},
	varSeverity: {name: "severity", most: len("warning"), pattern: `emerg|alert|crit|err|warning|notice|info|debug`},
	varYear:     {name: "year", most: 4, pattern: `\d{4}`, dated: true},
	varMonth:    {name: "month", most: 2, pattern: `0[1-9]|1[0-2]`, dated: true},
	varDay:      {name: "day", most: 2, pattern: `0[1-9]|[12]\d|3[01]`, dated: true},
}

const (
	varHost = iota
	varApp
	varFacility
	varSeverity
	varYear
	varMonth
	varDay
)

// pathTemplate says which file a line goes into. It is never changed.
type pathTemplate struct {
	text     string
	elements []pathElement
	has      [len(pathVariables)]bool
}

// pathElement is a name between slashes.
type pathElement struct {
	steps   []step
	pattern *regexp.Regexp // of the names that it gives, with a group for each variable
}

// step is a variable, or text that stands as it is.
type step struct {
	text     string // "": a variable
	variable int
}

// parsePath reads a template such as "{year}/{host}.log". What it gives ends in
// ".log" and stays below the folder; a folder that it gives is never called as
// a file that any template gives, nor as one that was put away. Two hosts have
// no file in common, whatever their programs are called.
func parsePath(text string) (*pathTemplate, error) {
	t := &pathTemplate{text: text}
	names := strings.Split(text, "/")
	long := len(names) - 1
	for i, name := range names {
		e, size, err := t.element(name, i == len(names)-1)
		if err != nil {
			return nil, err
		}
		t.elements = append(t.elements, e)
		long += size
	}
	switch {
	case long > maxPath:
		return nil, fmt.Errorf("a file's path can have %d bytes, want %d at most: {host} counts as %d, {app} as %d", long, maxPath, maxName, maxApp)
	case !t.has[varHost]:
		return nil, errors.New("{host} is missing: each host has files of its own, so that none writes into another's")
	case t.has[varMonth] && !t.has[varYear] || t.has[varDay] && !t.has[varMonth]:
		return nil, errors.New("a date that comes again is no date: {month} wants {year}, and {day} wants both")
	}
	return t, nil
}

// element reads one name of a path. size is how long what it gives can be.
func (t *pathTemplate) element(name string, last bool) (e pathElement, size int, err error) {
	if e.steps, err = parseSteps(name, func(variable string) int {
		return slices.IndexFunc(pathVariables[:], func(v pathVariable) bool { return v.name == variable })
	}); err != nil {
		return e, 0, fmt.Errorf("%w: want %s", err, variableNames())
	}
	switch {
	case name == "":
		return e, 0, errors.New("a name is empty: want names with one / between them, and none in front or behind")
	case name[0] == '.':
		return e, 0, fmt.Errorf("%q begins with a dot: such files are hidden, or another folder", name)
	case last && !strings.HasSuffix(name, fileSuffix):
		return e, 0, fmt.Errorf("%q does not end with %s: by that, files are told from what was put away", name, fileSuffix)
	case !last && strings.HasSuffix(name, fileSuffix):
		return e, 0, fmt.Errorf("%q is a folder and ends with %s: files alone do", name, fileSuffix)
	}
	pattern := "^"
	var free []string
	fixed := false // {host} or a date is to be found in what it gives
	for _, s := range e.steps {
		if s.text != "" {
			if strings.Trim(s.text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
				return e, 0, fmt.Errorf("%q has other characters than letters, digits, '.', '_' and '-'", s.text)
			}
			pattern += regexp.QuoteMeta(s.text)
			size += len(s.text)
			continue
		}
		v := pathVariables[s.variable]
		t.has[s.variable] = true
		pattern += "(" + v.pattern + ")"
		size += v.most
		fixed = fixed || v.dated || s.variable == varHost
		if !v.dated {
			free = append(free, "{"+v.name+"}")
		}
	}
	// Of "{host}-{app}", host cn1 with program adm-x and host cn1-adm with
	// program x would have one file. A date's length is always the same.
	if fixed && len(free) > 1 {
		return e, 0, fmt.Errorf("%q: %s want a / between them, since {host} or a date is there: a name of a program could else make another of it", name, strings.Join(free, " and "))
	}
	if size > maxElement {
		return e, 0, fmt.Errorf("%q can be a name of %d bytes, want %d at most: {host} counts as %d, {app} as %d", name, size, maxElement, maxName, maxApp)
	}
	if !last {
		pattern, size = pattern+regexp.QuoteMeta(string(folderMark))+"?", size+1
	}
	e.pattern, err = regexp.Compile(pattern + "$")
	return e, size, err
}

func variableNames() string {
	var list []string
	for _, v := range pathVariables {
		list = append(list, "{"+v.name+"}")
	}
	return strings.Join(list, " ")
}

// parseSteps takes a template apart. Braces that stand as they are are doubled.
// of gives a variable its number, or -1.
func parseSteps(text string, of func(name string) int) (list []step, err error) {
	literal := ""
	flush := func() {
		if literal != "" {
			list = append(list, step{text: literal})
		}
		literal = ""
	}
	for text != "" {
		at := strings.IndexAny(text, "{}")
		if at < 0 {
			literal += text
			break
		}
		literal += text[:at]
		text = text[at:]
		if len(text) > 1 && text[1] == text[0] {
			literal += text[:1]
			text = text[2:]
			continue
		}
		end := strings.IndexByte(text, '}')
		if end <= 0 {
			return nil, fmt.Errorf("%q has a brace without its other", text)
		}
		number := of(text[1:end])
		if number < 0 {
			return nil, fmt.Errorf("%q is no variable", text[:end+1])
		}
		flush()
		list = append(list, step{variable: number})
		text = text[end+1:]
	}
	flush()
	return list, nil
}

// append writes the path of a line's file, which app says of its program: a
// name that is safe. It allocates nothing but room.
func (t *pathTemplate) append(dst []byte, l *line, app []byte) []byte {
	for i := range t.elements {
		if i > 0 {
			dst = append(dst, '/')
		}
		from := len(dst)
		for _, s := range t.elements[i].steps {
			if s.text != "" {
				dst = append(dst, s.text...)
				continue
			}
			dst = appendPathVariable(dst, s.variable, l, app)
		}
		// A host can be called "x.log", too. None has the mark in its name.
		if i < len(t.elements)-1 && namesFile(dst[from:]) {
			dst = append(dst, folderMark)
		}
	}
	return dst
}

func appendPathVariable(dst []byte, variable int, l *line, app []byte) []byte {
	switch variable {
	case varHost:
		return append(dst, l.host...)
	case varApp:
		return append(dst, app...)
	case varFacility:
		return l.AppendFacility(dst)
	case varSeverity:
		return append(dst, syslog.SeverityName(l.Severity())...)
	case varYear:
		return append(dst, l.date()[:4]...)
	case varMonth:
		return append(dst, l.date()[4:6]...)
	}
	return append(dst, l.date()[6:]...)
}

// date is the day on which the line was received, in UTC, as 20261125. It is
// good until the next call: the lines of a day share it.
func (l *line) date() []byte {
	at := l.received.Unix()
	if day := at - (at%86400+86400)%86400; len(l.day) == 0 || l.dayAt != day {
		l.day, l.dayAt = time.Unix(day, 0).UTC().AppendFormat(l.day[:0], "20060102"), day
	}
	return l.day
}

// namesFile tells whether a file can be called so: one that is written, or one
// that was put away.
func namesFile(name []byte) bool {
	if bytes.HasSuffix(name, []byte(fileSuffix)) {
		return true
	}
	name = bytes.TrimSuffix(name, []byte(zstSuffix))
	at := len(name) - len(rotatedTime) - 1
	return at > 0 && name[at] == '.' && bytes.HasSuffix(name[:at], []byte(fileSuffix))
}

// layout knows the files that this relay writes, and those that it wrote when
// its path was another. What it does not know is no file of ours. It is never
// changed.
type layout struct {
	path *pathTemplate   // now
	all  []*pathTemplate // that first
}

// newLayout makes one of a path and of those that were before.
func newLayout(path *pathTemplate, before []string) *layout {
	l := &layout{path: path, all: []*pathTemplate{path}}
	for _, text := range before {
		if t, err := parsePath(text); err == nil && text != path.text { // a later version's has to wait for that
			l.all = append(append(l.all, t), t.spares()...)
		}
	}
	l.all = append(l.all, newSpare())
	return l
}

// place is a file as a layout sees it.
type place struct {
	group   string // files that are counted together: of a host, and of what else parts its files beside dates
	earlier bool   // the path was another
	past    bool   // no more lines come into it, but late ones
}

// place tells where a file belongs that is called so while it is written. ok is
// false if it is none of ours.
func (l *layout) place(path string, now time.Time) (p place, ok bool) {
	names := strings.Split(path, "/")
	for i, t := range l.all {
		if len(names) != len(t.elements) {
			continue
		}
		if p, ok = t.place(names, now.UTC()); ok {
			p.earlier = i > 0
			p.past = p.past || p.earlier
			return p, true
		}
	}
	return place{}, false
}

func (t *pathTemplate) place(names []string, now time.Time) (p place, ok bool) {
	values, ok := t.values(names)
	if !ok {
		return p, false
	}
	p.group = t.text
	for variable, value := range values {
		if value == "" {
			continue
		}
		switch variable {
		case varYear:
			p.past = p.past || value != now.Format("2006")
		case varMonth:
			p.past = p.past || value != now.Format("01")
		case varDay:
			p.past = p.past || value != now.Format("02")
		case varFacility:
			p.past = p.past || strings.HasPrefix(value, "facility")
			p.group += "/" + value
		default:
			p.group += "/" + value
		}
	}
	return p, true
}

// values are what the variables are in a path, or in a folder's that is one's
// beginning; ok is false if the template gives no such path. "": it has no such
// variable.
func (t *pathTemplate) values(names []string) (values [len(pathVariables)]string, ok bool) {
	if len(names) > len(t.elements) {
		return values, false
	}
	for i, name := range names {
		e := t.elements[i]
		found := e.pattern.FindStringSubmatch(name)
		if found == nil {
			return values, false
		}
		found = found[1:]
		for _, s := range e.steps {
			if s.text != "" {
				continue
			}
			value := found[0]
			found = found[1:]
			// What stands there twice is the same.
			if before := values[s.variable]; before != "" && before != value || len(value) > pathVariables[s.variable].most {
				return values, false
			}
			values[s.variable] = value
		}
	}
	return values, true
}

// folder tells whether files of ours can be below a folder.
func (l *layout) folder(path string) bool {
	names := strings.Split(path, "/")
	return slices.ContainsFunc(l.all, func(t *pathTemplate) bool {
		_, ok := t.values(names)
		return ok && len(names) < len(t.elements)
	})
}

// path reads the template of files' paths.
func (d *decoder) path(raw string) *pathTemplate {
	t, err := parsePath(raw)
	if err != nil {
		d.errorf("files.path", "%q: %v", raw, err)
	}
	return t
}
