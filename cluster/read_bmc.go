package cluster

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

func (s *nodeSet) readBMC(v *value) {
	m, ok := s.mapping(v)
	if !ok {
		return
	}
	addrs := s.bmcAddresses(m.need("address", `address: "10.2.0.[101-104]"`))
	hostnames := s.bmcHostnames(m.get("hostname"))
	credentials, _ := s.secretRef(m.get("credentials"))
	m.done()
	for i := range s.nodes {
		bmc := &BMC{Credentials: credentials}
		if addrs != nil {
			bmc.Address = addrs[i]
		}
		if hostnames != nil {
			bmc.Hostname = hostnames[i]
		}
		s.nodes[i].BMC = bmc
	}
}

func (s *nodeSet) bmcAddresses(v *value) []netip.Addr {
	items, ok := s.perNode(v, "address")
	if !ok {
		return nil
	}
	addrs, ok := s.addrs(v, items)
	if !ok {
		return nil
	}
	var outside []string
	for _, a := range addrs {
		at := slices.IndexFunc(s.f.Networks, func(n Network) bool { return n.Prefix.IsValid() && n.Prefix.Contains(a) })
		if at < 0 {
			outside = append(outside, a.String())
			continue
		}
		s.inNetwork(v.pos, v.path, &s.f.Networks[at], []netip.Addr{a})
	}
	if len(outside) > 0 && !s.lostNetworks {
		s.at(v.pos, v.path, "%s lies outside every network; add the network, or give an address inside one", clip(Fold(outside)))
	}
	s.addresses.take(s.problems, v.pos, v.path, items)
	return addrs
}

// bmcHostnames reads a pattern such as bmc{node}, or a folded list.
func (s *nodeSet) bmcHostnames(v *value) []string {
	if v == nil || !strings.Contains(v.text, nodePattern) {
		hostnames, ok := s.perNode(v, "host name")
		if !ok {
			return nil
		}
		s.claim(v.pos, v.path, hostnames)
		return hostnames
	}
	if !s.pattern(v, v.text) {
		return nil
	}
	hostnames := make([]string, len(s.names))
	for i, name := range s.names {
		hostnames[i] = strings.ReplaceAll(v.text, nodePattern, name)
	}
	s.claim(v.pos, v.path, hostnames)
	return hostnames
}

// claim checks host names and takes them in the cluster's zone.
func (l *loader) claim(pos position, path string, hostnames []string) {
	for _, name := range hostnames {
		if err := label(name); err != nil {
			l.at(pos, path, "%v", err)
			return
		}
	}
	l.hostnames.take(l.problems, pos, path, hostnames)
}

// claimHostnames takes the set's names in the networks beside the main one.
func (s *nodeSet) claimHostnames(m *mapping) {
	addresses, overrides := m.v.child("addresses"), m.v.child("hostnames")
	for i := range s.f.Networks {
		network := s.f.Networks[i].Name
		at := overrides.child(network)
		if at != nil && addresses.child(network) == nil {
			s.at(at.pos, at.path, "a name in %s, but no address there; give both or none", network)
			continue
		}
		if at == nil {
			at = addresses.child(network)
		}
		var hostnames []string
		for j := range s.nodes {
			if name := s.nodes[j].Hostnames[network]; name != "" && name != s.names[j] {
				hostnames = append(hostnames, name)
			}
		}
		if at != nil && i > 0 && !s.bad {
			s.claim(at.pos, at.path, hostnames)
		}
	}
}

// secretRef reads {file: /path}.
func (p *problems) secretRef(v *value) (SecretRef, bool) {
	if v == nil || v.broken {
		return SecretRef{}, false
	}
	if v.kind != object {
		// Not quoted: it may be the secret itself.
		p.at(v.pos, v.path, "secrets do not stand in the cluster file; write {file: /etc/holdfast/secrets/NAME}")
		return SecretRef{}, false
	}
	m, _ := p.mapping(v)
	file := m.need("file", "file: /etc/holdfast/secrets/NAME")
	path, ok := p.text(file)
	if ok && !filepath.IsAbs(path) {
		p.at(file.pos, file.path, "%q is not an absolute path", clip(path))
		ok = false
	}
	m.done()
	return SecretRef{File: path}, ok
}
