package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	dirPattern = "holdfast-lab-*"
	lockName   = "lock" // flock'd as long as the lab lives
)

// labDir is the one thing of a lab that a SIGKILL leaves behind, on the
// machine's disk. Its owner holds a lock on a file in it; the next lab removes
// directories that nobody holds.
type labDir struct {
	path string
	lock *os.File
	keep bool
}

func makeLabDir(parent string) (*labDir, error) {
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, err
	}
	// Under the parent's lock no directory is seen between its making and its
	// own lock.
	guard, err := os.Open(parent)
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	if err := unix.Flock(int(guard.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", parent, err)
	}
	if err := removeDead(parent); err != nil {
		return nil, err
	}
	path, err := os.MkdirTemp(parent, dirPattern)
	if err != nil {
		return nil, err
	}
	// Hosts have users other than root.
	if err := os.Chmod(path, 0o755); err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(path))
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Close(), os.RemoveAll(path))
	}
	return &labDir{path: path, lock: lock}, nil
}

// removeDead removes the directories of labs whose process is gone. One that
// was kept on purpose has no lock file.
func removeDead(parent string) error {
	dirs, err := filepath.Glob(filepath.Join(parent, dirPattern))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if !ours(dir) {
			continue
		}
		lock, err := os.Open(filepath.Join(dir, lockName))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look for labs that died: %w", err)
		}
		abandoned, err := takeOver(lock)
		if err == nil && abandoned {
			if err = unmountBelow(dir); err == nil {
				err = os.RemoveAll(dir)
			}
		}
		if err := errors.Join(err, lock.Close()); err != nil {
			return fmt.Errorf("remove a lab that died: %w", err)
		}
	}
	return nil
}

// takeOver locks a lab's lock file, which was opened by its path, and tells whether
// nobody has that lab. An owner that ends it after that opening gives the lock up,
// too, but has removed the file before: with the lab, or alone, and the lab is kept.
func takeOver(lock *os.File) (abandoned bool, err error) {
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false, nil // it lives
	}
	locked, err := lock.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Stat(lock.Name())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(locked, there), nil
}

// unmountBelow takes away what a test mounted in a lab that died, such as a file
// system for a host's disk: it could not be removed, or would wait for one that is
// frozen.
func unmountBelow(dir string) error {
	dir, err := filepath.EvalSymlinks(dir) // as the kernel names it
	if err != nil {
		return err
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	lines := strings.Split(string(text), "\n")
	for _, line := range slices.Backward(lines) { // what was mounted last is on top
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir+"/") { // proc(5): the mount point
			continue
		}
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", fields[4], err))
		}
	}
	return errors.Join(errs...)
}

// ours says whether a directory was made by this user: in /tmp anybody may
// make one of that name, with anything in it.
func ours(dir string) bool {
	var info unix.Stat_t
	err := unix.Lstat(dir, &info)
	return err == nil && info.Mode&unix.S_IFMT == unix.S_IFDIR && int(info.Uid) == os.Geteuid()
}

func (d *labDir) close() error {
	remove := os.RemoveAll
	if d.keep {
		remove = func(path string) error { return os.Remove(filepath.Join(path, lockName)) }
	}
	return errors.Join(remove(d.path), d.lock.Close())
}

// tail returns the last lines of a file.
func tail(path string, lines int) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	data = bytes.TrimRight(data, "\n")
	for i := len(data) - 1; i >= 0; i-- {
		if data[i] != '\n' {
			continue
		}
		if lines--; lines == 0 {
			return string(data[i+1:]), nil
		}
	}
	return string(data), nil
}
