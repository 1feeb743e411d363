package sockopt

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// PacketInfoSize is room enough, in bytes, for the control messages that
// Destination reads and AppendSource writes.
const PacketInfoSize = 64

// Sizes of the kernel's structures: struct in_pktinfo is {int ifindex; in_addr
// spec_dst; in_addr addr}, struct in6_pktinfo {in6_addr addr; int ifindex}.
const (
	sizeofPktinfo4 = 12
	sizeofPktinfo6 = 20
)

// Destination reads from the control messages of a datagram the address that
// it was sent to and the index of the interface it came in on. It is not ok
// when they don't tell (the socket lacks PacketInfo) or are cut short. It does
// not allocate.
func Destination(oob []byte) (addr netip.Addr, ifindex int, ok bool) {
	walk(oob, func(level, kind int32, data []byte) {
		if !ok {
			addr, ifindex, ok = packetInfo(level, kind, data)
		}
	})
	return addr, ifindex, ok
}

// packetInfo reads struct in_pktinfo or in6_pktinfo; not ok when a control
// message is neither.
func packetInfo(level, kind int32, data []byte) (addr netip.Addr, ifindex int, ok bool) {
	switch {
	case level == unix.IPPROTO_IP && kind == unix.IP_PKTINFO && len(data) >= sizeofPktinfo4:
		return netip.AddrFrom4([4]byte(data[8:12])), int(binary.NativeEndian.Uint32(data)), true
	case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= sizeofPktinfo6:
		return netip.AddrFrom16([16]byte(data[:16])).Unmap(), int(binary.NativeEndian.Uint32(data[16:])), true
	}
	return netip.Addr{}, 0, false
}

// walk calls f for each control message; one that is cut short ends it.
func walk(oob []byte, f func(level, kind int32, data []byte)) {
	for len(oob) >= unix.SizeofCmsghdr {
		length, level, kind, ok := header(oob)
		if !ok {
			return
		}
		f(level, kind, oob[unix.CmsgLen(0):length])
		oob = oob[min(len(oob), unix.CmsgSpace(length-unix.CmsgLen(0))):]
	}
}

// header reads a struct cmsghdr: its length counts itself, and never exceeds
// what there is.
func header(oob []byte) (length int, level, kind int32, ok bool) {
	size := uint64(unix.SizeofCmsghdr - 8) // cmsg_len is a size_t, the rest two ints
	var claimed uint64
	if size == 8 {
		claimed = binary.NativeEndian.Uint64(oob)
	} else {
		claimed, size = uint64(binary.NativeEndian.Uint32(oob)), 4
	}
	if claimed < uint64(unix.CmsgLen(0)) || claimed > uint64(len(oob)) {
		return 0, 0, 0, false
	}
	level = int32(binary.NativeEndian.Uint32(oob[size:]))
	kind = int32(binary.NativeEndian.Uint32(oob[size+4:]))
	return int(claimed), level, kind, true
}

// AppendSource appends the control message that makes a datagram leave from
// src. An interface index that is not 0 also makes it leave there, which only
// a link-local source needs. It does not allocate when b has room.
func AppendSource(b []byte, src netip.Addr, ifindex int) []byte {
	if src.Is4() {
		b, data := appendHeader(b, unix.IPPROTO_IP, unix.IP_PKTINFO, sizeofPktinfo4)
		binary.NativeEndian.PutUint32(data, uint32(ifindex))
		a := src.As4()
		copy(data[4:8], a[:]) // spec_dst is what the kernel takes as the source
		return b
	}
	b, data := appendHeader(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, sizeofPktinfo6)
	a := src.As16()
	copy(data[:16], a[:])
	binary.NativeEndian.PutUint32(data[16:], uint32(ifindex))
	return b
}

func appendHeader(b []byte, level, kind int32, size int) (whole, data []byte) {
	start := len(b)
	for range unix.CmsgSpace(size) {
		b = append(b, 0)
	}
	h := b[start:]
	at := unix.SizeofCmsghdr - 8
	if at == 8 {
		binary.NativeEndian.PutUint64(h, uint64(unix.CmsgLen(size)))
	} else {
		at = 4
		binary.NativeEndian.PutUint32(h, uint32(unix.CmsgLen(size)))
	}
	binary.NativeEndian.PutUint32(h[at:], uint32(level))
	binary.NativeEndian.PutUint32(h[at+4:], uint32(kind))
	return b, h[unix.CmsgLen(0):]
}
