package dns

import (
	"slices"
	"strings"

	"github.com/miekg/dns"

	"holdfast/cluster"
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

// isDayZero tells whether what the catalog lacks may only not be registered
// yet.
func isDayZero(snap *state.Snapshot) bool { return snap.Cluster() != nil || !storeExists(snap) }

// storeExists tells whether some member of the gossip belongs to a store.
func storeExists(snap *state.Snapshot) bool {
	return slices.ContainsFunc(snap.Members(), func(m state.Member) bool { return m.ClusterID != "" })
}

// fromFile lists the instances of a service that nobody has registered as the
// cluster file has them, on the nodes that are up.
func (c *compiler) fromFile(snap *state.Snapshot, service string) (list []state.Instance) {
	if !isDayZero(snap) {
		return nil
	}
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

// inFile tells whether the cluster file has a service, by its folded name.
func (c *compiler) inFile(service string) bool {
	return slices.ContainsFunc(c.file.Services, func(s cluster.Service) bool { return state.Fold(s.Name) == service })
}
