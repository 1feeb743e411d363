package sockopt

import (
	"net"

	"golang.org/x/sys/unix"
)

// QuickAck acknowledges at once what the connection has received, and what
// comes next, until the kernel thinks otherwise (TCP_QUICKACK, tcp(7)): for a
// sender that waits for it, as Nagle's algorithm does. A nil conn is ignored.
func QuickAck(conn *net.TCPConn) error {
	if conn == nil {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return set(raw, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
	}, "tcp", conn.LocalAddr().String(), "TCP_QUICKACK")
}
