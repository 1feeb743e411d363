// Package link knows the network interfaces and puts addresses on them, over
// rtnetlink. A Handle works in the network namespace it was opened in.
package link

import (
	"context"
	"net"
	"net/netip"
)

// Kind is the kind of an interface.
type Kind uint8

// The kinds that matter to a virtual router.
const (
	Other Kind = iota
	Ethernet
	InfiniBand
	Loopback
)

// Link is a network interface.
type Link struct {
	Index   int
	Name    string
	Kind    Kind
	MAC     net.HardwareAddr // 6 bytes; 20 for InfiniBand
	MTU     int
	Up      bool // IFF_UP: an admin wants it
	Running bool // and it has its carrier (operstate up or unknown)
}

// Protocol marks the addresses that Holdfast adds (IFA_PROTO, Linux 5.18);
// `ip address` shows it as proto 112... of the kernel's free range.
const Protocol = 112

// Addr is an address on an interface.
type Addr struct {
	Link      int          // index
	Prefix    netip.Prefix // host bits are the address
	Protocol  uint8        // IFA_PROTO; 0 on kernels that don't keep it
	Tentative bool         // IPv6: duplicate address detection under way
}

// Handle is a netlink connection. Its methods may be called from any goroutine.
type Handle struct{}

// Open opens a handle in the calling thread's network namespace.
func Open() (*Handle, error) { panic("not written") }

// Close closes it.
func (h *Handle) Close() error { panic("not written") }

// Links lists the interfaces.
func (h *Handle) Links() ([]Link, error) { panic("not written") }

// Addrs lists the addresses of all interfaces.
func (h *Handle) Addrs() ([]Addr, error) { panic("not written") }

// Add puts an address on an interface, marked with Protocol where the kernel
// keeps it, IPv6 without duplicate address detection. One that is there
// already is no error.
func (h *Handle) Add(a Addr) error { panic("not written") }

// Remove takes an address away. One that is not there is no error.
func (h *Handle) Remove(a Addr) error { panic("not written") }

// Event is a change. Exactly one of the pointers is set.
type Event struct {
	Link *Link
	Addr *Addr
	Gone bool // it was removed
}

// Watch calls changed for every interface and address that there is, then for
// every change, until ctx ends. When the kernel dropped notices, resync is
// called, and everything that there is comes again.
func (h *Handle) Watch(ctx context.Context, changed func(Event), resync func()) error {
	panic("not written")
}
