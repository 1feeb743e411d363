package logrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
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

// tooOld tells whether a file of an earlier path has been kept for as long as
// keep files of a host last that has a line in each period. Nothing is put away
// there that would push it out.
func (c rotateConfig) tooOld(at string, now time.Time) bool {
	put, err := time.Parse(rotatedTime, at)
	return err == nil && now.Sub(put).Seconds() > float64(c.keep)*c.every.Seconds()
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
	wake   chan struct{}
	now    func() time.Time
	// space is what is free in the directory, in percent: see freeForFiles.
	space func(dir string) (float64, error)
	room  *room
	past  pastFiles
}

const (
	rotatedTime = "20060102T150405.000"
	zstSuffix   = ".zst"
)

func newRotator(dir string, config rotateConfig, layout *layout, log *slog.Logger) *rotator {
	return &rotator{dir: dir, config: config, layout: layout, log: log, wake: make(chan struct{}, 1), now: time.Now, space: freeForFiles}
}

// rotate puts a file away. It is synced already.
func (r *rotator) rotate(root *os.Root, name string, now time.Time) error {
	if err := renameAway(root, name, now); err != nil {
		return err
	}
	r.wakeUp()
	return syncFolder(root, path.Dir(name))
}

func renameAway(root *os.Root, name string, now time.Time) error {
	return root.Rename(name, name+"."+now.UTC().Format(rotatedTime))
}

// wakeUp has run look what there is to compress.
func (r *rotator) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// syncFolder makes the names in a folder durable.
func syncFolder(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// run compresses and removes until ctx ends. What fails is logged and tried
// again later.
func (r *rotator) run(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	if err := r.sweep(); err != nil {
		r.log.Error("what a crash left of compressed files is not removed", "dir", r.dir, "error", err)
	}
	for {
		if err := errors.Join(r.compressAll(ctx), r.tidy()); err != nil && ctx.Err() == nil {
			r.log.Error("files that were put away are not compressed or removed; tried again in a minute", "dir", r.dir, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.wake:
		}
	}
}

// cutRotated takes the name of a file that was put away apart.
func cutRotated(name string) (file, at string, ok bool) {
	base := strings.TrimSuffix(name, zstSuffix)
	i := strings.LastIndex(base, fileSuffix+".")
	if i < 0 {
		return "", "", false
	}
	at = base[i+len(fileSuffix)+1:]
	if _, err := time.Parse(rotatedTime, at); err != nil {
		return "", "", false
	}
	return base[:i+len(fileSuffix)], at, true
}

func (r *rotator) compressAll(ctx context.Context) error {
	return r.look(func(root *os.Root, l listing) error {
		var failed failures
		for _, f := range l.away {
			if ctx.Err() != nil {
				return nil
			}
			if !strings.HasSuffix(f.name, zstSuffix) {
				failed.add(compress(ctx, root, f.name))
			}
		}
		return failed.err()
	})
}

// compress replaces a file by its compressed form, of the same owner and mode.
func compress(ctx context.Context, root *os.Root, name string) error {
	in, err := root.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	// See sweep. Nobody else compresses.
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

// tidy removes what is more than is kept, and folders that have become empty.
func (r *rotator) tidy() error {
	err := r.look(r.remove)
	if free, failed := r.space(r.dir); failed == nil {
		r.room.look(r.dir, free, r.config.free)
	}
	return err
}

func (r *rotator) remove(root *os.Root, l listing) error {
	var failed failures
	r.past.set(l.past)
	now := r.now()
	for _, f := range l.away {
		tooMany := f.group.count > r.config.keep || f.group.earlier && r.config.tooOld(f.at, now)
		if !tooMany {
			free, err := r.space(r.dir)
			if err != nil || free >= r.config.free {
				failed.add(err)
				continue
			}
		}
		if err := root.Remove(f.name); err != nil {
			failed.add(err)
			continue
		}
		f.group.count--
		r.room.took(r.log, f.name, tooMany)
	}
	for _, dir := range l.empty {
		// One that a file was made in meanwhile stays, and says so.
		if err := root.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			failed.add(err)
		}
	}
	return failed.err()
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
