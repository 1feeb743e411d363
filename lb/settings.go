package lb

import (
	"net/netip"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/kernel/ipvs"
)

// Settings are the cluster file's word for one node, understood.
type Settings struct {
	Node     string
	Services []VirtualService
	Sync     Sync
	// Handover is how long a director that lost its address goes on forwarding
	// what still comes to it.
	Handover time.Duration
}

// Sync is where directors tell each other their connections.
type Sync struct {
	Addr netip.Addr // this node's, on the interface that is used; invalid: the node is no director
	ID   uint8      // 1–255
}

// VirtualService is a virtual service: an address that others hold by turns, and the
// real servers behind it.
type VirtualService struct {
	Name        string
	VIP         string // whose holder directs
	Director    bool   // this node may hold it
	Addr        netip.Addr
	Port        uint16 // of the address, and of the real servers: direct routing changes no port. 0 with Mark
	Mark        uint32 // balance what netfilter marked so, instead of an address and port
	Protocol    ipvs.Protocol
	Scheduler   string
	Flags       ipvs.Flags
	Persistence time.Duration
	Granularity int // bits
	Servers     []Server
	Sorry       netip.Addr // gets everybody when there is no quorum; invalid: nobody
	Quorum      int        // weight that must be up; at least 1
	Hysteresis  int        // less than Quorum
	Inhibit     bool       // what fails stays in the table with weight 0: its sessions go on
	SlowStart   time.Duration
}

// Server is a real server of a service.
type Server struct {
	Node         string
	Addr         netip.Addr
	Weight       int              // 1–65535
	Upper, Lower uint32           // connections; 0: no bound
	Check        check.Definition // without an ID: none
}

// key is the service in the kernel.
func (s *VirtualService) key() ipvs.Key {
	if s.Mark != 0 {
		return ipvs.ByMark(s.Mark, s.Addr.Is6())
	}
	return ipvs.ByAddr(s.Protocol, netip.AddrPortFrom(s.Addr, s.Port))
}
