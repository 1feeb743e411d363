// Package ipvs declares the kernel's tables of virtual services and real
// servers, and its synchronisation daemons, over generic netlink. A Handle
// works in the network namespace it was opened in; an Owner adds which of the
// services are ours, and makes them what they should be.
//
// Services and servers are written and listed through moby/ipvs (tables.go).
// What it lacks stands beside it, over the same netlink library (beside.go,
// message.go): a refusal where the kernel has no IPVS, an end to waiting,
// synchronisation daemons, 64-bit counters and persistence templates.
package ipvs

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ErrUnsupported: the kernel has no IPVS, or its module is not loaded.
var ErrUnsupported = errors.New("the kernel has no IPVS; load the module ip_vs")

// ErrForeign: somebody else has made what we are to make.
var ErrForeign = errors.New("it is there already and not ours")

// Protocol is the transport that a virtual service is of.
type Protocol uint16

// The protocols; a service by firewall mark has none.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

func (p Protocol) String() string {
	switch p {
	case 0:
		return "mark"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol-%d", uint16(p))
}

// Key is what tells one virtual service from another: an address and a
// protocol, or a firewall mark and a family.
type Key struct {
	Protocol Protocol
	Addr     netip.AddrPort // port 0: all ports; needs persistence
	Mark     uint32         // not 0: what netfilter marked so; Protocol and Addr are zero then
	IPv6     bool           // of a mark: the family of the packets. Of an address it follows from Addr
}

// ByAddr is the key of a service on an address.
func ByAddr(p Protocol, a netip.AddrPort) Key {
	return Key{Protocol: p, Addr: a, IPv6: a.Addr().Is6()}
}

// ByMark is the key of a service for marked packets.
func ByMark(mark uint32, ipv6 bool) Key { return Key{Mark: mark, IPv6: ipv6} }

func (k Key) String() string {
	switch {
	case k.Mark == 0:
		return fmt.Sprintf("%v/%v", k.Protocol, k.Addr)
	case k.IPv6:
		return fmt.Sprintf("mark6/%d", k.Mark)
	}
	return fmt.Sprintf("mark/%d", k.Mark)
}

// Compare orders keys: marks first, then addresses.
func (k Key) Compare(other Key) int {
	return cmp.Or(
		k.Addr.Compare(other.Addr),
		cmp.Compare(k.Protocol, other.Protocol),
		cmp.Compare(k.Mark, other.Mark),
		cmp.Compare(family(k.IPv6), family(other.IPv6)))
}

func (k Key) valid() error {
	switch {
	case k.Mark != 0 && (k.Protocol != 0 || k.Addr.IsValid()):
		return errors.New("a service has a firewall mark or an address, not both")
	case k.Mark != 0:
		return nil
	case k.Protocol != TCP && k.Protocol != UDP:
		return fmt.Errorf("%v can't be balanced; tcp or udp can", k.Protocol)
	case !k.Addr.IsValid() || k.Addr.Addr() != k.Addr.Addr().Unmap() || k.Addr.Addr().Zone() != "":
		return fmt.Errorf("%v is no address of a service", k.Addr)
	case k.IPv6 != k.Addr.Addr().Is6():
		return fmt.Errorf("%v is of the other family", k.Addr)
	}
	return nil
}

// Flags are a service's switches (IP_VS_SVC_F_*). That it is persistent is
// told by Service.Persistence.
type Flags uint32

// The flags that are ours to set. Flag 1 and 2 are what the scheduler makes of
// them; sh and mh take another server when the chosen one is away (Fallback),
// and hash the client's port too (Port).
const (
	OnePacket Flags = 0x04
	Fallback  Flags = 0x08
	Port      Flags = 0x10
	Flag3     Flags = 0x20

	persistent Flags = 0x01
	settable         = OnePacket | Fallback | Port | Flag3
)

// Service is a virtual service.
type Service struct {
	Key
	Scheduler   string // rr, wrr, lc, wlc, sh, mh, sed, nq ...: ip_vs_NAME is loaded by the kernel
	Flags       Flags
	Persistence time.Duration // how long a client keeps its server after its last connection, in seconds; 0: not at all
	Granularity int           // clients that share this many bits of their address are one client; 0: all bits
	Servers     []Server
}

// Method is how packets reach a real server (IP_VS_CONN_F_*).
type Method uint32

// The methods.
const (
	Masquerade Method = 0
	Local      Method = 1 // what the kernel may show for an address of its own
	Tunnel     Method = 2
	Route      Method = 3 // direct routing
)

// Server is a real server of a virtual service.
type Server struct {
	Addr   netip.AddrPort
	Method Method
	Weight int    // 0: gets no new connections; at most 65535
	Upper  uint32 // connections at which it gets no new ones; 0: no bound
	Lower  uint32 // and below which it gets them again; 0: three quarters of Upper
}

// Stats are counters since the service or server was made.
type Stats struct {
	Connections, PacketsIn, PacketsOut, BytesIn, BytesOut uint64
}

// Load is what a real server has to do now.
type Load struct {
	Active, Inactive, Persistent uint32 // connections; persistence templates
	Stats                        Stats
}

// Observed is a service as the kernel has it, its servers ordered by address.
// Stats and Loads are there only where counters were asked for.
type Observed struct {
	Service
	Stats Stats
	Loads []Load // of Servers, in their order
}

// Role is what a synchronisation daemon does.
type Role uint32

// The roles. A kernel may have one daemon of each.
const (
	Master Role = 1 // multicasts the connections of this director
	Backup Role = 2 // receives those of another
)

func (r Role) String() string {
	switch r {
	case Master:
		return "master"
	case Backup:
		return "backup"
	}
	return fmt.Sprintf("role-%d", uint32(r))
}

// Daemon is a synchronisation daemon.
type Daemon struct {
	Role      Role
	Interface string // on which it multicasts or listens
	SyncID    uint8  // 0–255; a backup given 0 takes what any master sends
}

// normal is the form in which services are compared: what the kernel shows.
func (s Service) normal() Service {
	bits := 32
	if s.IPv6 {
		bits = 128
	}
	if s.Granularity == 0 {
		s.Granularity = bits
	}
	s.Servers = slices.Clone(s.Servers)
	slices.SortFunc(s.Servers, func(a, b Server) int { return a.Addr.Compare(b.Addr) })
	return s
}

func (s Service) valid() error {
	if err := s.Key.valid(); err != nil {
		return err
	}
	bits := 32
	if s.IPv6 {
		bits = 128
	}
	switch {
	case s.Scheduler == "":
		return errors.New("it has no scheduler")
	case s.Persistence < 0 || s.Persistence%time.Second != 0 || s.Persistence/time.Second > 1<<31:
		return fmt.Errorf("a persistence of %v; whole seconds are right", s.Persistence)
	case s.Granularity < 0 || s.Granularity > bits:
		return fmt.Errorf("a granularity of %d bits; 1 to %d are right", s.Granularity, bits)
	case s.Flags&^settable != 0:
		return fmt.Errorf("flags %#x; %#x are known", uint32(s.Flags), uint32(settable))
	}
	seen := map[netip.AddrPort]bool{}
	for _, r := range s.Servers {
		switch {
		case !r.Addr.IsValid() || r.Addr.Addr() != r.Addr.Addr().Unmap() || r.Addr.Addr().Zone() != "":
			return fmt.Errorf("%v is no address of a real server", r.Addr)
		case r.Addr.Addr().Is6() != s.IPv6:
			return fmt.Errorf("real server %v is of the other family", r.Addr)
		case r.Weight < 0 || r.Weight > 65535:
			return fmt.Errorf("real server %v has the weight %d; 0 to 65535 are right", r.Addr, r.Weight)
		case seen[r.Addr]:
			return fmt.Errorf("real server %v stands there twice", r.Addr)
		}
		seen[r.Addr] = true
	}
	return nil
}
