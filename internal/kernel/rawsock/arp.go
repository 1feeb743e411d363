package rawsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"github.com/mdlayher/arp"
	"golang.org/x/sys/unix"
)

// ARP (RFC 826): a header of 8 bytes, then hardware and protocol address of the
// sender, then of the target.
const (
	arpHeader        = 8
	etherTypeIPv4    = 0x0800
	ipv4Size         = 4
	ethernetSize     = 6
	infinibandSize   = 20
	hardwareEthernet = 1
	hardwareIPoIB    = 32 // RFC 4391 §9.1
)

// openARP opens a packet socket that hears nothing until it has its filter.
// The kernel makes the link's header, of whatever kind that is (SOCK_DGRAM).
func openARP(i Interface) (int, error) {
	fd, err := openSocket(unix.AF_PACKET, unix.SOCK_DGRAM, 0, 0)
	if err != nil {
		return -1, err
	}
	err = attach(fd, arpFilter(i.MAC, nil), wideARP())
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ARP), Ifindex: i.Index})
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("bind a socket for ARP: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// marshalARP makes an ARP packet. The kind of the link shows in the length of
// its addresses.
func marshalARP(op arp.Operation, sha net.HardwareAddr, spa netip.Addr, tha net.HardwareAddr, tpa netip.Addr) ([]byte, error) {
	if len(sha) == infinibandSize {
		return appendIPoIB(nil, op, sha, spa, tha, tpa), nil
	}
	p, err := arp.NewPacket(op, sha, spa, tha, tpa)
	if err != nil {
		return nil, fmt.Errorf("make an ARP packet: %w", err)
	}
	return p.MarshalBinary()
}

// appendIPoIB appends an ARP packet of IP over InfiniBand (RFC 4391 §9.1), which
// package arp does not know: its hardware type is always Ethernet.
func appendIPoIB(b []byte, op arp.Operation, sha net.HardwareAddr, spa netip.Addr, tha net.HardwareAddr, tpa netip.Addr) []byte {
	sender, target := spa.As4(), tpa.As4()
	b = binary.BigEndian.AppendUint16(b, hardwareIPoIB)
	b = binary.BigEndian.AppendUint16(b, etherTypeIPv4)
	b = append(b, infinibandSize, ipv4Size)
	b = binary.BigEndian.AppendUint16(b, uint16(op))
	b = append(append(b, sha...), sender[:]...)
	return append(append(b, tha...), target[:]...)
}

// parseARP reads who claims what from an ARP packet of hardware addresses of
// this size: the sender's addresses, of requests and replies alike. It is not
// ok when it is cut short, of another kind, or a probe (RFC 5227 §1.1), which
// claims nothing. The MAC is part of b.
func parseARP(b []byte, size int) (c Claim, ok bool) {
	if len(b) < arpHeader+2*(size+ipv4Size) ||
		binary.BigEndian.Uint16(b[2:]) != etherTypeIPv4 || int(b[4]) != size || b[5] != ipv4Size {
		return Claim{}, false
	}
	if op := arp.Operation(binary.BigEndian.Uint16(b[6:])); op != arp.OperationRequest && op != arp.OperationReply {
		return Claim{}, false
	}
	b = b[arpHeader:]
	c = Claim{MAC: net.HardwareAddr(b[:size]), Addr: netip.AddrFrom4([4]byte(b[size:]))}
	return c, !c.Addr.IsUnspecified()
}

// linkAddress is a struct sockaddr_ll with room for the addresses of
// InfiniBand, which unix.SockaddrLinklayer has not.
type linkAddress struct {
	family   uint16
	protocol uint16 // network order
	ifindex  int32
	hatype   uint16
	pkttype  uint8
	halen    uint8
	addr     [infinibandSize]byte
}

// sendLink sends an ARP packet to a hardware address. A socket remembers that
// its interface was down and says so once, to whoever uses it next: then the
// packet is sent again.
func sendLink(fd, ifindex int, b []byte, to net.HardwareAddr) error {
	address := linkAddress{
		family: unix.AF_PACKET, protocol: networkOrder(unix.ETH_P_ARP), ifindex: int32(ifindex),
		halen: uint8(min(len(to), infinibandSize)),
	}
	copy(address.addr[:], to)
	for again := false; ; {
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd),
			uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT,
			uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		case unix.ENETDOWN:
			if !again {
				again = true
				continue
			}
		}
		return errno
	}
}
