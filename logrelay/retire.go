package logrelay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
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
	files []pastFile
	began time.Time // when the output first took some, behind its first checkpoint
}

// pastFile is one of them.
type pastFile struct {
	name    string
	changed time.Time // when it last did, as the rotator saw it
}

func (p *pastFiles) set(files []pastFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files = files
}

// take gives some of them, and keeps the others.
func (p *pastFiles) take(most int, now time.Time) (files []pastFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() {
		p.began = now
	}
	n := min(most, len(p.files))
	files, p.files = p.files[:n], p.files[n:]
	return files
}

// heard tells whether the output has written for as long as a file must be idle:
// before, files are silent since nobody wrote.
func (p *pastFiles) heard(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.began.IsZero() && now.Sub(p.began) >= retireAfter
}

// retire puts away files that get no more lines. Nothing is buffered, and what
// is open is synced. What can't be put away is told of and found again by the
// rotator: no line waits for it. An error is of names that are not durable.
func (o *files) retire() error {
	now, folders := o.now(), map[string]bool{}
	files := o.rotator.past.take(retireMost, now)
	if len(files) == 0 {
		return nil
	}
	var failed failures
	for _, f := range files {
		done, err := o.retireOne(f, now)
		failed.add(err)
		if done {
			folders[path.Dir(f.name)] = true
		}
	}
	if err := failed.err(); err != nil {
		o.log.Error("files that get no more lines are not put away; tried again in a minute", "dir", o.config.dir, "error", err)
	}
	if len(folders) == 0 {
		return nil
	}
	// Before a late line makes a file of an old name: if a power cut took the
	// renaming back, the new one's undo would cut the old one off.
	if err := o.syncNames(folders); err != nil {
		return fmt.Errorf("logrelay: files: put away: %w", err)
	}
	return nil
}

// retireOne puts a file away if it has had no line for long.
func (o *files) retireOne(f pastFile, now time.Time) (done bool, err error) {
	name := f.name
	info, err := o.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, o.close(name) // it is away, or somebody removed it
	}
	if err != nil {
		return false, err
	}
	// A line may have come since the rotator looked: then it waits again. While it
	// can be undone, the file's name has to stay: a later one of the same name
	// would be cut off in its place.
	if !info.ModTime().Equal(f.changed) || o.undo.has(name) {
		return false, nil
	}
	if err := o.close(name); err != nil {
		return false, err
	}
	if info.Size() == 0 {
		return true, o.root.Remove(name)
	}
	return true, o.rotator.putAway(o.root, name, now)
}

// close closes a file, if it is open. Nothing is to be written into it.
func (o *files) close(name string) error {
	f := o.open[name]
	if f == nil || f.unsynced {
		return nil
	}
	delete(o.open, name)
	return f.file.Close()
}

// Where files went is remembered, so that what an earlier path left is put away
// and removed in its time.
const (
	// pathsFile has each path there was, with its folder, one a line and the
	// newest last. It is beside the journal.
	pathsFile = "paths"
	maxPaths  = 16
)

// paths is the file of paths.
type paths struct {
	name    string
	content string
	saved   bool
}

// openPaths reads which paths were before in the folder, or below it, and adds
// the one of now. wrote: files were written before. Where no path is remembered,
// that was by a version that knew the default alone.
func openPaths(dir, folder string, now *pathTemplate, wrote bool) (p *paths, before []string, err error) {
	p = &paths{name: filepath.Join(dir, pathsFile)}
	folder = strings.TrimSuffix(filepath.Clean(folder), "/") + "/"
	b, err := os.ReadFile(p.name)
	remembered := string(b)
	switch {
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	case wrote:
		remembered = folder + defaultPath + "\n"
	}
	var all []string
	for line := range strings.Lines(remembered) {
		text := strings.TrimSuffix(line, "\n")
		if text == folder+now.text {
			continue
		}
		all = append(all, text)
		if below, ok := strings.CutPrefix(text, folder); ok {
			before = append(before, below)
		}
	}
	all = append(all[max(0, len(all)-maxPaths+1):], folder+now.text)
	p.content = strings.Join(all, "\n") + "\n"
	p.saved = p.content == string(b)
	return p, before, nil
}

// save makes them durable, before there is a file of a new one.
func (p *paths) save() error {
	if p.saved {
		return nil
	}
	if err := durable.Replace(p.name, []byte(p.content), 0o600); err != nil {
		return err
	}
	p.saved = true
	return nil
}
