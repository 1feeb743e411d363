package link

import (
	"encoding/binary"
	"iter"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ifaProto is the attribute IFA_PROTO of linux/if_addr.h, and kernelLoopback
// the mark that the kernel itself gives to the addresses of lo.
const (
	ifaProto       = 11
	kernelLoopback = 1
)

// forever is the lifetime of an address that does not expire, in seconds.
const forever = 0xffffffff

// addRequest asks for an address. Only one of its kind may be there (NLM_F_EXCL).
func addRequest(a Addr) *nl.NetlinkRequest {
	req := addrRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a)
	req.AddData(nl.NewRtAttr(ifaProto, []byte{Protocol}))
	if a.Prefix.Addr().Is4() {
		return req
	}
	req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD)))
	if a.Prefix.IsSingleIP() {
		// Deprecated (RFC 4862 §5.5.4): who asks for it gets it, but the
		// kernel takes another as the source of what this node itself says:
		// the address may be elsewhere before the answer comes.
		lifetime := nl.IfaCacheInfo{IfaCacheinfo: unix.IfaCacheinfo{Prefered: 0, Valid: forever}}
		req.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, lifetime.Serialize()))
	}
	return req
}

// lendRequest asks for an address that expires, or for another expiry.
func lendRequest(a Addr, lifetime time.Duration) *nl.NetlinkRequest {
	req := addrRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a)
	req.AddData(nl.NewRtAttr(ifaProto, []byte{Protocol}))
	seconds := uint32((lifetime + time.Second - 1) / time.Second)
	times := nl.IfaCacheInfo{IfaCacheinfo: unix.IfaCacheinfo{Prefered: seconds, Valid: seconds}}
	if a.Prefix.Addr().Is6() {
		req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD)))
		if a.Prefix.IsSingleIP() {
			times.Prefered = 0 // as addRequest
		}
	}
	req.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, times.Serialize()))
	return req
}

func removeRequest(a Addr) *nl.NetlinkRequest { return addrRequest(unix.RTM_DELADDR, 0, a) }

func addrRequest(kind, flags int, a Addr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	msg := nl.NewIfAddrmsg(family(a.Prefix.Addr()))
	msg.Index = uint32(a.Link)
	msg.Prefixlen = uint8(a.Prefix.Bits())
	req.AddData(msg)
	addr := a.Prefix.Addr().AsSlice()
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, addr))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, addr))
	return req
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// parseLink reads a struct ifinfomsg and its attributes. It is not ok for what
// is no interface, or a bridge's view of one: a port that leaves its bridge is
// told like an interface that is deleted, but of the family AF_BRIDGE.
func parseLink(b []byte) (l Link, ok bool) {
	if len(b) < unix.SizeofIfInfomsg || b[0] != unix.AF_UNSPEC {
		return Link{}, false
	}
	switch binary.NativeEndian.Uint16(b[2:]) {
	case unix.ARPHRD_ETHER:
		l.Kind = Ethernet
	case unix.ARPHRD_INFINIBAND:
		l.Kind = InfiniBand
	case unix.ARPHRD_LOOPBACK:
		l.Kind = Loopback
	}
	l.Index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	flags := binary.NativeEndian.Uint32(b[8:])
	l.Up = flags&unix.IFF_UP != 0
	l.Running = l.Up && flags&unix.IFF_RUNNING != 0
	for kind, value := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(value)
		case unix.IFLA_ADDRESS:
			l.MAC = net.HardwareAddr(append([]byte(nil), value...))
		case unix.IFLA_BROADCAST:
			l.Broadcast = net.HardwareAddr(append([]byte(nil), value...))
		case unix.IFLA_MTU:
			l.MTU = int(number(value))
		case unix.IFLA_MASTER:
			l.Master = int(number(value))
		case unix.IFLA_LINKINFO:
			l.Snooping = snooping(value)
		}
	}
	return l, l.Index > 0
}

// snooping looks into what only a bridge has.
func snooping(info []byte) bool {
	bridge := false
	for kind, value := range attributes(info) {
		switch {
		case kind == unix.IFLA_INFO_KIND:
			bridge = unix.ByteSliceToString(value) == "bridge"
		case kind == unix.IFLA_INFO_DATA && bridge:
			for kind, value := range attributes(value) {
				if kind == nl.IFLA_BR_MCAST_SNOOPING {
					return len(value) == 1 && value[0] != 0
				}
			}
		}
	}
	return false
}

// parseAddr reads a struct ifaddrmsg and its attributes.
func parseAddr(b []byte) (a Addr, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg || b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return Addr{}, false
	}
	bits, flags := int(b[1]), uint32(b[2])
	a.Link = int(int32(binary.NativeEndian.Uint32(b[4:])))
	// IFA_LOCAL is ours; IFA_ADDRESS is the peer's on a point-to-point link,
	// else the same, and all that IPv6 has.
	var local, address netip.Addr
	for kind, value := range attributes(b[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(value)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(value)
		case unix.IFA_FLAGS: // all 32 bits, of which the header has 8
			flags = number(value)
		case ifaProto:
			if len(value) == 1 {
				a.Protocol = value[0]
			}
		}
	}
	if !local.IsValid() {
		local = address
	}
	if !local.IsValid() || local.Is4() != (b[0] == unix.AF_INET) {
		return Addr{}, false
	}
	a.Prefix = netip.PrefixFrom(local, bits)
	a.Duplicate = flags&unix.IFA_F_DADFAILED != 0
	a.Tentative = flags&unix.IFA_F_TENTATIVE != 0 && !a.Duplicate
	return a, a.Link > 0 && a.Prefix.IsValid()
}

// attributes walks over attributes, and ends at the first that is cut short.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.SizeofRtAttr || length > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.SizeofRtAttr:length]) {
				return
			}
			b = b[min(len(b), align(length)):]
		}
	}
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// number reads a 32-bit number; 0 when it is none.
func number(value []byte) uint32 {
	if len(value) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(value)
}
