package rawsock

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"
)

// Neighbors talks to the neighbours of one interface: ARP (RFC 826, RFC 5227)
// and neighbour discovery (RFC 4861), over Ethernet and over InfiniBand, which
// has 20-byte addresses (RFC 4391). It never blocks.
//
// Receive belongs to one goroutine; the other methods may be called from any,
// until Close.
type Neighbors struct {
	iface   Interface
	arp, nd int // nd is -1 where the machine has no IPv6

	watched atomic.Pointer[map[netip.Addr]bool]
	sending sync.Mutex // guards source, and the filters against each other
	source  []byte

	in     received
	buf    []byte
	ndTurn bool // so that a storm on one socket does not silence the other
}

// Claim is someone's word that he has an address.
type Claim struct {
	Addr netip.Addr
	MAC  net.HardwareAddr // nil where a neighbour advertisement does not tell it
}

// OpenNeighbors opens sockets in the calling thread's network namespace. Only
// what claims one of the addresses of Watch is received: the kernel filters.
// It fails for an interface that is neither Ethernet nor InfiniBand.
func OpenNeighbors(i Interface) (*Neighbors, error) {
	switch len(i.MAC) {
	case ethernetSize:
		if i.Broadcast == nil {
			i.Broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		}
	case infinibandSize:
	default:
		return nil, fmt.Errorf("rawsock: %s: a hardware address of %d bytes (%s); Ethernet has 6, InfiniBand 20", i.Name, len(i.MAC), i.MAC)
	}
	if len(i.Broadcast) != len(i.MAC) {
		return nil, fmt.Errorf("rawsock: %s: a broadcast address of %d bytes (%s); the hardware address has %d", i.Name, len(i.Broadcast), i.Broadcast, len(i.MAC))
	}
	n := &Neighbors{iface: i, source: make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo)), buf: make([]byte, 1500)}
	n.watched.Store(&map[netip.Addr]bool{})
	var err error
	if n.arp, err = openARP(i); err != nil {
		return nil, fmt.Errorf("rawsock: %s: %w", i.Name, err)
	}
	if n.nd, err = openND(i); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("rawsock: %s: %w", i.Name, errors.Join(err, unix.Close(n.arp)))
	}
	return n, nil
}

// Watch sets the addresses whose other owners are to be heard of. Answers to
// Ask are claims too. Some thousand addresses are filtered by the kernel; with
// more it lets all ARP pass, and Receive filters.
func (n *Neighbors) Watch(addrs []netip.Addr) error {
	n.sending.Lock()
	defer n.sending.Unlock()
	watched := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		watched[a.WithZone("")] = true
	}
	n.watched.Store(&watched)
	err := attach(n.arp, arpFilter(n.iface.MAC, addrs), wideARP())
	if n.nd >= 0 {
		err = errors.Join(err, attach(n.nd, ndFilter(addrs), wideND()))
	}
	if err != nil {
		return fmt.Errorf("rawsock: %s: watch %d addresses: %w", n.iface.Name, len(addrs), err)
	}
	return nil
}

// Announce sends one gratuitous ARP request and one reply, or an unsolicited
// NA with Override, for an address that this interface has. Some devices learn
// from requests only, some from replies only.
func (n *Neighbors) Announce(addr netip.Addr) error {
	if err := n.announce(addr); err != nil {
		return fmt.Errorf("rawsock: %s: announce %s: %w", n.iface.Name, addr, err)
	}
	return nil
}

func (n *Neighbors) announce(addr netip.Addr) error {
	mac := n.iface.MAC
	if addr.Is4() {
		// The target's hardware address: of a request as keepalived has it; of
		// a reply ours again, else Linux takes it for no gratuitous one.
		return errors.Join(
			n.sendARP(arp.OperationRequest, addr, n.iface.Broadcast, addr),
			n.sendARP(arp.OperationReply, addr, mac, addr))
	}
	message, err := marshalNA(addr, mac)
	if err != nil {
		return fmt.Errorf("make a neighbour advertisement: %w", err)
	}
	return n.sendND(message, addr, allNodes())
}

// Ask asks who has an address: an ARP request from src, or a probe (RFC 5227
// §2.1.1) when src is the zero Addr; a neighbour solicitation from src, or from
// the address that the kernel finds right; src of the other family counts as
// the zero Addr. It should be an address that this interface has, else the
// answer does not arrive. Whoever answers is received
// as a claim, when addr is being watched.
func (n *Neighbors) Ask(addr, src netip.Addr) error {
	if err := n.ask(addr, src); err != nil {
		return fmt.Errorf("rawsock: %s: ask who has %s: %w", n.iface.Name, addr, err)
	}
	return nil
}

func (n *Neighbors) ask(addr, src netip.Addr) error {
	if src.Is4() != addr.Is4() {
		src = netip.Addr{}
	}
	if addr.Is4() {
		if !src.IsValid() {
			src = netip.IPv4Unspecified()
		}
		return n.sendARP(arp.OperationRequest, src, make(net.HardwareAddr, len(n.iface.MAC)), addr)
	}
	if !src.IsValid() {
		src = netip.IPv6Unspecified()
	}
	group, err := ndp.SolicitedNodeMulticast(addr)
	if err != nil {
		return err
	}
	message, err := marshalNS(addr, n.iface.MAC)
	if err != nil {
		return fmt.Errorf("make a neighbour solicitation: %w", err)
	}
	return n.sendND(message, src, group)
}

func (n *Neighbors) sendARP(op arp.Operation, spa netip.Addr, tha net.HardwareAddr, tpa netip.Addr) error {
	if !spa.Is4() {
		return fmt.Errorf("from %s: not both IPv4", spa)
	}
	packet, err := marshalARP(op, n.iface.MAC, spa, tha, tpa)
	if err != nil {
		return err
	}
	return sendLink(n.arp, n.iface.Index, packet, n.iface.Broadcast)
}

func (n *Neighbors) sendND(message []byte, src, dst netip.Addr) error {
	if n.nd < 0 {
		return fmt.Errorf("this machine has no IPv6: %w", unix.EAFNOSUPPORT)
	}
	if !src.Is6() {
		return fmt.Errorf("from %s: not both IPv6", src)
	}
	n.sending.Lock()
	defer n.sending.Unlock()
	putPktinfo(n.source, src, n.iface.Index)
	to := unix.SockaddrInet6{Addr: dst.As16(), ZoneId: uint32(n.iface.Index)}
	for {
		if _, err := unix.SendmsgN(n.nd, message, n.source, &to, 0); err != unix.EINTR {
			return err
		}
	}
}

// Receive takes the oldest claim of another than this interface; ErrEmpty when
// there is none. It does not allocate but for a claim.
func (n *Neighbors) Receive() (Claim, error) {
	n.ndTurn = !n.ndTurn
	for _, nd := range [...]bool{n.ndTurn, !n.ndTurn} {
		if nd && n.nd < 0 {
			continue
		}
		c, err := n.receive(nd)
		if err == nil {
			c.MAC = slices.Clone(c.MAC)
			return c, nil
		}
		if err != ErrEmpty {
			return Claim{}, fmt.Errorf("rawsock: %s: receive: %w", n.iface.Name, err)
		}
	}
	return Claim{}, ErrEmpty
}

func (n *Neighbors) receive(nd bool) (Claim, error) {
	for {
		var c Claim
		var ok bool
		var err error
		if nd {
			var p Packet
			if p, ok, err = n.in.receive(n.nd, n.buf); ok {
				c, ok = parseNA(p, len(n.iface.MAC))
			}
		} else {
			var size int
			if size, err = unix.Read(n.arp, n.buf); err == nil {
				c, ok = parseARP(n.buf[:size], len(n.iface.MAC))
			}
		}
		switch {
		case err == unix.EAGAIN:
			return Claim{}, ErrEmpty
		case err == unix.EINTR || err == unix.ENETDOWN: // it went down; it works again when it is up
		case err != nil:
			return Claim{}, err
		case ok && (*n.watched.Load())[c.Addr] && !bytes.Equal(c.MAC, n.iface.MAC):
			return c, nil
		}
	}
}

// Close closes it. A Poller must have forgotten it before.
func (n *Neighbors) Close() error {
	err := unix.Close(n.arp)
	if n.nd >= 0 {
		err = errors.Join(err, unix.Close(n.nd))
	}
	n.arp, n.nd = -1, -1
	return err
}

func (n *Neighbors) files() (int, int) { return n.arp, n.nd }
