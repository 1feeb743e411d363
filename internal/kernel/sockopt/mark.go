package sockopt

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// Mark gives what a socket sends a firewall mark (SO_MARK, socket(7)). It needs
// CAP_NET_ADMIN.
func Mark(mark uint32) Control {
	return func(network, address string, conn syscall.RawConn) error {
		return set(conn, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))
		}, network, address, "SO_MARK")
	}
}
