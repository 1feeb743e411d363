// Package sockopt sets the socket options that net lacks: several sockets on
// one port, addresses that are not there yet, and the address that a datagram
// was sent to.
package sockopt

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Control is the type of net.ListenConfig.Control: it is called with the
// network ("udp4", "tcp6" ...) and the raw socket before bind.
type Control func(network, address string, conn syscall.RawConn) error

// Chain calls controls in turn and stops at the first that fails.
func Chain(controls ...Control) Control {
	return func(network, address string, conn syscall.RawConn) error {
		for _, c := range controls {
			if err := c(network, address, conn); err != nil {
				return err
			}
		}
		return nil
	}
}

// ReusePort lets several sockets of one user listen on the same address and
// port; the kernel spreads what arrives over them (SO_REUSEPORT, socket(7)).
func ReusePort(network, address string, conn syscall.RawConn) error {
	return set(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}, network, address, "SO_REUSEPORT")
}

// FreeBind lets a socket bind an address that the machine does not hold, or
// not yet: a virtual address that another node is Active for (IP_FREEBIND,
// ip(7); IPV6_FREEBIND for networks that end in 6).
func FreeBind(network, address string, conn syscall.RawConn) error {
	if isIPv6(network) {
		return set(conn, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
		}, network, address, "IPV6_FREEBIND")
	}
	return set(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
	}, network, address, "IP_FREEBIND")
}

// PacketInfo makes the kernel tell, beside each datagram, the address that it
// was sent to, for Destination to read (IP_PKTINFO, ip(7); IPV6_RECVPKTINFO,
// RFC 3542 §6.1). The network must name its family: "udp4" or "udp6".
func PacketInfo(network, address string, conn syscall.RawConn) error {
	if isIPv6(network) {
		return set(conn, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}, network, address, "IPV6_RECVPKTINFO")
	}
	return set(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}, network, address, "IP_PKTINFO")
}

func isIPv6(network string) bool { return strings.HasSuffix(network, "6") }

func set(conn syscall.RawConn, option func(fd int) error, network, address, name string) error {
	var failed error
	if err := conn.Control(func(fd uintptr) { failed = option(int(fd)) }); err != nil {
		failed = err
	}
	if failed != nil {
		return fmt.Errorf("sockopt: set %s on %s %s: %w", name, network, address, failed)
	}
	return nil
}
