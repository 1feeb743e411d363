package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// BaseURL is the scheme and host of every request through Client: the socket
// decides where it goes, the host says nothing.
const BaseURL = "http://localhost"

// Client asks the unit that answers on the socket at path. Its requests have
// the time limit of their context alone. When nobody answers, the error says
// so and what to do about it.
func Client(path string) *http.Client {
	// Without a time limit: connecting to a Unix socket never waits (EAGAIN when
	// the listener's queue is full), and one that a process stood still for would
	// be an error though it is connected.
	dialer := new(net.Dialer)
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, "unix", path)
			if err != nil {
				return nil, explain(path, err)
			}
			return conn, nil
		},
		MaxIdleConns:       2,
		IdleConnTimeout:    30 * time.Second,
		DisableCompression: true,
	}}
}

// explain turns an errno into what an admin can do about it.
func explain(path string, err error) error {
	cause := err
	var errno syscall.Errno
	if errors.As(err, &errno) {
		cause = errno
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("ask as root or as a member of holdfast's admin group (socket %s: %w)", path, cause)
	case errors.Is(err, fs.ErrNotExist) && coreBeside(path):
		return fmt.Errorf("the agent runs, but not this part of it: is it in run: of this node's role? (socket %s: %w)", path, cause)
	case errors.Is(err, fs.ErrNotExist) && netAlone(path):
		return fmt.Errorf("the net unit runs here alone (holdfast agent --only net): holdfast vip and holdfast lb ask it, --server asks a whole agent (socket %s: %w)", path, cause)
	default:
		return fmt.Errorf("is holdfast running? (socket %s: %w)", path, cause)
	}
}

// netAlone tells whether path is the agent's own socket, and only its net unit
// listens there.
func netAlone(path string) bool {
	if filepath.Base(path) != "core.sock" {
		return false
	}
	conn, err := net.Dial("unix", filepath.Join(filepath.Dir(path), "net.sock"))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// coreBeside tells whether the agent's own socket stands beside that of one of
// its parts.
func coreBeside(path string) bool {
	core := filepath.Join(filepath.Dir(path), "core.sock")
	if path == core {
		return false
	}
	_, err := os.Lstat(core)
	return err == nil
}
