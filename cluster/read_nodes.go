package cluster

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

const nodePattern = "{node}"

func (l *loader) readNodes(v *value) {
	l.lostNodes = !l.filled(v)
	l.each(v, l.readNodeSet)
	for i := range l.f.Nodes {
		n := &l.f.Nodes[i]
		l.inRole[n.Role] = append(l.inRole[n.Role], n.Name)
	}
}

// readNodeSet reads one entry of nodes, for one node or many alike.
func (l *loader) readNodeSet(e entry) {
	s := &nodeSet{loader: l, e: e}
	names, err := Expand(e.key, nil)
	switch {
	case err != nil:
		l.at(e.pos, e.value.path, "bad node set: %v", err)
		l.lostNodes = true
	case len(l.f.Nodes)+len(names) > MaxItems:
		l.at(e.pos, e.value.path, "more than %d nodes", MaxItems)
		l.lostNodes = true
	case len(names) == 0:
		l.at(e.pos, e.value.path, "bad node set: it names no node")
	default:
		s.names = names
		s.checkNames()
	}
	s.nodes = make([]Node, len(s.names))
	for i, name := range s.names {
		s.nodes[i] = Node{Name: name, Addresses: map[string]netip.Addr{}, Hostnames: map[string]string{}, MAC: map[string]string{}}
	}
	if m, ok := l.mapping(e.value); ok {
		s.read(m)
		m.done()
	}
	l.f.Nodes = append(l.f.Nodes, s.nodes...)
}

// nodeSet is an entry of nodes while it is read.
type nodeSet struct {
	*loader
	e     entry
	names []string // empty: the set could not be read
	nodes []Node
	bad   bool // a name is no DNS label: names made of it would be none either
}

func (s *nodeSet) checkNames() {
	for _, name := range s.names {
		if err := label(name); err != nil {
			s.at(s.e.pos, s.e.value.path, "%v", err)
			s.bad = true
			break
		}
	}
	if prefix := s.f.NamePrefix; prefix != "" && !s.bad {
		var odd []string
		for _, name := range s.names {
			if !followsConvention(name, prefix) {
				odd = append(odd, name)
			}
		}
		if len(odd) > 0 {
			s.at(s.e.pos, s.e.value.path, "%s breaks the naming convention: %s, letters of the role, digits, as in %sservice1", clip(Fold(odd)), prefix, prefix)
		}
	}
	fresh := s.loader.names.take(s.problems, s.e.pos, s.e.value.path, s.names)
	s.hostnames.take(s.problems, s.e.pos, s.e.value.path, fresh)
}

// followsConvention tells names that are the prefix, letters and digits.
func followsConvention(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	role := strings.TrimRight(rest, "0123456789")
	return ok && role != "" && role != rest && strings.Trim(role, "abcdefghijklmnopqrstuvwxyz") == ""
}

func (s *nodeSet) read(m *mapping) {
	role := m.need("role", "role: service")
	if role == nil {
		s.lostNodes = true
	}
	if name, ok := s.text(role); ok {
		if !s.lostRoles && !slices.Contains(s.roleNames, name) {
			s.at(role.pos, role.path, "unknown role %q; %s", clip(name), suggest(name, s.roleNames))
			s.lostNodes = true // to "@role"
		}
		for i := range s.nodes {
			s.nodes[i].Role = name
		}
	}
	s.readHostnames(m.get("hostnames"))
	s.readAddresses(m.need("addresses", `addresses: {administration: "10.1.0.[1-4]"}`))
	s.readMACs(m.get("mac"))
	s.readBMC(m.get("bmc"))
	s.claimHostnames(m)
}

// perNetwork reads a mapping from networks to folded lists, one item a node.
func (s *nodeSet) perNetwork(v *value, wanted string, f func(n *Network, e entry, items []string)) {
	s.each(v, func(e entry) {
		n := s.networks[e.key]
		if n == nil && !s.lostNetworks {
			s.at(e.pos, e.value.path, "unknown network %q; %s", clip(e.key), suggest(e.key, slices.Sorted(maps.Keys(s.networks))))
		}
		if items, ok := s.perNode(e.value, wanted); ok {
			f(n, e, items)
		}
	})
}

// perNode reads a folded list with as many items as the set has nodes.
func (s *nodeSet) perNode(v *value, wanted string) ([]string, bool) {
	return s.oneEach(v, wanted, "node", len(s.names))
}

// oneEach reads a folded list with an item for each of n things of a kind. Of
// a set that could not be read, n is 0 and there is nothing to say.
func (p *problems) oneEach(v *value, wanted, kind string, n int) ([]string, bool) {
	list, ok := p.folded(v, wanted)
	if !ok {
		return nil, false
	}
	items, err := ExpandList(list)
	if err != nil {
		p.at(v.pos, v.path, "%v", err)
		return nil, false
	}
	if n == 0 {
		return nil, false
	}
	if len(items) != n {
		p.at(v.pos, v.path, "%s is %s for %s; give each %s one", clip(list), count(len(items), wanted), count(n, kind), kind)
		return nil, false
	}
	return items, true
}

// count writes a number of things.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if strings.HasSuffix(what, "s") {
		return fmt.Sprintf("%d %ses", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (s *nodeSet) readAddresses(v *value) {
	s.perNetwork(v, "address", func(n *Network, e entry, items []string) {
		addrs, ok := s.addrs(e.value, items)
		if !ok {
			return
		}
		s.inNetwork(e.value.pos, e.value.path, n, addrs)
		s.addresses.take(s.problems, e.value.pos, e.value.path, addrStrings(addrs))
		for i := range s.nodes {
			s.nodes[i].Addresses[e.key] = addrs[i]
			if n != nil && n.Hostname != "" && s.nodes[i].Hostnames[e.key] == "" {
				s.nodes[i].Hostnames[e.key] = strings.ReplaceAll(n.Hostname, nodePattern, s.names[i])
			}
		}
	})
	s.noteLost(v)
	if v == nil || v.kind != object || len(s.f.Networks) == 0 {
		return
	}
	if main := s.f.Networks[0].Name; v.child(main) == nil {
		s.at(v.pos, v.path, "no address in %s, the main network, where a node's name lives; give one", main)
	}
}

// noteLost remembers the networks in which nodes of the set should have an
// address and have none that could be read.
func (s *nodeSet) noteLost(addresses *value) {
	for i := range s.f.Networks {
		network := s.f.Networks[i].Name
		wanted := i == 0 || addresses.child(network) != nil
		if wanted && len(s.nodes) > 0 && !s.nodes[0].Addresses[network].IsValid() {
			s.lostAddresses[network] = true
		}
	}
}

// addrs reads addresses; one mistake is noted for all.
func (l *loader) addrs(v *value, items []string) ([]netip.Addr, bool) {
	addrs := make([]netip.Addr, len(items))
	for i, item := range items {
		a, err := parseAddr(item)
		if err != nil {
			l.at(v.pos, v.path, "%v", err)
			return nil, false
		}
		addrs[i] = a
	}
	return addrs, true
}

func (s *nodeSet) readMACs(v *value) {
	s.perNetwork(v, "hardware address", func(_ *Network, e entry, items []string) {
		for i, item := range items {
			mac, err := parseMAC(item)
			if err != nil {
				s.at(e.value.pos, e.value.path, "%v", err)
				return
			}
			items[i] = mac
			s.nodes[i].MAC[e.key] = mac
		}
		s.macs.take(s.problems, e.value.pos, e.value.path, items)
	})
}

// readHostnames reads the names that override a network's pattern.
func (s *nodeSet) readHostnames(v *value) {
	s.perNetwork(v, "host name", func(n *Network, e entry, items []string) {
		if n != nil && n == &s.f.Networks[0] {
			s.at(e.pos, e.value.path, "%s is the main network: a node has its own name there; leave it out", n.Name)
			return
		}
		for i, item := range items {
			s.nodes[i].Hostnames[e.key] = item
		}
	})
}
