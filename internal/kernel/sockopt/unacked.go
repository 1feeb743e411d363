package sockopt

import (
	"net"

	"golang.org/x/sys/unix"
)

// Unacked is how many bytes written to the connection the other end's kernel
// has not acknowledged (SIOCOUTQ, tcp(7)).
func Unacked(conn *net.TCPConn) (n int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = set(raw, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCOUTQ)
		return err
	}, "tcp", conn.LocalAddr().String(), "SIOCOUTQ")
	return n, err
}
