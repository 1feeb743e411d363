package logrelay

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"holdfast/internal/durable"
)

// When a file that gets no more lines is put away.
const (
	// retireAfter is how long it has had none: lines of yesterday may come from
	// another node, or be behind in the journal, and each time a file is put
	// away it pushes an older one out.
	retireAfter = time.Hour
	retireMost  = 1000 // at once, so that lines don't wait for it
)

// pastFiles are files that get no more lines: of a day that is over, or of an
// earlier path. The rotator finds them, and the output, which alone knows what
// it has open, puts them away.
type pastFiles struct {
	mu    sync.Mutex
	names []string
}

func (p *pastFiles) set(names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names = names
}

// take gives some of them, and keeps the others.
func (p *pastFiles) take(most int) (names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(most, len(p.names))
	names, p.names = p.names[:n], p.names[n:]
	return names
}

// retire puts away files that get no more lines. Nothing is buffered, and what
// is open is synced. What can't be put away is told of and found again by the
// rotator: no line waits for it.
func (o *files) retire() {
	names := o.rotator.past.take(retireMost)
	if len(names) == 0 {
		return
	}
	now, away := o.now(), 0
	var failed error
	for _, name := range names {
		done, err := o.retireOne(name, now)
		failed = errors.Join(failed, err)
		if done {
			away++
		}
	}
	if failed != nil {
		o.log.Error("files that get no more lines are not put away; tried again in a minute", "dir", o.config.dir, "error", failed)
	}
	if away == 0 {
		return
	}
	maps.DeleteFunc(o.births, func(name string, _ time.Time) bool {
		p, ok := o.layout.place(name, now)
		return !ok || p.past
	})
	o.rotator.wakeUp()
}

// retireOne puts a file away if it has had no line for long. Its new name need
// not be durable: with its old one it is found again.
func (o *files) retireOne(name string, now time.Time) (done bool, err error) {
	info, err := o.root.Lstat(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // it is away
		}
		return false, err
	}
	// While it can be undone, the file's name has to stay: a later one of the
	// same name would be cut off in its place.
	if now.Sub(info.ModTime()) < retireAfter || o.undo.has(name) {
		return false, nil
	}
	if f := o.open[name]; f != nil {
		delete(o.open, name)
		if err := f.file.Close(); err != nil {
			return false, err
		}
	}
	if info.Size() == 0 {
		return true, o.root.Remove(name)
	}
	return true, renameAway(o.root, name, now)
}

// pathsFile has the paths that files had, one a line, the newest last. Where it
// is missing, they had the default.
const pathsFile = "paths"

// loadLayout makes the layout of a path, and of those in dir that were before.
func loadLayout(dir string, path *pathTemplate) (*layout, error) {
	b, err := os.ReadFile(filepath.Join(dir, pathsFile))
	if errors.Is(err, fs.ErrNotExist) {
		b, err = []byte(defaultPath+"\n"), nil
	}
	if err != nil {
		return nil, err
	}
	l := newLayout(path, strings.Fields(string(b)))
	l.saved = string(b) == l.String()
	return l, nil
}

func (l *layout) String() string { return strings.Join(l.texts, "\n") + "\n" }

// save notes the paths in dir, before there is a file of a new one.
func (l *layout) save(dir string) error {
	if l.saved {
		return nil
	}
	if err := durable.Replace(filepath.Join(dir, pathsFile), []byte(l.String()), 0o600); err != nil {
		return err
	}
	l.saved = true
	return nil
}
