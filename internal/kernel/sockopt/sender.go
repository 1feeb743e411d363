package sockopt

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sender sends datagrams on a socket without ever waiting. A UDP socket's
// buffer holds what waits for the link-layer address of a neighbour: some 250
// small datagrams to one that does not answer fill it for three seconds, and
// whoever waits for room then answers nobody.
//
// A Sender belongs to one goroutine; a socket may have many, but no other
// writers: one that waits makes all wait.
type Sender struct {
	raw   syscall.RawConn
	send  func(fd uintptr) bool // made once: Send does not allocate
	zones map[string]uint32     // indices of interfaces

	message, oob []byte
	to           unix.Sockaddr
	to4          unix.SockaddrInet4
	to6          unix.SockaddrInet6
	err          error
}

// NewSender makes a Sender for an unconnected socket, which stays the
// caller's.
func NewSender(conn *net.UDPConn) (*Sender, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("sockopt: sender: %w", err)
	}
	s := &Sender{raw: raw, zones: map[string]uint32{}}
	s.send = func(fd uintptr) bool {
		for {
			_, s.err = unix.SendmsgN(int(fd), s.message, s.oob, s.to, unix.MSG_DONTWAIT)
			if s.err != unix.EINTR {
				return true
			}
		}
	}
	return s, nil
}

// Send sends a datagram with control messages (see AppendSource). An address
// must be of the socket's family. The error is EAGAIN when the socket has no
// room, else as sendmsg(2) gives it.
func (s *Sender) Send(message, oob []byte, to netip.AddrPort) error {
	if to.Addr().Is4() {
		s.to4.Addr, s.to4.Port = to.Addr().As4(), int(to.Port())
		s.to = &s.to4
	} else {
		index, err := s.zone(to.Addr().Zone())
		if err != nil {
			return err
		}
		s.to6.Addr, s.to6.Port, s.to6.ZoneId = to.Addr().As16(), int(to.Port()), index
		s.to = &s.to6
	}
	s.message, s.oob = message, oob
	if err := s.raw.Write(s.send); err != nil {
		return err
	}
	if s.err != nil {
		delete(s.zones, to.Addr().Zone()) // the interface may be another now
	}
	return s.err
}

// zone is the index of the interface that a link-local address belongs to.
func (s *Sender) zone(name string) (uint32, error) {
	if name == "" {
		return 0, nil
	}
	if index, ok := s.zones[name]; ok {
		return index, nil
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("sockopt: zone of the receiver: %w", err)
	}
	s.zones[name] = uint32(link.Index)
	return s.zones[name], nil
}
