// Package rawsock sends and receives what VRRP needs below UDP: IP protocol
// 112 over IPv4 and IPv6, ARP, and IPv6 neighbour discovery; and waits for all
// of it on one thread. It needs CAP_NET_RAW. Nothing of it ever blocks but
// Poller.Wait.
package rawsock

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// ErrEmpty: nothing is queued.
var ErrEmpty = errors.New("nothing to receive")

// Interface says where a socket belongs. The socket stays with the very
// interface: when that is deleted, it hears nothing any more and Send fails,
// also when another of the same name comes; then open a new one.
type Interface struct {
	Index     int
	Name      string           // for errors
	MAC       net.HardwareAddr // InfiniBand: 20 bytes; when it changes, open the Neighbors anew
	Broadcast net.HardwareAddr // InfiniBand: that of the link; Ethernet: nil will do
}

// receiveBuffer is room for some thousand packets that wait for a thread that
// the scheduler keeps away, in bytes.
const receiveBuffer = 1 << 20

// option is a socket option that takes a number.
type option struct {
	level, name, value int
	text               string
}

// openSocket opens a socket of the calling thread's network namespace, without
// blocking, bound to an interface where device is not 0, with options.
func openSocket(family, kind, protocol, device int, options ...option) (int, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if errors.Is(err, unix.EPERM) {
		return -1, fmt.Errorf("open a raw socket: %w; CAP_NET_RAW is needed", err)
	}
	if err != nil {
		return -1, fmt.Errorf("open a raw socket: %w", err)
	}
	// By index: a name may be another's by now.
	if device != 0 {
		options = append(options, option{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, device, "SO_BINDTOIFINDEX"})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return -1, errors.Join(fmt.Errorf("set %s to %d: %w", o.text, o.value, err), unix.Close(fd))
		}
	}
	// Without CAP_NET_ADMIN, up to net.core.rmem_max.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	return fd, nil
}
