package lb

import (
	"net/netip"
	"slices"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/kernel/firewall"
	"holdfast/internal/kernel/ipvs"
)

// Settings are the cluster file's word for one node, understood.
type Settings struct {
	Node     string
	Services []VirtualService
	Sync     Sync
	// Firewall is what the site's is made with; off: rules are managed elsewhere.
	Firewall firewall.Mode
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
	Network     netip.Prefix // of the address: where its holders advertise
	Directors   []netip.Addr // of all who may hold it, on that network
	Port        uint16       // of the address, and of the real servers: direct routing changes no port. 0 with Mark
	Mark        uint32       // balance what netfilter marked so, instead of an address and port
	Protocol    ipvs.Protocol
	Scheduler   string
	Flags       ipvs.Flags
	Persistence time.Duration
	Granularity int // bits
	Servers     []Server
	Sorry       netip.Addr // gets everybody when there is no quorum; invalid: nobody
	Quorum      int        // weight that must be up; at least 1
	Hysteresis  int        // less than Quorum
	// Path has checks go through IPVS to the address, as clients' packets do,
	// while this node directs; from this one of its addresses.
	Path      bool
	From      netip.Addr
	Inhibit   bool // what fails stays in the table with weight 0: its sessions go on
	SlowStart time.Duration
}

// Server is a real server of a service.
type Server struct {
	Node         string
	Addr         netip.Addr
	Weight       int              // 1–65535
	Upper, Lower uint32           // connections; 0: no bound
	Check        check.Definition // without an ID: none
	Mark         uint32           // of the service that leads to this server alone; 0: none
}

// key is the service in the kernel.
func (s *VirtualService) key() ipvs.Key {
	if s.Mark != 0 {
		return ipvs.ByMark(s.Mark, s.Addr.Is6())
	}
	return ipvs.ByAddr(s.Protocol, netip.AddrPortFrom(s.Addr, s.Port))
}

// rules are what this node's firewall has to let through.
func (s *Settings) rules() (r firewall.Rules) {
	for i := range s.Services {
		v := &s.Services[i]
		protocol := firewall.Protocol(v.Protocol)
		if v.Mark == 0 {
			r.Untracked = append(r.Untracked, firewall.Endpoint{Protocol: protocol, Addr: netip.AddrPortFrom(v.Addr, v.Port)})
		}
		if v.Network.IsValid() && v.Director && !slices.Contains(r.VRRP, v.Network) {
			r.VRRP = append(r.VRRP, v.Network)
		}
		r.Sync = r.Sync || v.Director
		for _, d := range v.Directors {
			if !slices.Contains(r.Directors, d) {
				r.Directors = append(r.Directors, d)
			}
		}
		for _, server := range v.Servers {
			e := firewall.Endpoint{Protocol: protocol, Addr: netip.AddrPortFrom(server.Addr, v.Port)}
			if v.Mark == 0 && (v.Director || server.Node == s.Node) {
				r.Probed = append(r.Probed, e)
			}
		}
	}
	return r
}
