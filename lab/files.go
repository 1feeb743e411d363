package lab

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Write puts a file on the host, mode 0644, with the directories it needs. A
// file on the disk (below /etc/holdfast, /var/lib/holdfast and
// Options.Persist) can be written while the host is off. Any other is
// remembered and put back at each PowerOn, unless its directory is empty
// after a boot (/run, /tmp, /root, /var/log, /var/tmp, /dev).
func (h *Host) Write(path string, data []byte) error {
	if err := h.write(filepath.Clean(path), data); err != nil {
		return fmt.Errorf("lab: host %s: write %s: %w", h.name, path, err)
	}
	return nil
}

func (h *Host) write(path string, data []byte) error {
	if !filepath.IsAbs(path) {
		return errors.New("the path is not absolute")
	}
	h.power.Lock()
	defer h.power.Unlock()
	onDisk := underAny(path, h.lab.persistent()...)
	volatile := underAny(path, append(privateDirs(), "/dev", "/proc", "/sys")...)
	if !onDisk && !volatile {
		h.mu.Lock()
		h.image[path] = slices.Clone(data)
		h.mu.Unlock()
	}
	s, err := h.running()
	switch {
	case err == nil:
		return s.writeFile(path, data)
	case onDisk:
		return writeIn(h.Disk(), path, data)
	case volatile:
		return err
	}
	return nil // the next boot writes it
}

// Read returns a file of the host; while it is off, only one on its disk. It
// follows links as the host would.
func (h *Host) Read(path string) ([]byte, error) {
	root := h.Disk()
	s, err := h.running()
	if err == nil {
		root = s.root()
	} else if !underAny(filepath.Clean(path), h.lab.persistent()...) {
		return nil, fmt.Errorf("lab: host %s: read %s: %w", h.name, path, err)
	}
	data, err := readIn(root, path)
	if err != nil {
		return nil, fmt.Errorf("lab: host %s: read %s: %w", h.name, path, err)
	}
	return data, nil
}

// restoreImage writes what Write remembered.
func (h *Host) restoreImage(s *session) error {
	h.mu.Lock()
	image := maps.Clone(h.image)
	h.mu.Unlock()
	for path, data := range image {
		if err := s.writeFile(path, data); err != nil {
			return err
		}
	}
	return nil
}

// openIn opens a path as if root were /: an absolute link in the host must not
// lead out into the machine.
func openIn(root, path string, flags int, mode uint32) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(dir, path, how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func readIn(root, path string) ([]byte, error) {
	f, err := openIn(root, path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func writeIn(root, path string, data []byte) error {
	if err := mkdirIn(root, filepath.Dir(path)); err != nil {
		return err
	}
	f, err := openIn(root, path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(0o644), f.Close())
}

// mkdirIn makes a directory and those above it.
func mkdirIn(root, path string) error {
	dir, err := openIn(root, path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		return dir.Close()
	}
	if !errors.Is(err, os.ErrNotExist) || path == "/" {
		return err
	}
	if err := mkdirIn(root, filepath.Dir(path)); err != nil {
		return err
	}
	parent, err := openIn(root, filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	return unix.Mkdirat(int(parent.Fd()), filepath.Base(path), 0o755)
}
