package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// maxPath is what sockaddr_un holds, less its closing zero (unix(7)).
const maxPath = 107

// ErrInUse: a living process answers on the socket already.
var ErrInUse = errors.New("another agent answers")

// Listen makes the Unix socket at path with the permissions of mode. Its
// directory is made with 0755 when it is missing; one that others may write
// to, that is another user's or a symbolic link is refused, since anyone could
// put a socket of his own there. The socket of a process that died is
// replaced; that of a living one is ErrInUse. Closing the listener removes the
// socket unless another took its place.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("admin: socket path %s: %d bytes, the kernel takes at most %d", path, len(path), maxPath)
	}
	unlock, err := lock(path)
	if err != nil {
		return nil, fmt.Errorf("admin: socket %s: %w", path, err)
	}
	defer unlock()
	if err := clearStale(path); err != nil {
		return nil, fmt.Errorf("admin: socket %s: %w", path, err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin: socket %s: %w", path, err)
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, mode); err != nil {
		listener.Close()
		return nil, fmt.Errorf("admin: socket %s: %w", path, err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("admin: socket %s: %w", path, err)
	}
	return &socket{UnixListener: listener, path: path, info: info}, nil
}

// socket removes its file when it is closed, if the file is still its own.
type socket struct {
	*net.UnixListener
	path string
	info fs.FileInfo
}

func (s *socket) Close() error {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(s.info, now) {
		os.Remove(s.path) // before the close: afterwards the path may be a successor's
	}
	return s.UnixListener.Close()
}

// lock makes the socket's directory where it is missing, checks that only its
// owner may change it, and holds a lock, so that of two agents that start at
// once the second sees the first. The lock is on a file that only the agent's
// user can open: everyone may open the directory, and could hold a lock on it.
func lock(path string) (unlock func(), err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// O_NOFOLLOW: what is checked below is what is used.
	handle, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	if err := checkDirectory(handle); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return func() { file.Close() }, nil
}

func checkDirectory(handle *os.File) error {
	info, err := handle.Stat()
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("directory %s may be written by everyone (mode %04o): choose one that belongs to the agent alone, such as /run/holdfast",
			handle.Name(), info.Mode().Perm())
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if owner != 0 && owner != uint32(os.Geteuid()) {
		return fmt.Errorf("directory %s belongs to uid %d, not to root or to the agent (uid %d)", handle.Name(), owner, os.Geteuid())
	}
	return nil
}

// clearStale removes a socket that nobody listens on any more. Anything else
// at the path is left alone and is an error.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("there is a %s in its place: remove it", describe(info.Mode()))
	}
	conn, err := net.Dial("unix", path) // which never waits; a limit would only count time in which we stood still
	if err == nil {
		conn.Close()
		return fmt.Errorf("%w on %s", ErrInUse, path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("can't tell whether an agent answers there: %w", err)
	}
	return os.Remove(path)
}

func describe(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "directory"
	case mode.IsRegular():
		return "file"
	case mode.Type() == fs.ModeSymlink:
		return "symbolic link"
	default:
		return "special file"
	}
}
