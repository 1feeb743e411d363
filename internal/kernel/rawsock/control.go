package rawsock

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// putPktinfo writes the control message that makes an IPv6 packet leave from
// src (:: lets the kernel choose) by the interface. b has CmsgSpace for it.
func putPktinfo(b []byte, src netip.Addr, index int) {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	data := b[unix.CmsgLen(0):]
	addr := src.As16()
	copy(data, addr[:])
	binary.NativeEndian.PutUint32(data[16:], uint32(index))
}
