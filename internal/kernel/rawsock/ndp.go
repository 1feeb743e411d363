package rawsock

import (
	"errors"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"
)

// Neighbour discovery (RFC 4861 §4): ICMPv6 messages of a header of 4 bytes,
// flags, the target, and options.
const (
	icmpNeighborAdvertisement = 136
	naTarget                  = 8  // its offset
	naSize                    = 24 // without options
	optionTarget              = 2  // target link-layer address
)

// allNodes is where unsolicited advertisements go (RFC 4861 §7.2.6).
func allNodes() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 1}) }

// openND opens an ICMPv6 socket that hears advertisements only, and none until
// it has its filter. The kernel sums what is sent, and checks what comes.
func openND(i Interface) (int, error) {
	fd, err := openIPv6(i, unix.IPPROTO_ICMPV6)
	if err != nil {
		return -1, err
	}
	if err := attach(fd, ndFilter(nil), wideND()); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// marshalNA makes the advertisement of an address that moved here: it overrides
// what the neighbours know. The sender is a host, whatever the name of VRRP's
// protocol says: the flag of a router would put it on the hosts' lists of
// default routers (RFC 4861 §7.2.5).
func marshalNA(addr netip.Addr, mac net.HardwareAddr) ([]byte, error) {
	return ndp.MarshalMessage(&ndp.NeighborAdvertisement{
		Override: true, TargetAddress: addr, Options: []ndp.Option{linkLayer(ndp.Target, mac)},
	})
}

func marshalNS(addr netip.Addr, mac net.HardwareAddr) ([]byte, error) {
	return ndp.MarshalMessage(&ndp.NeighborSolicitation{
		TargetAddress: addr, Options: []ndp.Option{linkLayer(ndp.Source, mac)},
	})
}

// linkLayer is a link-layer address option; that of InfiniBand has two reserved
// bytes before the address (RFC 4391 §9.3).
func linkLayer(direction ndp.Direction, mac net.HardwareAddr) ndp.Option {
	if len(mac) == ethernetSize {
		return &ndp.LinkLayerAddress{Direction: direction, Addr: mac}
	}
	return &ndp.RawOption{Type: uint8(direction), Length: 3, Value: append(make([]byte, 2), mac...)}
}

// parseNA reads who claims what from a neighbour advertisement of hardware
// addresses of this size. It is not ok when it is malformed (RFC 4861 §7.1.2).
// The MAC is part of b, or nil where the sender left it out, as the answer to a
// unicast solicitation may.
func parseNA(p Packet, size int) (c Claim, ok bool) {
	b := p.Payload
	if p.TTL != hops || len(b) < naSize || b[0] != icmpNeighborAdvertisement || b[1] != 0 {
		return Claim{}, false
	}
	c.Addr = netip.AddrFrom16([16]byte(b[naTarget:]))
	if c.Addr.IsMulticast() || c.Addr.Is4In6() {
		return Claim{}, false
	}
	for b = b[naSize:]; len(b) > 0; {
		if len(b) < 2 || b[1] == 0 || int(b[1])*8 > len(b) {
			return Claim{}, false
		}
		length := int(b[1]) * 8
		if b[0] == optionTarget && c.MAC == nil {
			c.MAC = lastOf(b[2:length], size)
		}
		b = b[length:]
	}
	return c, true
}

// lastOf cuts a link-layer address out of its option: all of it on Ethernet,
// behind two reserved bytes on InfiniBand.
func lastOf(b []byte, size int) net.HardwareAddr {
	switch {
	case size == ethernetSize && len(b) == size:
		return net.HardwareAddr(b)
	case size == infinibandSize && len(b) == size+2:
		return net.HardwareAddr(b[2:])
	}
	return nil
}
