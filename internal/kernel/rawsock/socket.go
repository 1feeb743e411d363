package rawsock

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// protocol is VRRP's number (RFC 9568 §5.1.1.4).
const protocol = 112

// hops is the TTL or hop limit of all that is sent (RFC 9568 §5.1.1.3, RFC
// 4861 §7.1.2): what comes with less came over a router.
const hops = 255

// Differentiated services CS6, network control (RFC 4594 §3.1), as the whole
// octet; and the kernel's own name for it, TC_PRIO_CONTROL.
const (
	trafficClass = 0xc0
	priority     = 7
)

// Packet is an IP packet of protocol 112 as it came. The kernel puts fragments
// together; what it gives is whole.
type Packet struct {
	Payload  []byte     // without the IP header; into the buffer that Receive was given
	Src, Dst netip.Addr // without zone
	TTL      uint8      // or hop limit
}

// Socket sends and receives protocol 112 on one interface, one family. It
// never blocks. Not safe for concurrent use, but Send is, beside Receive.
type Socket struct {
	file  int
	iface Interface
	ipv6  bool

	to4    unix.SockaddrInet4
	packet []byte // IPv4: header and payload
	to6    unix.SockaddrInet6
	source []byte // IPv6: the control message that names the source
	in     received
	batch  *batch // of Next; nil before its first call
}

// Open opens a socket in the calling thread's network namespace, bound to the
// interface. Multicast that is sent does not come back.
func Open(i Interface, ipv6 bool) (*Socket, error) {
	s := &Socket{iface: i, ipv6: ipv6}
	var err error
	if ipv6 {
		s.file, err = openIPv6(i, protocol)
		s.source = make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	} else {
		s.file, err = openIPv4(i)
		s.packet = make([]byte, 0, 1500)
	}
	if err != nil {
		return nil, fmt.Errorf("rawsock: %s: %w", i.Name, err)
	}
	return s, nil
}

// Join joins a multicast group: 224.0.0.18 or ff02::12 (RFC 9568 §5.1).
func (s *Socket) Join(group netip.Addr) error {
	var err error
	if s.ipv6 {
		err = unix.SetsockoptIPv6Mreq(s.file, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
			&unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(s.iface.Index)})
	} else {
		err = unix.SetsockoptIPMreqn(s.file, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(s.iface.Index)})
	}
	if err != nil && !errors.Is(err, unix.EADDRINUSE) { // it is in the group already
		return fmt.Errorf("rawsock: %s: join %s: %w", s.iface.Name, group, err)
	}
	return nil
}

// Send sends a payload with TTL 255 (RFC 9568 §5.1.1.3) from src, which need
// not be on the machine any more. Both addresses are of the socket's family;
// zones don't matter. It does not allocate unless it fails. EPERM is a
// firewall's word, ENOBUFS that of a full queue of the interface.
func (s *Socket) Send(payload []byte, src, dst netip.Addr) error {
	if src.Is4() == s.ipv6 || dst.Is4() == s.ipv6 {
		return fmt.Errorf("rawsock: %s: send from %s to %s: not both of the socket's family", s.iface.Name, src, dst)
	}
	var err error
	if s.ipv6 {
		err = s.send6(payload, src, dst)
	} else {
		err = s.send4(payload, src, dst)
	}
	if err != nil {
		return fmt.Errorf("rawsock: %s: send from %s to %s: %w", s.iface.Name, src, dst, err)
	}
	return nil
}

func (s *Socket) send4(payload []byte, src, dst netip.Addr) error {
	s.packet = append(appendIPv4(s.packet[:0], len(payload), src, dst), payload...)
	s.to4.Addr = dst.As4()
	for {
		if err := unix.Sendto(s.file, s.packet, 0, &s.to4); err != unix.EINTR {
			return err
		}
	}
}

func (s *Socket) send6(payload []byte, src, dst netip.Addr) error {
	putPktinfo(s.source, src, s.iface.Index)
	s.to6.Addr = dst.As16()
	s.to6.ZoneId = uint32(s.iface.Index)
	for {
		if _, err := unix.SendmsgN(s.file, payload, s.source, &s.to6, 0); err != unix.EINTR {
			return err
		}
	}
}

// Receive takes the oldest packet of the queue; ErrEmpty when there is none.
// What does not fit into buf is dropped. It does not allocate.
func (s *Socket) Receive(buf []byte) (Packet, error) {
	for {
		var p Packet
		var err error
		ok := false
		if s.ipv6 {
			p, ok, err = s.in.receive(s.file, buf)
		} else {
			var n int
			if n, err = unix.Read(s.file, buf); err == nil {
				p, ok = parseIPv4(buf[:n])
			}
		}
		switch {
		case err == unix.EAGAIN:
			return Packet{}, ErrEmpty
		case err == unix.EINTR || err == nil && !ok:
		case err != nil:
			return Packet{}, fmt.Errorf("rawsock: %s: receive: %w", s.iface.Name, err)
		default:
			return p, nil
		}
	}
}

// Next takes the oldest packet of the queue; ErrEmpty when there was none at
// the last look, after which the next call looks again. It takes many packets
// from the kernel at once; its Payload is good until the next call. What is
// longer than batchPacket is dropped. It does not allocate, but for the first
// call, and must not be mixed with Receive.
func (s *Socket) Next() (Packet, error) {
	if s.batch == nil {
		s.batch = newBatch(s.ipv6)
	}
	p, err := s.batch.next(s.file)
	if err != nil && err != ErrEmpty {
		return Packet{}, fmt.Errorf("rawsock: %s: receive: %w", s.iface.Name, err)
	}
	return p, err
}

// Close closes it. A Poller must have forgotten it before.
func (s *Socket) Close() error {
	err := unix.Close(s.file)
	s.file = -1
	return err
}

func (s *Socket) files() (int, int) { return s.file, -1 }

// received is what recvmsg(2) fills, kept so that receiving does not allocate.
type received struct {
	header unix.Msghdr
	vector unix.Iovec
	from   unix.RawSockaddrInet6
	oob    [128]byte
}

// receive takes a packet of an IPv6 socket: the header is not there; the kernel
// tells beside it what stood in it.
func (r *received) receive(fd int, buf []byte) (Packet, bool, error) {
	if len(buf) == 0 {
		return Packet{}, false, unix.EINVAL
	}
	r.vector.Base = &buf[0]
	r.vector.SetLen(len(buf))
	r.header = unix.Msghdr{
		Name: (*byte)(unsafe.Pointer(&r.from)), Namelen: unix.SizeofSockaddrInet6,
		Iov: &r.vector, Control: &r.oob[0],
	}
	r.header.SetIovlen(1)
	r.header.SetControllen(len(r.oob))
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.header)), unix.MSG_DONTWAIT)
	r.vector.Base = nil // buf is the caller's
	if errno != 0 {
		return Packet{}, false, errno
	}
	if r.header.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return Packet{}, false, nil
	}
	p := Packet{Payload: buf[:n], Src: netip.AddrFrom16(r.from.Addr)}
	ok := p.parseControl(r.oob[:r.header.Controllen])
	return p, ok, nil
}
