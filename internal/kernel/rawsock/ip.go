package rawsock

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

const ipv4Header = 20 // bytes, without options

// openIPv4 opens a socket of protocol 112. IP_HDRINCL lets the sender write the
// IP header: then the kernel takes any source, one also that is not here.
func openIPv4(i Interface) (int, error) {
	fd, err := openSocket(unix.AF_INET, unix.SOCK_RAW, protocol, i.Index,
		option{unix.IPPROTO_IP, unix.IP_HDRINCL, 1, "IP_HDRINCL"},
		option{unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0, "IP_MULTICAST_LOOP"},
		option{unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0, "IP_MULTICAST_ALL"}, // only what this socket joined
		option{unix.SOL_SOCKET, unix.SO_PRIORITY, priority, "SO_PRIORITY"})
	if err != nil {
		return -1, err
	}
	mreq := unix.IPMreqn{Ifindex: int32(i.Index)}
	if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &mreq); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// openIPv6 opens a socket of VRRP or ICMPv6. IPV6_FREEBIND lets it send from an
// address that is not here. No filter is attached to the one of VRRP: the
// kernel would check the sum first, and drop unseen what has a wrong one.
func openIPv6(i Interface, protocol int) (int, error) {
	options := []option{
		{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1, "IPV6_RECVHOPLIMIT"},
		{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops, "IPV6_UNICAST_HOPS"},
		{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, hops, "IPV6_MULTICAST_HOPS"},
		{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0, "IPV6_MULTICAST_LOOP"},
		{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, i.Index, "IPV6_MULTICAST_IF"},
		{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, trafficClass, "IPV6_TCLASS"},
		{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1, "IPV6_FREEBIND"},
		{unix.SOL_SOCKET, unix.SO_PRIORITY, priority, "SO_PRIORITY"},
	}
	if protocol != unix.IPPROTO_ICMPV6 {
		options = append(options,
			option{unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, -1, "IPV6_CHECKSUM"}, // the sender's, also where it is wrong
			option{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0, "IPV6_MULTICAST_ALL"})
	}
	return openSocket(unix.AF_INET6, unix.SOCK_RAW, protocol, i.Index, options...)
}

// appendIPv4 appends an IPv4 header (RFC 791 §3.1). The kernel fills in the
// identification and the sum.
func appendIPv4(b []byte, payload int, src, dst netip.Addr) []byte {
	from, to := src.As4(), dst.As4()
	b = append(b, 0x45, trafficClass)
	b = binary.BigEndian.AppendUint16(b, uint16(ipv4Header+payload))
	b = append(b, 0, 0, 0, 0, hops, protocol, 0, 0)
	b = append(b, from[:]...)
	return append(b, to[:]...)
}

// parseIPv4 reads an IPv4 packet. It is not ok when it is cut short, or a
// fragment. What follows it (the padding of a short frame) is cut off.
func parseIPv4(b []byte) (p Packet, ok bool) {
	if len(b) < ipv4Header || b[0]>>4 != 4 {
		return Packet{}, false
	}
	header, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < ipv4Header || total < header || total > len(b) {
		return Packet{}, false
	}
	if fragment := binary.BigEndian.Uint16(b[6:]) & 0x3fff; fragment != 0 {
		return Packet{}, false
	}
	return Packet{
		Payload: b[header:total],
		Src:     netip.AddrFrom4([4]byte(b[12:])),
		Dst:     netip.AddrFrom4([4]byte(b[16:])),
		TTL:     b[8],
	}, true
}

// parseControl takes destination and hop limit from the control messages of an
// IPv6 packet (RFC 3542 §6). It is not ok when one of them is missing.
func (p *Packet) parseControl(oob []byte) bool {
	limited := false
	for len(oob) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return false
		}
		switch {
		case header.Level != unix.IPPROTO_IPV6:
		case header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			p.Dst = netip.AddrFrom16([16]byte(data))
		case header.Type == unix.IPV6_HOPLIMIT && len(data) >= 4:
			p.TTL, limited = uint8(binary.NativeEndian.Uint32(data)), true
		}
		oob = rest
	}
	return limited && p.Dst.IsValid()
}
