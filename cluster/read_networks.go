package cluster

import (
	"net/netip"
	"strings"
)

// maxNetworks bounds the networks of a file.
const maxNetworks = 64

func (l *loader) readNetworks(v *value) {
	l.lostNetworks = !l.filled(v)
	l.each(v, func(e entry) {
		if len(l.f.Networks) == maxNetworks {
			l.at(e.pos, e.value.path, "more than %d networks", maxNetworks)
			return
		}
		l.nameError(e.pos, e.value.path, label(e.key))
		n := Network{Name: e.key}
		if m, ok := l.mapping(e.value); ok {
			l.readNetwork(m, &n)
			m.done()
		}
		l.f.Networks = append(l.f.Networks, n)
	})
	for i := range l.f.Networks {
		l.networks[l.f.Networks[i].Name] = &l.f.Networks[i]
	}
	if v != nil && !l.lostNetworks {
		l.checkOverlap(v)
	}
}

func (l *loader) readNetwork(m *mapping, n *Network) {
	main := len(l.f.Networks) == 0
	n.Prefix, _ = l.prefix(m.need("prefix", "prefix: 10.1.0.0/24"))
	hostname := m.get("hostname")
	if s, ok := l.text(hostname); ok && l.pattern(hostname, s) {
		n.Hostname = s
	}
	if main && hostname != nil && n.Hostname != nodePattern && n.Hostname != "" {
		l.at(hostname.pos, hostname.path, "%s is the main network, being the first: a node has its own name there; leave hostname out", n.Name)
	}
	if main {
		n.Hostname = nodePattern
	}
	iface := m.get("interface")
	if s, ok := l.text(iface); ok {
		if len(s) > 15 || strings.ContainsAny(s, "/ \t\n") || s == "." || s == ".." {
			l.at(iface.pos, iface.path, "%q is not the name of a network interface: at most 15 characters, no blank, no slash", clip(s))
		}
		n.Interface = s
	}
	gateway := m.get("gateway")
	if a, ok := l.addr(gateway); ok {
		n.Gateway = a
		l.inNetwork(gateway.pos, gateway.path, n, []netip.Addr{a})
	}
}

// pattern checks a host name pattern.
func (l *loader) pattern(v *value, s string) bool {
	if !strings.Contains(s, nodePattern) {
		l.at(v.pos, v.path, "%q lacks %s, the place of the node's name; write it as in mgt%s", clip(s), nodePattern, nodePattern)
		return false
	}
	if err := label(strings.ReplaceAll(s, nodePattern, "x")); err != nil {
		l.at(v.pos, v.path, "%q makes no host names: it may have a-z, 0-9, - and %s", clip(s), nodePattern)
		return false
	}
	return true
}

func (l *loader) checkOverlap(networks *value) {
	for i := range l.f.Networks {
		for j := range i {
			a, b := &l.f.Networks[j], &l.f.Networks[i]
			if a.Prefix.IsValid() && b.Prefix.IsValid() && a.Prefix.Overlaps(b.Prefix) {
				at := networks.child(b.Name).child("prefix")
				l.at(at.pos, at.path, "%s overlaps %s of %s; an address must belong to one network", b.Prefix, a.Prefix, a.Name)
			}
		}
	}
}

// inNetwork checks that addresses are hosts' addresses of a network.
func (l *loader) inNetwork(pos position, path string, n *Network, addrs []netip.Addr) {
	if n == nil || !n.Prefix.IsValid() {
		return
	}
	var outside, special []string
	for _, a := range addrs {
		switch {
		case !n.Prefix.Contains(a):
			outside = append(outside, a.String())
		case isReserved(n.Prefix, a):
			special = append(special, a.String())
		}
	}
	if len(outside) > 0 {
		l.at(pos, path, "%s lies outside %s, the network %s; give an address inside it", clip(Fold(outside)), n.Prefix, n.Name)
	}
	if len(special) > 0 {
		l.at(pos, path, "%s is not for hosts: the first and the last address of %s are the network's own", clip(Fold(special)), n.Prefix)
	}
}

// isReserved tells the first and the last address of an IPv4 network that has
// them (RFC 3021: a /31 has not).
func isReserved(n netip.Prefix, a netip.Addr) bool {
	if !a.Is4() || n.Bits() >= 31 {
		return false
	}
	return a == n.Addr() || !n.Contains(a.Next())
}
