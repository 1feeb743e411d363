package logrelay

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"syscall"
	"time"

	"holdfast/internal/health"
)

const conditionBlocked = "logs.files-blocked"

// spareSuffix is what stands behind a host's name in that of its spare file. No
// host has the mark in its name, and no file that a path gives.
const spareSuffix = string(folderMark) + fileSuffix

// newSpare is the path of spare files, below a folder: each host has one, for
// lines whose own file can't be opened. To a layout it is an earlier path, so that
// they are put away, kept and removed as what that left.
func newSpare(folder ...pathElement) *pathTemplate {
	text := ""
	for _, e := range folder {
		text += e.steps[0].text + "/"
	}
	return &pathTemplate{text: text + "{host}" + spareSuffix, elements: append(slices.Clip(folder), pathElement{
		steps:   []step{{variable: varHost}, {text: spareSuffix}},
		pattern: regexp.MustCompile("^(" + safePattern + ")" + regexp.QuoteMeta(spareSuffix) + "$"),
	})}
}

// spares are the paths of spare files where a path was an earlier one: its folder
// was the one of now, or one of those that have a name of their own in front.
func (t *pathTemplate) spares() (all []*pathTemplate) {
	for i, e := range t.elements {
		if len(e.steps) != 1 || e.steps[0].text == "" {
			break
		}
		all = append(all, newSpare(t.elements[:i+1]...))
	}
	return all
}

// obstructed tells whether a name can't be opened since something that is no file
// has it, or that of one of its folders: it is about this name alone, and no line
// that was written there is there.
func obstructed(err error) bool {
	var number syscall.Errno
	if !errors.As(err, &number) {
		return true // of os.Root: a link leads out of the folder
	}
	return slices.Contains([]syscall.Errno{syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP, syscall.ENXIO}, number)
}

// Bounds of names that can't be opened.
const (
	tryBlocked    = time.Minute // until the next try
	forgetBlocked = time.Hour   // that nothing was tried: no line came for it
	mostBlocked   = 10_000      // that are known; others are tried with each line
)

// blocked are the names of files that can't be opened. It belongs to one
// goroutine.
type blocked struct {
	board *health.Board
	names map[string]blockedName
}

type blockedName struct {
	tried time.Time
	why   error
}

// has tells whether a name need not be tried now.
func (b *blocked) has(name []byte, now time.Time) bool {
	n, ok := b.names[string(name)]
	return ok && now.Sub(n.tried) < tryBlocked
}

func (b *blocked) add(name string, now time.Time, why error) {
	if _, ok := b.names[name]; ok || len(b.names) < mostBlocked {
		b.names[name] = blockedName{now, why}
	}
}

// tell says which there are, and forgets those that no line comes for.
func (b *blocked) tell(now time.Time) {
	maps.DeleteFunc(b.names, func(_ string, n blockedName) bool { return now.Sub(n.tried) >= forgetBlocked })
	if len(b.names) == 0 {
		b.board.Clear(conditionBlocked)
		return
	}
	first := b.names[slices.Min(slices.Collect(maps.Keys(b.names)))]
	b.board.Raise(conditionBlocked, health.Warning, fmt.Sprintf(
		"%d files of hosts can't be opened, and their lines go into HOST%s below logs.files.dir: move what stands in the way, tried again after a minute: %v",
		len(b.names), spareSuffix, first.why))
}

// openable opens the file of the line, whose path stands in o.path, or that host's
// spare one.
func (o *files) openable(l *line) (*hostFile, error) {
	now := o.now()
	if !o.blocked.has(o.path, now) {
		f, err := o.openFile(l)
		if err == nil {
			delete(o.blocked.names, f.name)
			return f, nil
		}
		if !obstructed(err) && !errors.Is(err, fs.ErrPermission) {
			return nil, err
		}
		o.blocked.add(string(o.path), now, err)
	}
	o.path = append(append(o.path[:0], l.host...), spareSuffix...)
	if f, ok := o.open[string(o.path)]; ok {
		f.used = o.turn
		return f, nil
	}
	return o.openFile(l)
}
