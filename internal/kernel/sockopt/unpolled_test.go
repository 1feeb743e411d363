package sockopt_test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"holdfast/internal/kernel/sockopt"
)

// polled counts how often an inode is watched by an epoll of this process, which
// is how Go's poller waits.
func polled(t *testing.T, inode uint64) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil || len(files) == 0 {
		t.Fatal("no /proc/self/fdinfo", err)
	}
	for _, path := range files {
		file, err := os.Open(path)
		if err != nil {
			continue // closed meanwhile
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			_, after, ok := strings.Cut(lines.Text(), " ino:")
			if !ok || !strings.HasPrefix(lines.Text(), "tfd:") {
				continue
			}
			text, _, _ := strings.Cut(after, " ")
			if watched, err := strconv.ParseUint(text, 16, 64); err == nil && watched == inode {
				n++
			}
		}
		_ = file.Close()
	}
	return n
}

// inode is the number by which epoll's state in /proc names a socket.
func inode(t *testing.T, conn syscall.Conn) uint64 {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var stat syscall.Stat_t
	if err := raw.Control(func(fd uintptr) { err = syscall.Fstat(int(fd), &stat) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

// If the poller knew of the socket, each buffer that the kernel frees while it
// sends, and each time of leaving, would wake the thread that waits in epoll, in
// the middle of sending. Clients saw that as an offset of 15 µs.
func TestStampedSocketIsUnknownToGosPoller(t *testing.T) {
	conn, err := listen(t, "udp4", "127.0.0.1:0", sockopt.PacketInfo, sockopt.Timestamps)
	if err != nil {
		t.Fatal(err)
	}
	number := inode(t, conn)
	if n := polled(t, number); n != 1 {
		t.Fatalf("a socket of net is watched %d times: this test does not see what it should", n)
	}
	b, err := sockopt.NewStamped(conn, 4, 100, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if n := polled(t, number); n != 0 {
		t.Errorf("the socket is watched by Go's poller, %d times", n)
	}
	fd := descriptor(t, number)
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFL, 0)
	if errno != 0 || flags&syscall.O_NONBLOCK != 0 {
		t.Errorf("the socket does not block: flags %#x, %v", flags, errno)
	}
}

// descriptor is a socket's, by its inode.
func descriptor(t *testing.T, inode uint64) int {
	t.Helper()
	files, _ := filepath.Glob("/proc/self/fd/*")
	for _, path := range files {
		if to, err := os.Readlink(path); err == nil && to == fmt.Sprintf("socket:[%d]", inode) {
			n, err := strconv.Atoi(filepath.Base(path))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("the socket %d has no descriptor", inode)
	return 0
}
