package sockopt

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Departures makes the kernel tell when each datagram of a socket arrived, as
// Timestamps does, and when each one left: for a socket that sends rarely.
func Departures(network, address string, conn syscall.RawConn) error {
	return set(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING_NEW,
			unix.SOF_TIMESTAMPING_RX_SOFTWARE|unix.SOF_TIMESTAMPING_TX_SOFTWARE|unix.SOF_TIMESTAMPING_SOFTWARE|unix.SOF_TIMESTAMPING_OPT_TSONLY)
	}, network, address, "SO_TIMESTAMPING")
}

// Departed is when the last datagram that a socket with Departures sent was
// handed to the network, in nanoseconds since 1970 by the kernel's clock. 0:
// it has not left yet, or the kernel's driver does not say. It does not block.
func Departed(conn syscall.RawConn) (ns int64) {
	var oob [receiveControl]byte
	_ = conn.Control(func(fd uintptr) {
		for {
			m := unix.Msghdr{Control: &oob[0]}
			m.SetControllen(len(oob))
			if _, _, errno := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&m)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); errno != 0 {
				return
			}
			if left := Arrived(oob[:m.Controllen]); left != 0 {
				ns = left
			}
		}
	})
	return ns
}
