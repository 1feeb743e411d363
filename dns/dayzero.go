package dns

import (
	"slices"
	"strings"

	"github.com/miekg/dns"

	"holdfast/internal/state"
)

// Day zero: the first node runs alone, and installs the second. The store
// takes a majority to be formed, and until then nothing is registered. What
// the cluster file says of the nodes that are up is the answer then: those
// that the gossip sees, and this one.
//
// A node that comes late, or back with an empty disk, is in another position:
// a store exists, others know what is healthy, and SERVFAIL sends the client
// to them.

// reasonDayZero goes with every answer of day zero.
var reasonDayZero = newExtended(dns.ExtendedErrorCodeOther, "no store is formed yet: as the cluster file says, on the nodes that are up")

// judgeDayZero notes whether the catalog is empty because there is no store
// yet, or only just, and tells whether the services of the cluster file are to
// be compiled anew: as long as it is day zero, and once after it.
func (c *compiler) judgeDayZero(snap *state.Snapshot) bool {
	was := c.dayZero
	c.dayZero = c.isEmpty(snap) && (snap.Cluster() != nil || !storeExists(snap))
	return was || c.dayZero
}

// isEmpty tells whether no node is registered. It looks for the one it saw
// last first: the list of all is long.
func (c *compiler) isEmpty(snap *state.Snapshot) bool {
	if n, _ := snap.Node(nil, c.witness); n != nil {
		return false
	}
	all, _ := snap.Nodes(nil)
	if len(all) > 0 {
		c.witness = all[0].Name
	}
	return len(all) == 0
}

// storeExists tells whether some member of the gossip belongs to a store.
func storeExists(snap *state.Snapshot) bool {
	return slices.ContainsFunc(snap.Members(), func(m state.Member) bool { return m.ClusterID != "" })
}

// fromFile lists the instances of a service as the cluster file has them, on
// the nodes that are up.
func (c *compiler) fromFile(snap *state.Snapshot, service string) (list []state.Instance) {
	for _, s := range c.file.Services {
		if state.Fold(s.Name) != state.Fold(service) {
			continue
		}
		for _, host := range s.On {
			m, known := snap.Member(host)
			machine := c.machines[state.Fold(host)]
			if machine == nil || !strings.EqualFold(host, c.self) && (!known || m.Liveness != state.Alive) {
				continue
			}
			list = append(list, state.Instance{
				Node:    &state.Node{Name: machine.Name, Address: machine.Addresses[c.file.Main().Name]},
				Service: &state.Service{ID: s.Name, Name: s.Name, Port: s.Port, Tags: s.Tags, Address: s.Address},
			})
		}
	}
	return list
}
