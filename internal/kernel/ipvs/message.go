package ipvs

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// command is an IPVS_CMD_* of linux/ip_vs.h.
type command uint8

const (
	getService command = 4
	getServer  command = 8
	newDaemon  command = 9
	delDaemon  command = 10
	getDaemon  command = 11
)

const (
	familyName    = "IPVS"
	familyVersion = 1
)

// The attributes, IPVS_*_ATTR_* of linux/ip_vs.h.
const (
	attrService = 1
	attrServer  = 2
	attrDaemon  = 3

	svcFamily   = 1
	svcProtocol = 2
	svcAddr     = 3
	svcPort     = 4
	svcMark     = 5
	svcStats64  = 12

	dstAddr       = 1
	dstPort       = 2
	dstActive     = 7
	dstInactive   = 8
	dstPersistent = 9
	dstFamily     = 11
	dstStats64    = 12

	daemonState     = 1
	daemonInterface = 2
	daemonSyncID    = 3

	statConnections = 1
	statPacketsIn   = 2
	statPacketsOut  = 3
	statBytesIn     = 4
	statBytesOut    = 5
)

// keyAttr names a service.
func keyAttr(k Key) *nl.RtAttr {
	a := nl.NewRtAttr(attrService|unix.NLA_F_NESTED, nil)
	a.AddRtAttr(svcFamily, nl.Uint16Attr(family(k.IPv6)))
	if k.Mark != 0 {
		a.AddRtAttr(svcMark, nl.Uint32Attr(k.Mark))
		return a
	}
	a.AddRtAttr(svcProtocol, nl.Uint16Attr(uint16(k.Protocol)))
	a.AddRtAttr(svcAddr, k.Addr.Addr().AsSlice())
	a.AddRtAttr(svcPort, nl.BEUint16Attr(k.Addr.Port()))
	return a
}

func daemonAttr(d Daemon) *nl.RtAttr {
	a := nl.NewRtAttr(attrDaemon|unix.NLA_F_NESTED, nil)
	a.AddRtAttr(daemonState, nl.Uint32Attr(uint32(d.Role)))
	a.AddRtAttr(daemonInterface, nl.ZeroTerminated(d.Interface))
	a.AddRtAttr(daemonSyncID, nl.Uint32Attr(uint32(d.SyncID)))
	return a
}

// body is what stands in the attribute of a kind behind the generic header.
func body(message []byte, kind uint16) []byte {
	if len(message) < nl.SizeofGenlmsg {
		return nil
	}
	for k, v := range attributes(message[nl.SizeofGenlmsg:]) {
		if k == kind {
			return v
		}
	}
	return nil
}

// parseServiceStats reads the counters of an answer to getService.
func parseServiceStats(message []byte) (s Stats) {
	for kind, value := range attributes(body(message, attrService)) {
		if kind == svcStats64 {
			s = parseStats(value)
		}
	}
	return s
}

// parseLoad reads an answer to getServer: who it is about, and its load.
func parseLoad(message []byte) (who netip.AddrPort, l Load, ok bool) {
	var addr []byte
	var port uint16
	var af uint64
	for kind, value := range attributes(body(message, attrServer)) {
		switch kind {
		case dstAddr:
			addr = value
		case dstPort:
			port = bePort(value)
		case dstFamily:
			af = number(value)
		case dstActive:
			l.Active = uint32(number(value))
		case dstInactive:
			l.Inactive = uint32(number(value))
		case dstPersistent:
			l.Persistent = uint32(number(value))
		case dstStats64:
			l.Stats = parseStats(value)
		}
	}
	a, fits := address(addr, af == unix.AF_INET6)
	return netip.AddrPortFrom(a, port), l, fits && (af == unix.AF_INET || af == unix.AF_INET6)
}

func parseStats(b []byte) (s Stats) {
	for kind, value := range attributes(b) {
		switch kind {
		case statConnections:
			s.Connections = number(value)
		case statPacketsIn:
			s.PacketsIn = number(value)
		case statPacketsOut:
			s.PacketsOut = number(value)
		case statBytesIn:
			s.BytesIn = number(value)
		case statBytesOut:
			s.BytesOut = number(value)
		}
	}
	return s
}

// parseDaemon reads an answer to getDaemon.
func parseDaemon(message []byte) (d Daemon, ok bool) {
	for kind, value := range attributes(body(message, attrDaemon)) {
		switch kind {
		case daemonState:
			d.Role = Role(number(value))
		case daemonInterface:
			d.Interface = unix.ByteSliceToString(value)
		case daemonSyncID:
			d.SyncID = uint8(number(value))
		}
	}
	return d, d.Role == Master || d.Role == Backup
}

// parseFamily reads the number of a generic netlink family.
func parseFamily(message []byte) (id uint16, ok bool) {
	n := number(body(message, nl.GENL_CTRL_ATTR_FAMILY_ID))
	return uint16(n), n != 0 && n <= 0xffff
}

// address reads an address: the kernel pads IPv4's with zeros to 16 bytes.
func address(b []byte, ipv6 bool) (netip.Addr, bool) {
	size := 4
	if ipv6 {
		size = 16
	}
	if len(b) < size {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(b[:size])
}

func bePort(b []byte) uint16 {
	if len(b) != 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

// number reads an attribute of 1, 2, 4 or 8 bytes; others are 0.
func number(b []byte) uint64 {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(b))
	case 4:
		return uint64(binary.NativeEndian.Uint32(b))
	case 8:
		return binary.NativeEndian.Uint64(b)
	}
	return 0
}

// attributes walks netlink attributes and ends at the first that is cut short.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofNlAttr || size > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
		}
	}
}
