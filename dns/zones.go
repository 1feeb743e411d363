package dns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"holdfast/cluster"
)

const classIN = dns.ClassINET

// nameserver is a node that runs this server.
type nameserver struct {
	name name
	addr netip.Addr
}

func (s nameserver) record(ttl uint32, origin name) record {
	r := nameRecord(dns.TypeNS, ttl, s.name, origin)
	if s.addr.IsValid() {
		r.glue = []record{addressRecord(s.addr, ttl)}
	}
	return r
}

// nameservers lists the nodes whose role runs the DNS server; where no role
// says so, those that are servers of the store.
func (c *compiler) nameservers() ([]nameserver, error) {
	main := c.file.Main()
	var list []nameserver
	for _, machine := range servingNodes(c.file) {
		n, err := c.hostname(machine.Name)
		if err != nil {
			return nil, err
		}
		if addr, ok := machine.Addresses[main.Name]; ok {
			list = append(list, nameserver{name: n, addr: addr.Unmap()})
		}
	}
	return list, nil
}

func servingNodes(file *cluster.File) []cluster.Node {
	var list []cluster.Node
	for _, machine := range file.Nodes {
		role := slices.IndexFunc(file.Roles, func(r cluster.Role) bool { return r.Name == machine.Role })
		if role >= 0 && slices.Contains(file.Roles[role].Run, "dns") {
			list = append(list, machine)
		}
	}
	if len(list) == 0 {
		return file.Servers()
	}
	return list
}

// hostname is a host's name in the cluster's domain; without a domain, below
// node in the virtual one.
func (c *compiler) hostname(host string) (name, error) {
	parent := c.nodes
	if c.file.Domain != "" {
		var err error
		if parent, err = parseName(c.file.Domain); err != nil {
			return "", fmt.Errorf("dns: domain: %w", err)
		}
	}
	h, err := parseName(host)
	if err != nil {
		return "", fmt.Errorf("dns: hostname: %w", err)
	}
	n := name(string(h[:len(h)-1]) + string(parent))
	if len(n) > maxName {
		return "", fmt.Errorf("dns: hostname %s in %s: longer than %d bytes", host, parent, maxName)
	}
	return n, nil
}

// primary is the SOA's MNAME: the first server of the file, so that every
// node says the same.
func primary(servers []nameserver, origin name) name {
	if len(servers) == 0 {
		return origin
	}
	return servers[0].name
}

// mailbox is the SOA's RNAME (RFC 2142 §7).
func mailbox(origin name) name {
	if n, ok := origin.child("hostmaster"); ok {
		return n
	}
	return origin
}

// maxFileNegative bounds how long the absence of a name in the file's zones is
// remembered, in seconds: a machine that is added should not wait.
const maxFileNegative = 60

// zoneBuilder collects one zone of the cluster file.
type zoneBuilder struct {
	origin name
	nodes  map[name]*node
	inside []netip.Prefix // of a partial reverse zone
}

func newZoneBuilder(origin name) *zoneBuilder {
	return &zoneBuilder{origin: origin, nodes: map[name]*node{origin: {}}}
}

// at returns the node of a name in the zone, and makes it and all between it
// and the origin exist.
func (b *zoneBuilder) at(n name) *node {
	for up := n; b.nodes[up] == nil; up = up.parent() {
		b.nodes[up] = &node{}
	}
	return b.nodes[n]
}

// base ends the collection.
func (b *zoneBuilder) base(c *compiler, servers []nameserver) *zoneBase {
	ttl := seconds(c.zoneTTL)
	authority := soa{
		origin: b.origin, primary: primary(servers, b.origin), mailbox: mailbox(b.origin),
		ttl: ttl, minimum: min(ttl, maxFileNegative),
	}
	if c.file.Domain != "" {
		if domain, err := parseName(c.file.Domain); err == nil {
			authority.mailbox = mailbox(domain)
		}
	}
	apex := b.at(b.origin)
	for _, s := range servers {
		apex.add(s.record(ttl, b.origin))
	}
	z := zone{
		origin: b.origin, label: b.origin.String(), names: newNameTable(shardsFor(len(b.nodes))), inside: b.inside,
		reverse: b.origin.below(reverse4) || b.origin.below(reverse6),
		any:     anySet(ttl),
	}
	edit := z.names.edit()
	for n, data := range b.nodes {
		data.finish()
		edit.set(n, data)
	}
	z.names = edit.table
	return &zoneBase{zone: z, soa: authority}
}

// shardsFor is how many shards a table has so that a change copies a few
// hundred names: a power of two.
func shardsFor(names int) int {
	shards := 1
	for shards < virtualShards && names/shards > 256 {
		shards *= 2
	}
	return shards
}

// host is a name of the cluster's zone with its address.
type host struct {
	name name
	addr netip.Addr
}

// hosts lists all that the file gives a name in the domain.
func (c *compiler) hosts() ([]host, error) {
	var list []host
	var errs error
	add := func(hostname string, addr netip.Addr) {
		if hostname == "" || !addr.IsValid() || errs != nil {
			return
		}
		n, err := c.hostname(hostname)
		if err != nil {
			errs = err
			return
		}
		list = append(list, host{n, addr.Unmap()})
	}
	main := c.file.Main()
	for _, machine := range c.file.Nodes {
		add(machine.Name, machine.Addresses[main.Name])
		for _, network := range c.file.Networks {
			add(machine.Hostnames[network.Name], machine.Addresses[network.Name])
		}
		if machine.BMC != nil {
			add(machine.BMC.Hostname, machine.BMC.Address)
		}
	}
	for _, vip := range c.file.VIPs {
		add(vip.Hostname, vip.Address)
	}
	return list, errs
}

// fileZones compiles the cluster's own zone, the reverse zones of its networks
// and the zones of static records alone.
func (c *compiler) fileZones(servers []nameserver) (map[name]*zoneBase, error) {
	hosts, err := c.hosts()
	if err != nil {
		return nil, err
	}
	reverse := c.reverseBuilders()
	var builders []*zoneBuilder
	for _, b := range reverse {
		builders = append(builders, b)
	}
	var domain *zoneBuilder
	if c.file.Domain != "" {
		origin, err := parseName(c.file.Domain)
		if err != nil {
			return nil, fmt.Errorf("dns: domain: %w", err)
		}
		domain = newZoneBuilder(origin)
		builders = append(builders, domain)
	}
	for _, origin := range c.zones {
		builders = append(builders, newZoneBuilder(origin))
	}
	ttl := seconds(c.zoneTTL)
	for _, h := range hosts {
		if domain != nil {
			domain.at(h.name).addAddress(h.addr, ttl)
		}
		if b := builderOf(reverse, h.addr); b != nil {
			b.at(reverseName(h.addr, h.addr.BitLen())).add(nameRecord(dns.TypePTR, ttl, h.name, b.origin))
		}
	}
	cuts := append(slices.Collect(maps.Keys(c.forward)), c.virtual)
	for _, b := range builders {
		cuts = append(cuts, b.origin)
	}
	bases := map[name]*zoneBase{}
	for _, b := range builders {
		for _, n := range cuts { // what leads to them exists (RFC 8020 §3)
			if n != b.origin && n.below(b.origin) {
				b.at(n.parent())
			}
		}
		bases[b.origin] = b.base(c, servers)
	}
	return bases, nil
}

// reverseBuilders makes a builder for each reverse zone of the networks.
func (c *compiler) reverseBuilders() map[name]*zoneBuilder {
	all := map[name]*zoneBuilder{}
	whole := map[name]bool{}
	for _, network := range c.file.Networks {
		for _, z := range reverseZones(network.Prefix) {
			if all[z.origin] == nil {
				all[z.origin] = newZoneBuilder(z.origin)
			}
			whole[z.origin] = whole[z.origin] || !z.partial
			all[z.origin].inside = append(all[z.origin].inside, network.Prefix.Masked())
		}
	}
	for origin := range whole {
		if whole[origin] {
			all[origin].inside = nil
		}
	}
	return all
}

// builderOf finds the zone with the longest name that an address's PTR
// belongs in; nil when the address is in no network of the cluster.
func builderOf(reverse map[name]*zoneBuilder, addr netip.Addr) *zoneBuilder {
	for n := reverseName(addr, addr.BitLen()); n != root; n = n.parent() {
		b := reverse[n]
		if b == nil {
			continue
		}
		if len(b.inside) == 0 || slices.ContainsFunc(b.inside, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return b
		}
	}
	return nil
}
