// Package link knows the network interfaces and puts addresses on them, over
// rtnetlink. A Handle works in the network namespace it was opened in.
package link

import (
	"errors"
	"net"
	"net/netip"
)

// ErrNoLink: there is no interface with this index (any more).
var ErrNoLink = errors.New("no such interface")

// Kind is the kind of an interface.
type Kind uint8

// The kinds that matter to a virtual router.
const (
	Other Kind = iota
	Ethernet
	InfiniBand
	Loopback
)

func (k Kind) String() string {
	switch k {
	case Ethernet:
		return "Ethernet"
	case InfiniBand:
		return "InfiniBand"
	case Loopback:
		return "loopback"
	}
	return "other"
}

// Link is a network interface.
type Link struct {
	Index     int
	Name      string
	Kind      Kind
	MAC       net.HardwareAddr // 6 bytes; 20 for InfiniBand
	Broadcast net.HardwareAddr // as long; on InfiniBand it differs with partition and scope (RFC 4391 §4)
	MTU       int              // bytes
	Master    int              // index of the bridge or bond that it belongs to; 0: none
	Up        bool             // IFF_UP: an admin wants it
	Running   bool             // and it has its carrier (operstate up or unknown)
}

func (l Link) equal(other Link) bool {
	return l.Index == other.Index && l.Name == other.Name && l.Kind == other.Kind &&
		string(l.MAC) == string(other.MAC) && string(l.Broadcast) == string(other.Broadcast) &&
		l.MTU == other.MTU && l.Master == other.Master && l.Up == other.Up && l.Running == other.Running
}

// Protocol marks the addresses that Holdfast adds (IFA_PROTO, Linux 5.18, of
// the range that the kernel leaves to programs); `ip -d address` shows it as
// "proto 0x70".
const Protocol = 112

// Addr is an address on an interface.
type Addr struct {
	Link      int          // index
	Prefix    netip.Prefix // host bits are the address; without zone
	Protocol  uint8        // IFA_PROTO; 0 on kernels that don't keep it (see Handle.KeepsProtocol)
	Tentative bool         // IPv6: duplicate address detection under way
	Duplicate bool         // IPv6: duplicate address detection found another owner; the kernel does not use it
}

// Event is a change. Either one of the pointers is set, or Synced.
type Event struct {
	Link   *Link
	Addr   *Addr
	Gone   bool // it was removed
	Synced bool // everything that there is has been told
}
