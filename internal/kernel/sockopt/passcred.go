package sockopt

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// PassCredentials has a Unix datagram socket say of each datagram which process
// sent it (SO_PASSCRED, unix(7)).
func PassCredentials(network, address string, conn syscall.RawConn) error {
	return set(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}, network, address, "SO_PASSCRED")
}

// CredentialsRoom is how many bytes the control message that SenderCredentials reads has.
func CredentialsRoom() int { return unix.CmsgSpace(unix.SizeofUcred) }

// SenderCredentials reads who sent a datagram from what came beside it; false:
// that is not there. The kernel vouches for it: a process that is not root can
// write none but its own. Groups are not told.
func SenderCredentials(oob []byte) (Credentials, bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return Credentials{}, false
	}
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			return Credentials{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, true
		}
	}
	return Credentials{}, false
}
