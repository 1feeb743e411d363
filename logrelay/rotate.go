package logrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"holdfast/internal/durable"
)

// rotateConfig says when a file is put away, and how long what was put away is kept.
type rotateConfig struct {
	bytes int64
	every time.Duration
	keep  int     // files of a host, beside the one that is written
	free  float64 // percent of the file system below which the oldest of all go
}

func (c rotateConfig) due(size int64, age time.Duration) bool {
	return size >= c.bytes || size > 0 && age >= c.every
}

// rotator puts files away by renaming them, compresses them beside the work,
// and removes the oldest. A file that was put away is "HOST.log.TIME", and
// ".zst" behind that once it is compressed: no host's own file is called so.
type rotator struct {
	dir    string
	config rotateConfig
	log    *slog.Logger
	wake   chan struct{}
	// space is what is free in the directory, in percent.
	space func(dir string) (float64, error)
	room  *room
}

const (
	rotatedTime = "20060102T150405.000"
	zstSuffix   = ".zst"
)

func newRotator(dir string, config rotateConfig, log *slog.Logger) *rotator {
	return &rotator{dir: dir, config: config, log: log, wake: make(chan struct{}, 1), space: freePercent}
}

// rotate puts a file away. It is synced already.
func (r *rotator) rotate(root *os.Root, name string, now time.Time) error {
	if err := root.Rename(name, name+"."+now.UTC().Format(rotatedTime)); err != nil {
		return err
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return durable.SyncDir(r.dir)
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

// rotated lists the files that were put away, the oldest first.
func (r *rotator) rotated() ([]string, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing was written yet
	}
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if _, at, ok := cutRotated(e.Name()); ok && at != "" && e.Type().IsRegular() {
			list = append(list, e.Name())
		}
	}
	slices.SortFunc(list, func(a, b string) int {
		_, x, _ := cutRotated(a)
		_, y, _ := cutRotated(b)
		return strings.Compare(x+a, y+b)
	})
	return list, nil
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
	list, err := r.rotated()
	if err != nil {
		return err
	}
	for _, name := range list {
		if ctx.Err() != nil {
			return nil
		}
		if !strings.HasSuffix(name, zstSuffix) {
			err = errors.Join(err, compress(ctx, filepath.Join(r.dir, name)))
		}
	}
	return err
}

// compress replaces a file by its compressed form, of the same owner and mode.
func compress(ctx context.Context, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	err = durable.ReplaceFunc(path+zstSuffix, info.Mode().Perm(), func(w io.Writer) error {
		z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return err
		}
		_, err = io.Copy(z, cancellable{ctx, in})
		return errors.Join(err, z.Close())
	})
	if err == nil {
		uid, gid := ownerOf(info)
		if err = os.Lchown(path+zstSuffix, uid, gid); err != nil {
			err = errors.Join(err, os.Remove(path+zstSuffix))
		}
	}
	if err != nil {
		return fmt.Errorf("compress %s: %w", path, err)
	}
	return os.Remove(path)
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

// tidy removes what is more than is kept.
func (r *rotator) tidy() error {
	list, err := r.rotated()
	if err != nil {
		return err
	}
	count := map[string]int{}
	for _, name := range list {
		file, _, _ := cutRotated(name)
		count[file]++
	}
	for _, name := range list {
		file, _, _ := cutRotated(name)
		tooMany := count[file] > r.config.keep
		if !tooMany {
			free, failed := r.space(r.dir)
			if failed != nil || free >= r.config.free {
				err = errors.Join(err, failed)
				continue
			}
		}
		if failed := os.Remove(filepath.Join(r.dir, name)); failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		count[file]--
		r.room.took(r.log, name, tooMany)
	}
	if free, failed := r.space(r.dir); failed == nil {
		r.room.look(r.dir, free, r.config.free)
	}
	return err
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
