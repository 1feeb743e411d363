package dns

import (
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"holdfast/cluster"
	"holdfast/internal/state"
)

// Day zero: the first node runs alone, and installs the second. The store
// takes a majority to be formed, and until then nothing is registered. What
// the cluster file says of the nodes that are up is the answer then: those
// that the gossip sees, and this one.
//
// Day zero ends on a node when it has the store itself. The gossip tells of the
// store a moment before; so a node that has been alone for alone goes on. One
// that comes late, or back with an empty disk, is in another position: a store
// exists, others know what is healthy, and SERVFAIL sends the client to them.

// reasonDayZero goes with every answer of day zero.
var reasonDayZero = newExtended(dns.ExtendedErrorCodeOther, "no store is formed yet: as the cluster file says, on the nodes that are up")

// alone is how long a node must have seen no store before it counts as one of
// day zero: longer than one that comes late takes to hear the others.
const alone = 2 * time.Second

// beginning is what a node saw of stores before it had the store itself.
type beginning struct {
	since  time.Time     // when it took part in a gossip in which nobody had one
	heard  bool          // of one
	lasted time.Duration // from since until it heard
}

// begin looks whether somebody has a store.
func (c *compiler) begin(snap *state.Snapshot) {
	self, taking := snap.Member(c.self)
	b := &c.beginning
	switch {
	case snap.Cluster() != nil:
		*b = beginning{}
	case b.heard:
	case storeExists(snap):
		if b.heard = true; !b.since.IsZero() {
			b.lasted = c.now().Sub(b.since)
		}
	case taking && self.Liveness == state.Alive && b.since.IsZero():
		b.since = c.now()
	}
}

// isDayZero tells whether what the catalog lacks may only not be registered
// yet.
func (c *compiler) isDayZero(snap *state.Snapshot) bool {
	return snap.Cluster() != nil || !storeExists(snap) || c.beginning.lasted >= alone
}

// storeExists tells whether some member of the gossip belongs to a store.
func storeExists(snap *state.Snapshot) bool {
	return slices.ContainsFunc(snap.Members(), func(m state.Member) bool { return m.ClusterID != "" })
}

// fromFile lists the instances of a service that nobody has registered as the
// cluster file has them, on the nodes that are up. A node that registered other
// services has said what it runs: what is missing there was taken off.
func (c *compiler) fromFile(snap *state.Snapshot, service string) (list []state.Instance) {
	if !c.isDayZero(snap) {
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
			if has, _ := snap.NodeServices(nil, machine.Name); len(has) > 0 {
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
