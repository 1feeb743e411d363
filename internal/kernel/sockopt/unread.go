package sockopt

import (
	"net"

	"golang.org/x/sys/unix"
)

// Unread is how many bytes the kernel has received on the connection that nobody
// has read (SIOCINQ, tcp(7)).
func Unread(conn *net.TCPConn) (n int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = set(raw, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	}, "tcp", conn.LocalAddr().String(), "SIOCINQ")
	return n, err
}
