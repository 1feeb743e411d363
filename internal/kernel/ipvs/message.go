package ipvs

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// command is an IPVS_CMD_* of linux/ip_vs.h.
type command uint8

const (
	newService command = 1
	setService command = 2
	delService command = 3
	getService command = 4
	newServer  command = 5
	setServer  command = 6
	delServer  command = 7
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

	svcFamily    = 1
	svcProtocol  = 2
	svcAddr      = 3
	svcPort      = 4
	svcMark      = 5
	svcScheduler = 6
	svcFlags     = 7
	svcTimeout   = 8
	svcNetmask   = 9
	svcEngine    = 11
	svcStats64   = 12

	dstAddr       = 1
	dstPort       = 2
	dstMethod     = 3
	dstWeight     = 4
	dstUpper      = 5
	dstLower      = 6
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

	methodMask = 7 // of the connection flags
)

func family(ipv6 bool) uint16 {
	if ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

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

// serviceAttr tells all of a service but its servers. s must be normal.
func serviceAttr(s Service) *nl.RtAttr {
	a := keyAttr(s.Key)
	a.AddRtAttr(svcScheduler, nl.ZeroTerminated(s.Scheduler))
	if s.Engine != "" {
		a.AddRtAttr(svcEngine, nl.ZeroTerminated(s.Engine))
	}
	flags := s.Flags
	if s.Persistence > 0 {
		flags |= persistent
	}
	both := binary.NativeEndian.AppendUint32(nil, uint32(flags))
	a.AddRtAttr(svcFlags, binary.NativeEndian.AppendUint32(both, uint32(settable|persistent)))
	a.AddRtAttr(svcTimeout, nl.Uint32Attr(uint32(s.Persistence/time.Second)))
	if s.IPv6 {
		a.AddRtAttr(svcNetmask, nl.Uint32Attr(uint32(s.Granularity)))
	} else {
		a.AddRtAttr(svcNetmask, net.CIDRMask(s.Granularity, 32))
	}
	return a
}

func serverAttr(r Server) *nl.RtAttr {
	a := nl.NewRtAttr(attrServer|unix.NLA_F_NESTED, nil)
	a.AddRtAttr(dstAddr, r.Addr.Addr().AsSlice())
	a.AddRtAttr(dstPort, nl.BEUint16Attr(r.Addr.Port()))
	a.AddRtAttr(dstFamily, nl.Uint16Attr(family(r.Addr.Addr().Is6())))
	a.AddRtAttr(dstMethod, nl.Uint32Attr(uint32(r.Method)))
	a.AddRtAttr(dstWeight, nl.Uint32Attr(uint32(r.Weight)))
	a.AddRtAttr(dstUpper, nl.Uint32Attr(r.Upper))
	a.AddRtAttr(dstLower, nl.Uint32Attr(r.Lower))
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

// parseService reads an answer to getService; it has no servers.
func parseService(message []byte) (o Observed, ok bool) {
	var addr, mask []byte
	var port uint16
	known := false
	for kind, value := range attributes(body(message, attrService)) {
		switch kind {
		case svcFamily:
			n := number(value)
			o.IPv6 = n == unix.AF_INET6
			known = o.IPv6 || n == unix.AF_INET
		case svcProtocol:
			o.Protocol = Protocol(number(value))
		case svcAddr:
			addr = value
		case svcPort:
			port = bePort(value)
		case svcMark:
			o.Mark = uint32(number(value))
		case svcScheduler:
			o.Scheduler = unix.ByteSliceToString(value)
		case svcEngine:
			o.Engine = unix.ByteSliceToString(value)
		case svcFlags: // the flags, then a mask
			if len(value) >= 4 {
				o.Flags = Flags(binary.NativeEndian.Uint32(value))
			}
		case svcTimeout:
			o.Persistence = time.Duration(uint32(number(value))) * time.Second
		case svcNetmask:
			mask = value
		case svcStats64:
			o.Stats = parseStats(value)
		}
	}
	if o.Flags&persistent == 0 { // the kernel keeps the number, unused
		o.Persistence = 0
	}
	o.Flags &= settable
	o.Granularity = granularity(mask, o.IPv6)
	if o.Mark != 0 {
		o.Protocol = 0
		return o, known
	}
	a, fits := address(addr, o.IPv6)
	o.Addr = netip.AddrPortFrom(a, port)
	return o, known && fits
}

// granularity reads a netmask (IPv4, of consecutive ones) or a prefix length.
func granularity(mask []byte, ipv6 bool) int {
	if len(mask) != 4 {
		return 0
	}
	if ipv6 {
		return int(min(binary.NativeEndian.Uint32(mask), 128))
	}
	return bits.LeadingZeros32(^binary.BigEndian.Uint32(mask))
}

// parseServer reads an answer to getServer.
func parseServer(message []byte) (r Server, l Load, ok bool) {
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
		case dstMethod:
			r.Method = Method(number(value) & methodMask)
		case dstWeight:
			r.Weight = int(int32(number(value)))
		case dstUpper:
			r.Upper = uint32(number(value))
		case dstLower:
			r.Lower = uint32(number(value))
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
	r.Addr = netip.AddrPortFrom(a, port)
	return r, l, fits && (af == unix.AF_INET || af == unix.AF_INET6)
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
