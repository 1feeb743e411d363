package sockopt

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// ReceiveBuffer asks for room for so many bytes that were received and not
// read: with CAP_NET_ADMIN for all of it (SO_RCVBUFFORCE, socket(7)), else for
// what net.core.rmem_max lets it have.
func ReceiveBuffer(bytes int) Control {
	return func(network, address string, conn syscall.RawConn) error {
		return set(conn, func(fd int) error {
			if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes) == nil {
				return nil
			}
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
		}, network, address, "SO_RCVBUF")
	}
}
