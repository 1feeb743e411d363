package sockopt

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ReceiveThere receives a datagram that has come to a socket, with its control data,
// also where the deadline of the socket's reads has passed. more: there was one; n and
// control are bytes. It does not block.
func ReceiveThere(conn *net.UnixConn, room, oob []byte) (n, control int, more bool, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, false, err
	}
	var failed error
	// Read would look at the deadline first.
	if err := raw.Control(func(fd uintptr) {
		for failed = unix.EINTR; errors.Is(failed, unix.EINTR); {
			n, control, _, _, failed = unix.Recvmsg(int(fd), room, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		}
	}); err != nil {
		return 0, 0, false, err
	}
	switch {
	case errors.Is(failed, unix.EAGAIN):
		return 0, 0, false, nil
	case failed != nil:
		return 0, 0, false, os.NewSyscallError("recvmsg", failed)
	}
	return n, control, true, nil
}
