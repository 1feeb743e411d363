package dns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"holdfast/cluster"
	"holdfast/internal/state"
)

// compiler turns a cluster file and snapshots of the state into tables. It
// does no I/O and reads no clock. What the file says is compiled once, when
// the compiler is made; of the catalog only what changed is compiled again.
// It is not safe for concurrent use; the tables it returns are.
type compiler struct {
	file     *cluster.File
	self     string                   // this node's name
	machines map[string]*cluster.Node // by folded name
	settings
	fixed table // what depends on the file alone

	virtual, services, nodes, addrs name // "virtual", "service.virtual" ...
	apex                            *node
	soa                             soa

	names  *nameTable
	units  map[string][]given
	uses   map[name]use
	owners map[netip.Addr][]holder
	held   map[string][]netip.Addr // the addresses of a unit
	good   lastGood

	bases    map[name]*zoneBase // zones of the file
	zoneCuts map[name]cut       // these with their static records, and delegations
	stored   storeRecords
	routes   map[string]*route // of delegations

	unregistered map[string]bool // services of the file that the catalog lacks, folded
	beginning    beginning
	now          func() time.Time
}

// contribution is what one unit of the catalog, a service or a node, adds to
// the virtual zone. A nil node is an empty non-terminal.
type contribution map[name]*node

// given is a part of a contribution as it is kept: there is one for each name
// of each unit, and a map for each unit would take twice the room.
type given struct {
	name name
	data *node
}

// use counts the units that give a name data, or need it to exist.
type use struct{ data, empty int32 }

// virtualShards keeps a change of one service cheap in a catalog of 100,000
// names: each of its names costs a copy of some fifty others.
const virtualShards = 2048

// newCompiler compiles what the file says; self is the node's name, for those
// who ask which server answered. Errors are names that DNS can't hold, which a
// file that passed cluster.Parse has not.
func newCompiler(file *cluster.File, set settings, self string) (*compiler, error) {
	c := &compiler{file: file, self: self, settings: set, machines: map[string]*cluster.Node{}, now: time.Now}
	for i := range file.Nodes {
		c.machines[state.Fold(file.Nodes[i].Name)] = &file.Nodes[i]
	}
	c.fixed = table{cuts: map[name]cut{}, trusted: trusted(file, set), rate: workerRate(set.rateLimit), transfer: set.transfer}
	for _, network := range file.Networks {
		c.fixed.networks = append(c.fixed.networks, network.Prefix)
	}
	if err := c.virtualNames(); err != nil {
		return nil, err
	}
	servers, err := c.nameservers()
	if err != nil {
		return nil, err
	}
	if c.bases, err = c.fileZones(servers); err != nil {
		return nil, err
	}
	c.routes = map[string]*route{}
	if err := c.checkStatics(); err != nil {
		return nil, err
	}
	c.layFile()
	c.apexOf(servers)
	c.fixed.explained = c.fixed.trusted
	if set.explain != nil {
		c.fixed.explained = append(slices.Clone(set.explain), loopbacks()...)
	}
	for domain, servers := range set.forward {
		c.fixed.cuts[domain] = cut{route: newRoute(domain, servers, set.forwardTimeout)}
		c.fixed.forwards = true
	}
	c.fixed.server = identity(self)
	c.fixed.homes = homes(file, self)
	c.good = lastGood{}
	c.reset()
	return c, nil
}

func (c *compiler) virtualNames() (err error) {
	if c.virtual, err = parseName(c.file.VirtualDomain); err != nil {
		return fmt.Errorf("dns: virtual domain: %w", err)
	}
	for label, to := range map[string]*name{"service": &c.services, "node": &c.nodes, "addr": &c.addrs} {
		var ok bool
		if *to, ok = c.virtual.child(label); !ok {
			return fmt.Errorf("dns: virtual domain %q is too long", c.file.VirtualDomain)
		}
	}
	return nil
}

// trusted is who may ask for names that are not ours.
func trusted(file *cluster.File, set settings) []netip.Prefix {
	list := slices.Clone(set.recursion)
	if set.recursion == nil {
		for _, network := range file.Networks {
			list = append(list, network.Prefix)
		}
	}
	return append(list, loopbacks()...)
}

func loopbacks() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
}

// identity is the zone of class CH that tells which server answered
// (RFC 4892 §3).
func identity(self string) *zone {
	z := &zone{label: "server.", names: newNameTable(1), any: rrset{kind: dns.TypeHINFO}}
	edit := z.names.edit()
	for _, n := range []name{"\x02id\x06server\x00", "\x08hostname\x04bind\x00"} {
		who := &node{}
		who.add(txtRecord(dns.ClassCHAOS, 0, self))
		edit.set(n, who)
	}
	z.names = edit.table
	return z
}

// apexOf prepares what stands at the origin of the virtual zone.
func (c *compiler) apexOf(servers []nameserver) {
	c.apex = &node{}
	for _, s := range servers {
		c.apex.add(s.record(seconds(c.zoneTTL), c.virtual))
	}
	c.apex.finish()
	c.soa = soa{
		origin: c.virtual, primary: primary(servers, c.virtual), mailbox: mailbox(c.virtual),
		ttl: seconds(c.zoneTTL), minimum: seconds(c.negativeTTL),
	}
}

// reset forgets the catalog. The names that hold the zone's kinds of names
// exist even while nothing is below them.
func (c *compiler) reset() {
	c.units = map[string][]given{}
	c.unregistered = map[string]bool{}
	c.uses = map[name]use{}
	c.owners, c.held = map[netip.Addr][]holder{}, map[string][]netip.Addr{}
	c.names = newNameTable(virtualShards)
	edit := c.names.edit()
	fixed := contribution{c.services: nil, c.nodes: nil, c.addrs: nil}
	origins := slices.AppendSeq(slices.Collect(maps.Keys(c.fixed.cuts)), maps.Keys(c.bases))
	for _, n := range origins { // what leads to them exists (RFC 8020 §3)
		for up := n.parent(); n.below(c.virtual) && up.below(c.virtual) && up != c.virtual; up = up.parent() {
			fixed[up] = nil
		}
	}
	c.replace(edit, "", fixed)
	c.names = edit.table
}

// rebuild compiles the whole catalog.
func (c *compiler) rebuild(snap *state.Snapshot) *table {
	c.reset()
	c.begin(snap)
	c.overlay(snap, nil, true)
	edit := c.names.edit()
	services, _ := snap.ServiceNames(nil)
	for service := range services {
		c.compileService(edit, snap, service)
	}
	catalog, _ := snap.Nodes(nil)
	for _, n := range catalog {
		c.compileNode(edit, snap, n.Name)
	}
	for _, n := range c.file.Nodes {
		c.compileNode(edit, snap, n.Name)
	}
	for _, s := range c.file.Services {
		if _, ok := services[s.Name]; !ok {
			c.compileService(edit, snap, s.Name)
		}
	}
	return c.publish(edit, snap)
}

// update compiles what changed since the last table.
func (c *compiler) update(snap *state.Snapshot, changed []state.Key) *table {
	c.begin(snap)
	c.overlay(snap, changed, false)
	edit := c.names.edit()
	services := map[string]bool{}
	for _, key := range changed {
		switch key.Table {
		case state.TableService:
			services[state.Fold(key.Name)] = true
		case state.TableNode, state.TableMember:
			c.compileNode(edit, snap, key.Name)
			onNode, _ := snap.NodeServices(nil, key.Name)
			for _, s := range onNode {
				services[state.Fold(s.Name)] = true
			}
		}
	}
	for service := range c.unregistered { // who is up may have changed
		services[service] = true
	}
	for service := range services {
		c.compileService(edit, snap, service)
	}
	return c.publish(edit, snap)
}

func (c *compiler) compileService(edit *nameEdit, snap *state.Snapshot, service string) {
	unit := serviceUnit(service)
	c.replace(edit, unit, c.service(snap, service))
	c.hold(edit, unit, c.servicePointers(snap, service))
}

func (c *compiler) compileNode(edit *nameEdit, snap *state.Snapshot, host string) {
	unit := nodeUnit(host)
	c.replace(edit, unit, c.node(snap, host))
	c.hold(edit, unit, c.nodePointers(snap, host))
}

func serviceUnit(service string) string { return "service/" + state.Fold(service) }
func nodeUnit(node string) string       { return "node/" + state.Fold(node) }

// replace puts a unit's new contribution in the place of its old one. A name
// that two units give data has the same data from both (addresses below addr).
func (c *compiler) replace(edit *nameEdit, unit string, next contribution) {
	prev, kept := c.units[unit], make([]given, 0, len(next))
	for n, data := range next {
		kept = append(kept, given{n, data})
		u := c.uses[n]
		if data != nil {
			u.data++
			edit.set(n, data)
		} else if u.empty++; u.data == 0 {
			edit.set(n, &emptyNonTerminal)
		}
		c.uses[n] = u
	}
	for _, g := range prev {
		u := c.uses[g.name]
		if g.data != nil {
			u.data--
		} else {
			u.empty--
		}
		c.uses[g.name] = u
		switch {
		case u.data == 0 && u.empty == 0:
			delete(c.uses, g.name)
			edit.remove(g.name)
		case u.data == 0 && g.data != nil:
			edit.set(g.name, &emptyNonTerminal)
		}
	}
	if c.units[unit] = kept; len(kept) == 0 {
		delete(c.units, unit)
	}
}

// publish makes the table of this moment. The serial is the index of the
// state it was made from: it never goes back and needs no clock.
func (c *compiler) publish(edit *nameEdit, snap *state.Snapshot) *table {
	authority := c.soa
	authority.serial = max(1, uint32(snap.Index()))
	apex := &node{sets: append(slices.Clone(c.apex.sets), rrset{
		kind: dns.TypeSOA, records: []record{authority.record(authority.ttl)},
	})}
	edit.set(c.virtual, apex)
	c.names = edit.table

	t := c.fixed
	t.version = snap.Version()
	t.cuts = maps.Clone(c.zoneCuts)
	maps.Copy(t.cuts, c.fixed.cuts) // where forwarders were configured, they are asked
	for _, c := range t.cuts {
		t.forwards = t.forwards || c.route != nil
	}
	if t.cuts[c.virtual].route != nil {
		return &t // forwarded instead, while a site migrates
	}
	t.virtual = &zone{
		origin: c.virtual, label: c.virtual.String(), serial: authority.serial, names: edit.table, catalog: true,
		negative: authority.negative(), any: anySet(authority.ttl), alias: c.datacenter(),
		addrs: c.addrs, addrsTTL: seconds(c.ttl),
	}
	t.cuts[c.virtual] = cut{zone: t.virtual}
	return &t
}

// datacenter is the cluster's name, which may stand where Consul's clients
// write a datacenter; "" when it would hide a name of the zone.
func (c *compiler) datacenter() string {
	whole, ok := c.virtual.child(strings.Split(c.file.Name, ".")...)
	if !ok || c.uses[whole] != (use{}) {
		return ""
	}
	return string(whole[:len(whole)-len(c.virtual)])
}

func anySet(ttl uint32) rrset {
	return rrset{kind: dns.TypeHINFO, records: []record{anyRecord(ttl)}}
}
