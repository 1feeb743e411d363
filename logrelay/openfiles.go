package logrelay

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"syscall"
	"time"

	"holdfast/internal/kernel/filesystem"
)

// Bounds of files that are open at once.
const (
	leastOpenFiles = 256
	otherFiles     = 1000    // the journal's, targets', and what else the process has
	mostOpenFiles  = 1 << 20 // though the kernel would allow more
)

// openFilesMost is how many of the hosts' files may be open at once: what the
// inputs' connections leave of the files that this process may have, or a
// quarter of those.
func openFilesMost() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return leastOpenFiles
	}
	all := int(min(limit.Cur, mostOpenFiles))
	return max(leastOpenFiles, all/4, all-maxConnections-otherFiles)
}

// fileOf opens the file of the line, or finds it open.
func (o *files) fileOf(l *line) (*hostFile, error) {
	o.place(l)
	o.turn++
	if f, ok := o.open[string(o.path)]; ok {
		f.used = o.turn
		return f, nil
	}
	if len(o.open) >= o.most {
		if err := o.closeOldest(); err != nil {
			return nil, err
		}
	}
	f, err := o.openable(l)
	if err != nil {
		return nil, fmt.Errorf("logrelay: files: %w", err)
	}
	return f, nil
}

// openFile opens a file of the line's host, whose path stands in o.path.
func (o *files) openFile(l *line) (*hostFile, error) {
	name := string(o.path)
	file, info, err := o.access.open(o.root, name)
	if err != nil {
		return nil, err
	}
	f := &hostFile{name: name, file: file, size: info.Size(), born: o.now(), voice: o.silence.of(l.host), used: o.turn}
	if f.size > 0 {
		f.born = bornAt(file, info, o.now())
	}
	// One with lines had its name at the last checkpoint, too.
	for dir := path.Dir(name); f.size == 0 && dir != "."; dir = path.Dir(dir) {
		o.folders[dir] = true
	}
	o.open[name] = f
	return f, nil
}

// closeOldest closes the sixteenth of the files that had no line for the longest
// time, so that those that are busy stay open, and those that are put away at the
// next checkpoint. The lines of the block that is being taken are flushed as well;
// the cursor moves to where the block began.
func (o *files) closeOldest() error {
	if err := o.flush(); err != nil {
		return err
	}
	list := slices.SortedFunc(maps.Values(o.open), func(a, b *hostFile) int {
		switch {
		case a.rotate == b.rotate:
			return cmp.Compare(a.used, b.used)
		case a.rotate:
			return 1
		}
		return -1
	})
	list = list[:max(1, len(list)/16)]
	if err := o.syncFiles(slices.Values(list)); err != nil {
		return fmt.Errorf("logrelay: files: %w", err)
	}
	for _, f := range list {
		delete(o.open, f.name)
		if err := f.file.Close(); err != nil {
			return fmt.Errorf("logrelay: files: %w", err)
		}
	}
	return nil
}

// bornAt is when a file with lines was begun: when it was made, since each one
// that was put away leaves a new one behind. Where the file system does not say,
// it is when the last line came. now where a clock was ahead then.
func bornAt(file *os.File, info os.FileInfo, now time.Time) time.Time {
	at, ok := filesystem.Birth(file)
	if !ok {
		at = info.ModTime()
	}
	if at.After(now) {
		return now
	}
	return at
}

// When buffered lines are written.
const (
	flushLatest = 250 * time.Millisecond // after the first of them came, however many follow
	// catchUpMost is for how long an output that is behind goes on when the relay
	// ends: the rest is in the journal.
	catchUpMost = 2 * time.Second
)

// due tells whether what is buffered is to be written now.
func (o *files) due() bool {
	switch {
	case o.buffered == 0:
		return false
	case o.buffered >= flushBytes:
		return true
	case o.since.IsZero():
		o.since = o.now()
		return false
	}
	return o.now().Sub(o.since) >= flushLatest
}

// ending tells whether the output ends though the journal has more. stopped: the
// relay ends.
func (o *files) ending(stopped bool) bool {
	if !stopped {
		return false
	}
	if o.until.IsZero() {
		o.until = o.now().Add(cmp.Or(o.catchUp, catchUpMost))
	}
	return !o.now().Before(o.until)
}
