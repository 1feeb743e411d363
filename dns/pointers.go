package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"holdfast/cluster"
	"holdfast/internal/state"
)

// nodePointers gives the address of a node of the catalog its name back.
func (c *compiler) nodePointers(snap *state.Snapshot, host string) map[netip.Addr]name {
	known, _ := snap.Node(nil, host)
	if known == nil {
		return nil
	}
	n, ok := c.nodes.child(strings.Split(state.Fold(known.Name), ".")...)
	if !ok {
		return nil
	}
	return map[netip.Addr]name{known.Address.Unmap(): n}
}

// servicePointers gives the addresses that instances have for themselves,
// apart from their nodes', the service's name: healthy or not, whose address
// it is stays a fact.
func (c *compiler) servicePointers(snap *state.Snapshot, service string) map[netip.Addr]name {
	label := state.Fold(service)
	n, ok := c.services.child(label)
	if !ok || strings.Contains(label, ".") || strings.HasPrefix(label, "_") {
		return nil
	}
	all, _ := snap.Instances(nil, service)
	var found map[netip.Addr]name
	for _, i := range all {
		addr := i.Service.Address.Unmap()
		if !addr.IsValid() || addr == i.Node.Address.Unmap() {
			continue
		}
		if found == nil {
			found = map[netip.Addr]name{}
		}
		found[addr] = n
	}
	return found
}

// holder is a unit that has an address, and the name that the address leads to.
type holder struct {
	unit string
	name name
}

// hold puts the addresses that a unit has now in the place of those it had. A
// unit leads to one name, so that nothing changes while they are the same.
func (c *compiler) hold(edit *nameEdit, unit string, next map[netip.Addr]name) {
	touched := c.held[unit]
	if len(touched) == len(next) && !slices.ContainsFunc(touched, func(a netip.Addr) bool { return next[a] == "" }) {
		return
	}
	for _, addr := range touched {
		c.owners[addr] = slices.DeleteFunc(c.owners[addr], func(h holder) bool { return h.unit == unit })
	}
	delete(c.held, unit)
	for addr, n := range next {
		c.owners[addr] = append(c.owners[addr], holder{unit, n})
		c.held[unit] = append(c.held[unit], addr)
		touched = append(touched, addr)
	}
	for _, addr := range touched {
		c.compilePointer(edit, addr)
		if len(c.owners[addr]) == 0 {
			delete(c.owners, addr)
		}
	}
}

// compilePointer makes the PTR records of an address that the catalog knows.
// They stand beside the virtual zone's names, and are found where a reverse
// zone of the cluster file has nothing to say.
func (c *compiler) compilePointer(edit *nameEdit, addr netip.Addr) {
	at := reverseName(addr, addr.BitLen())
	out := contribution{}
	if owners := c.owners[addr]; len(owners) > 0 {
		n := &node{}
		for _, h := range owners {
			n.add(nameRecord(dns.TypePTR, seconds(c.ttl), h.name, root))
		}
		n.finish()
		out[at] = n
		for up := at.parent(); up != reverse4 && up != reverse6; up = up.parent() {
			out[up] = nil
		}
	}
	c.replace(edit, "address/"+addr.String(), out)
}

// homes maps all addresses of a node to the one on the main network, and
// loopback to this node's.
func homes(file *cluster.File, self string) map[netip.Addr]netip.Addr {
	found := map[netip.Addr]netip.Addr{}
	main := file.Main().Name
	for _, machine := range file.Nodes {
		home, ok := machine.Addresses[main]
		if !ok {
			continue
		}
		for _, addr := range machine.Addresses {
			found[addr.Unmap()] = home.Unmap()
		}
		if strings.EqualFold(machine.Name, self) {
			found[netip.IPv6Loopback()] = home.Unmap()
		}
	}
	return found
}
