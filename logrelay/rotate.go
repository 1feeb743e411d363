package logrelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
)

// rotateConfig says when a file is put away, and how long what was put away is kept.
type rotateConfig struct {
	bytes int64
	every time.Duration
	keep  int     // files of a group, beside the one that is written: see place
	free  float64 // percent of the file system below which the oldest of all go
}

func (c rotateConfig) due(size int64, age time.Duration) bool {
	return size >= c.bytes || size > 0 && age >= c.every
}

// tooOld tells whether a file was put away as long ago as the oldest of keep files
// of a host that has a line in each period.
func (c rotateConfig) tooOld(at, now time.Time) bool {
	return now.Sub(at).Seconds() > float64(c.keep)*c.every.Seconds()
}

// outlived tells whether a file is too old and no other will push it out, since its
// path was an earlier one or its host and program have been silent for as long.
func (c rotateConfig) outlived(f awayFile, now time.Time) bool {
	g := f.group
	return c.tooOld(f.since, now) && (g.earlier || !g.written && c.tooOld(g.newest, now))
}

// rotator puts files away by renaming them, compresses them beside the work,
// and removes the oldest. A file that was put away is "HOST.log.TIME", and
// ".zst" behind that once it is compressed: no host's own file is called so,
// and no folder.
type rotator struct {
	dir    string
	config rotateConfig
	layout *layout
	log    *slog.Logger
	wake   chan string // files that were put away just now
	now    func() time.Time
	// space is what is free in the directory, in percent: see freeForFiles.
	space func(dir string) (float64, error)
	room  *room
	past  pastFiles
	took  time.Duration        // to look through the folders
	left  bool                 // the last look had not the time to compress all
	uid   int                  // of whom files and folders are that we make
	owner ownership            // whose files then are
	ahead map[string]aheadFile // files that are of a later time than now: see since
	old   map[string]time.Time // when files that were outlived at each look since were first seen so
}

const (
	lookEvery   = time.Minute
	outlivedFor = time.Hour // before a file goes for its age: a clock may be ahead for a while
	leastRest   = 5 * time.Second
	emptyAfter  = 24 * time.Hour // for which a folder was empty when it is removed
	rotatedTime = "20060102T150405.000"
	zstSuffix   = ".zst"
)

func newRotator(dir string, config rotateConfig, layout *layout, log *slog.Logger) *rotator {
	return &rotator{dir: dir, config: config, layout: layout, log: log, wake: make(chan string, retireMost), now: time.Now, space: freeForFiles, uid: os.Geteuid()}
}

// putAway renames a file, and has it compressed. It is synced already; its new name
// is not.
func (r *rotator) putAway(root *os.Root, name string, now time.Time) error {
	away := name + "." + now.UTC().Format(rotatedTime)
	if err := root.Rename(name, away); err != nil {
		return err
	}
	select {
	case r.wake <- away:
	default: // the next look finds it
	}
	return nil
}

// syncFolder makes the names in a folder durable.
func syncFolder(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// run goes through the folders and compresses what is put away meanwhile, until ctx
// ends. What fails is tried again at the next look.
func (r *rotator) run(ctx context.Context) {
	for {
		err := r.look(func(root *os.Root, l *listing) error { return r.round(ctx, root, l) })
		if err != nil && ctx.Err() == nil {
			r.log.Error("files that were put away are not compressed or removed; tried again in a minute", "dir", r.dir, "error", err)
		}
		if !r.wait(ctx) {
			return
		}
	}
}

// wait compresses what is put away until the next look: after a minute, or earlier
// where something was put away, since there may be more than are kept then. false:
// ctx ended.
func (r *rotator) wait(ctx context.Context) bool {
	next, rest := time.NewTimer(lookEvery), time.NewTimer(restAfter(r.took))
	defer next.Stop()
	defer rest.Stop()
	for rested, more := false, r.left; !rested || !more; {
		select {
		case <-ctx.Done():
			return false
		case <-next.C:
			return true
		case <-rest.C:
			rested = true
		case name := <-r.wake:
			more = true
			if err := r.compressOne(ctx, name); err != nil && ctx.Err() == nil {
				r.log.Debug("a file that was put away is not compressed; tried again within a minute", "dir", r.dir, "error", err)
			}
		}
	}
	return true
}

// restAfter is the least time behind a look of that length: with many files, looks
// take a twentieth of the time.
func restAfter(took time.Duration) time.Duration {
	return min(max(leastRest, 20*took), lookEvery)
}

// cutRotated takes the name of a file that was put away apart.
func cutRotated(name string) (file string, at time.Time, ok bool) {
	base := strings.TrimSuffix(name, zstSuffix)
	i := strings.LastIndex(base, fileSuffix+".")
	if i < 0 {
		return "", at, false
	}
	at, err := time.Parse(rotatedTime, base[i+len(fileSuffix)+1:])
	if err != nil {
		return "", at, false
	}
	return base[:i+len(fileSuffix)], at, true
}

// round removes what is too much, since compressing takes room first and may take
// long, and then compresses. Between two files it looks whether there is room still,
// and what is not done in time is found by the next look.
func (r *rotator) round(ctx context.Context, root *os.Root, l *listing) error {
	var failed failures
	failed.add(r.remove(root, l))
	all, until, i := l.away, r.now().Add(lookEvery), 0
	for ; i < len(all); i++ {
		f := &all[i] // makeRoom may have removed it
		if strings.HasSuffix(f.name, zstSuffix) {
			continue
		}
		if ctx.Err() != nil || !r.now().Before(until) {
			break
		}
		if err := compress(ctx, root, f.name); err != nil {
			failed.add(err)
		} else {
			f.name += zstSuffix
		}
		_, err := r.makeRoom(root, l)
		failed.add(err)
	}
	r.left = i < len(all)
	return failed.err()
}

// compressOne is compress with the folder opened.
func (r *rotator) compressOne(ctx context.Context, name string) error {
	root, err := os.OpenRoot(r.dir)
	if err != nil {
		return err
	}
	return errors.Join(compress(ctx, root, name), root.Close())
}

// compress replaces a file by its compressed form, of the same owner and mode. One
// that is no longer there was compressed or removed meanwhile.
func compress(ctx context.Context, root *os.Root, name string) error {
	in, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	// What a crash leaves of it goes at the next look. Nobody else compresses.
	half := path.Join(path.Dir(name), "."+path.Base(name)+zstSuffix+".1")
	if err = root.Remove(half); err == nil || errors.Is(err, fs.ErrNotExist) {
		err = compressInto(ctx, root, half, in, info)
	}
	if err == nil {
		err = root.Rename(half, name+zstSuffix)
	}
	if err != nil {
		if failed := root.Remove(half); failed != nil && !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
		return fmt.Errorf("compress %s: %w", name, err)
	}
	if err := syncFolder(root, path.Dir(name)); err != nil {
		return err
	}
	return root.Remove(name)
}

// compressInto makes a file that is durable, but for its name.
func compressInto(ctx context.Context, root *os.Root, name string, in io.Reader, like os.FileInfo) error {
	out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, leastMode)
	if err != nil {
		return err
	}
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1))
	if err == nil {
		_, err = io.Copy(z, cancellable{ctx, in})
		err = errors.Join(err, z.Close())
	}
	if err == nil {
		err = out.Chmod(like.Mode().Perm()) // before the owner changes, as in give
	}
	if err == nil {
		err = out.Chown(ownerOf(like))
	}
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

// cancellable is a reader that ends with its context.
type cancellable struct {
	ctx context.Context
	in  io.Reader
}

func (c cancellable) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.in.Read(b)
}

// remove removes what is more than is kept, then the oldest of all while too
// little is free, and what is left over: folders that have become empty, and halves.
func (r *rotator) remove(root *os.Root, l *listing) error {
	var failed failures
	for _, name := range l.half {
		failed.add(root.Remove(name))
	}
	kept, old := l.away[:0], r.outlived(l)
	for _, f := range l.away {
		if f.group.count <= r.config.keep && !old(f) {
			kept = append(kept, f)
		} else if err := r.removeAway(root, f, true); err != nil {
			failed.add(err)
		}
	}
	l.away = kept
	short, err := r.makeRoom(root, l)
	failed.add(err)
	if short && r.past.heard(r.now()) {
		// Those that are silent for longest are put away next, and go after that.
		slices.SortFunc(l.idle, func(a, b idleFile) int { return cmp.Compare(b.idle, a.idle) })
		for _, f := range l.idle[:min(len(l.idle), retireMost)] {
			l.past = append(l.past, f.pastFile)
		}
	}
	r.past.set(l.past)
	for _, dir := range l.empty {
		if l.part {
			break
		}
		if err := root.Remove(dir); err != nil && !staysThere(err) {
			failed.add(err)
		}
	}
	return failed.err()
}

// outlived tells of which files of a listing that goes for their age: those that
// were too old at each look for an hour, by the clock that nobody sets. Where a file
// that is written may not be in the listing, none goes.
func (r *rotator) outlived(l *listing) func(f awayFile) bool {
	now, old := r.now(), map[string]time.Time{}
	for _, f := range l.away {
		if l.part || !r.config.outlived(f, now) {
			continue
		}
		name := strings.TrimSuffix(f.name, zstSuffix)
		first, ok := r.old[name]
		if !ok {
			first = now
		}
		old[name] = first
	}
	r.old = old
	return func(f awayFile) bool {
		first, ok := old[strings.TrimSuffix(f.name, zstSuffix)]
		return ok && now.Sub(first) >= outlivedFor
	}
}

// staysThere tells whether a folder was not removed for good: a file was made in it
// meanwhile, or something is mounted there. Or it is gone.
func staysThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EBUSY)
}

// makeRoom removes the oldest of the files that were put away while too little of
// the disk is free. short: there is none left to remove.
func (r *rotator) makeRoom(root *os.Root, l *listing) (short bool, err error) {
	var failed failures
	for {
		free, err := r.space(r.dir)
		if err != nil {
			failed.add(err)
			return false, failed.err()
		}
		if short = free < r.config.free; !short || len(l.away) == 0 {
			r.room.look(r.dir, free, r.config.free)
			return short, failed.err()
		}
		oldest := l.away[0]
		l.away = l.away[1:]
		failed.add(r.removeAway(root, oldest, false))
	}
}

func (r *rotator) removeAway(root *os.Root, f awayFile, tooMany bool) error {
	err := root.Remove(f.name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f.group.count--
	if err == nil { // else somebody else did
		r.room.took(r.log, f.name, tooMany)
	}
	return nil
}

// freePercent is how much of the file system of dir others than root may use.
func freePercent(dir string) (float64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if s.Blocks == 0 {
		return 100, nil
	}
	return 100 * float64(s.Bavail) / float64(s.Blocks), nil
}

// freeForFiles is freePercent, or what is free of the inodes where that is less:
// files may be many and small. A file system that has no number of them says 0.
func freeForFiles(dir string) (float64, error) {
	free, err := freePercent(dir)
	var s syscall.Statfs_t
	if err == nil {
		err = syscall.Statfs(dir, &s)
	}
	if err != nil || s.Files == 0 {
		return free, err
	}
	return min(free, 100*float64(s.Ffree)/float64(s.Files)), nil
}
