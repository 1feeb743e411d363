// Package rawsock sends and receives what VRRP needs below UDP: IP protocol
// 112 over IPv4 and IPv6, ARP, and IPv6 neighbour discovery; and waits for all
// of it on one thread. It needs CAP_NET_RAW.
package rawsock

import (
	"errors"
	"net"
	"net/netip"
	"time"
)

// ErrEmpty: nothing is queued.
var ErrEmpty = errors.New("nothing to receive")

// Packet is an IP packet of protocol 112 as it came.
type Packet struct {
	Payload  []byte // without the IP header; into the buffer that Receive was given
	Src, Dst netip.Addr
	TTL      uint8 // or hop limit
}

// Socket sends and receives protocol 112 on one interface, one family. It
// never blocks. Not safe for concurrent use, but Send is, beside Receive.
type Socket struct{}

// Interface says where a socket belongs.
type Interface struct {
	Index int
	Name  string
	MAC   net.HardwareAddr // InfiniBand: 20 bytes
}

// Open opens a socket that is bound to the interface. Multicast that is sent
// does not come back.
func Open(i Interface, ipv6 bool) (*Socket, error) { panic("not written") }

// Join joins a multicast group: 224.0.0.18 or ff02::12 (RFC 9568 §5.1).
func (s *Socket) Join(group netip.Addr) error { panic("not written") }

// Send sends a payload with TTL 255 (RFC 9568 §5.1.1.3) from src, which need
// not be on the machine any more.
func (s *Socket) Send(payload []byte, src, dst netip.Addr) error { panic("not written") }

// Receive takes the oldest packet of the queue; ErrEmpty when there is none.
func (s *Socket) Receive(buf []byte) (Packet, error) { panic("not written") }

// Close closes it.
func (s *Socket) Close() error { panic("not written") }

// Neighbors talks to the neighbours of one interface: ARP (RFC 826, RFC 5227)
// and neighbour discovery (RFC 4861). InfiniBand has 20-byte addresses (RFC 4391).
type Neighbors struct{}

// OpenNeighbors opens it. Only what claims one of the addresses of Watch is
// received: the kernel filters.
func OpenNeighbors(i Interface) (*Neighbors, error) { panic("not written") }

// Watch sets the addresses whose other owners are to be heard of.
func (n *Neighbors) Watch(addrs []netip.Addr) error { panic("not written") }

// Announce sends one gratuitous ARP request and one reply, or an unsolicited
// NA with Override, for an address that this interface has.
func (n *Neighbors) Announce(addr netip.Addr) error { panic("not written") }

// Ask asks who has an address (ARP probe from src; a neighbour solicitation).
func (n *Neighbors) Ask(addr, src netip.Addr) error { panic("not written") }

// Claim is someone's word that he has an address.
type Claim struct {
	Addr netip.Addr
	MAC  net.HardwareAddr
}

// Receive takes the oldest claim of another than this interface; ErrEmpty when
// there is none.
func (n *Neighbors) Receive() (Claim, error) { panic("not written") }

// Close closes it.
func (n *Neighbors) Close() error { panic("not written") }

// Pollable is what a Poller waits for: Socket and Neighbors.
type Pollable interface{ fd() int }

// Poller waits on one thread for sockets, a deadline and a wake-up call.
type Poller struct{}

// NewPoller makes one.
func NewPoller() (*Poller, error) { panic("not written") }

// Add, Remove: what is waited for.
func (p *Poller) Add(s Pollable) error { panic("not written") }

// Remove takes it off.
func (p *Poller) Remove(s Pollable) error { panic("not written") }

// Wait returns when something can be received, at the deadline (zero: never)
// or at Wake, and lists what can be received (valid until the next call).
func (p *Poller) Wait(deadline time.Time) ([]Pollable, error) { panic("not written") }

// Wake ends a Wait under way, or the next one. From any goroutine.
func (p *Poller) Wake() { panic("not written") }

// Close closes it.
func (p *Poller) Close() error { panic("not written") }

// Realtime puts the calling thread, which must be locked to its goroutine,
// under SCHED_FIFO with a priority of 1–99. It needs LimitRTPRIO or CAP_SYS_NICE.
func Realtime(priority int) error { panic("not written") }
