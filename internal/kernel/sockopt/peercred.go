// Package sockopt sets and reads the socket options that the net package does
// not know.
package sockopt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Credentials are those of the process at the other end of a Unix stream
// socket, as they were when it connected (SO_PEERCRED, unix(7)). The kernel
// vouches for them; the process can't choose them.
type Credentials struct {
	PID    int // 0 when the process lives in a PID namespace we can't see
	UID    uint32
	GID    uint32   // the primary group
	Groups []uint32 // the supplementary groups (SO_PEERGROUPS, Linux 4.13)
}

// InGroup tells whether the process has gid as its primary or as one of its
// supplementary groups.
func (c Credentials) InGroup(gid uint32) bool {
	return c.GID == gid || slices.Contains(c.Groups, gid)
}

// PeerCredentials asks the kernel who is at the other end of a connected Unix
// stream socket. It does not block.
func PeerCredentials(conn *net.UnixConn) (Credentials, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Credentials{}, fmt.Errorf("sockopt: peer credentials: %w", err)
	}
	var found Credentials
	var failed error
	err = raw.Control(func(fd uintptr) { found, failed = peerCredentials(int(fd)) })
	if err := errors.Join(err, failed); err != nil {
		return Credentials{}, fmt.Errorf("sockopt: peer credentials: %w", err)
	}
	return found, nil
}

func peerCredentials(fd int) (Credentials, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Credentials{}, fmt.Errorf("getsockopt SO_PEERCRED: %w", err)
	}
	groups, err := peerGroups(fd)
	if err != nil {
		return Credentials{}, fmt.Errorf("getsockopt SO_PEERGROUPS: %w", err)
	}
	return Credentials{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid, Groups: groups}, nil
}

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// peerGroups reads SO_PEERGROUPS: an array of gid_t whose size the kernel
// corrects in place, with ERANGE when the buffer was too small.
func peerGroups(fd int) ([]uint32, error) {
	const width = 4
	buffer := make([]byte, 32*width)
	for {
		size := uint32(len(buffer))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buffer[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && size > uint32(len(buffer)) && size <= maxGroups*width:
			buffer = make([]byte, size)
		case errno == unix.ENOPROTOOPT: // a kernel before 4.13
			return nil, nil
		case errno != 0:
			return nil, errno
		default:
			groups := make([]uint32, 0, size/width)
			for at := 0; at+width <= int(size); at += width {
				groups = append(groups, binary.NativeEndian.Uint32(buffer[at:]))
			}
			return groups, nil
		}
	}
}
