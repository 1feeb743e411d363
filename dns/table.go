package dns

import (
	"encoding/binary"
	"encoding/hex"
	"hash/maphash"
	"maps"
	"net/netip"

	"github.com/miekg/dns"
)

// table is everything that a query is answered from. It is immutable: the
// query path loads one pointer and reads, and no answer mixes two states.
type table struct {
	cuts      map[name]cut              // zone origins and forwarded domains
	virtual   *zone                     // of the catalog; nil while it is forwarded
	server    *zone                     // class CH: who answers
	homes     map[netip.Addr]netip.Addr // a node's addresses: the one on the main network
	trusted   []netip.Prefix            // who may have questions forwarded
	networks  []netip.Prefix            // of the cluster
	explained []netip.Prefix            // who may ask why a name gives what it gives
	transfer  transferSettings
	rate      float64 // of equal answers to strangers, per second and worker; 0: any
	forwards  bool    // some domain has forwarders
	version   uint64  // of the snapshot it was made from
}

// cut is where responsibility changes hands in the tree of names: below it
// answers come from the zone or, where forwarders were configured, from them.
type cut struct {
	zone       *zone
	delegation *delegation // to others; with a route where their addresses are known
	route      *route
}

// zone is one zone that this server is authoritative for.
type zone struct {
	origin   name
	label    string // presentation form, for metrics
	serial   uint32
	names    *nameTable
	negative record
	any      rrset
	// inside, when not empty, bounds a reverse zone that is larger than the
	// networks of the cluster: other addresses in it are not ours.
	inside []netip.Prefix
	// alias is a label (or labels) in wire form that may stand before the
	// origin and changes nothing: Consul's datacenter.
	alias string
	// reverse tells that names of the zone are those of addresses.
	reverse bool
	// addrs, in the virtual zone, is the name below which addresses spelled
	// in hexadecimal are names.
	addrs    name
	addrsTTL uint32
	// catalog tells that names come from the replicated state: what is
	// missing may be unknown instead of non-existent.
	catalog bool
}

// match finds who is responsible for a name: the cut with the most labels in
// common. lowered is a name in wire form and lower case.
func (t *table) match(lowered []byte) (cut, bool) {
	for rest := lowered; ; rest = rest[1+int(rest[0]):] {
		c, ok := t.cuts[name(rest)]
		if ok && (c.zone == nil || c.zone.holds(lowered)) {
			return c, true
		}
		if len(rest) == 1 {
			return cut{}, false
		}
	}
}

// holds tells whether a name under the zone's origin is the zone's: always,
// except in a reverse zone that reaches beyond the cluster's networks.
func (z *zone) holds(lowered []byte) bool {
	if len(z.inside) == 0 || len(lowered) == len(z.origin) {
		return true
	}
	p, ok := parseReverse(name(lowered))
	if !ok {
		return false
	}
	for _, in := range z.inside {
		if in.Bits() <= p.Bits() && in.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// find returns what the zone has at a name; nil when it does not exist. Where
// the zone has an alias, it finds the name without. q lends its memory.
func (z *zone) find(lowered []byte, q *query) *node {
	if front, ok := z.withoutAlias(lowered); ok {
		if front == 0 {
			return &emptyNonTerminal // of the alias itself
		}
		n := copy(q.scratch[:], lowered[:front])
		n += copy(q.scratch[n:], z.origin)
		lowered = q.scratch[:n]
	}
	n := z.names.get(lowered)
	if n == nil && z.addrs != "" {
		return z.spelled(lowered, &q.made)
	}
	return n
}

// withoutAlias tells how many bytes of a name stand before the alias.
func (z *zone) withoutAlias(lowered []byte) (front int, ok bool) {
	front = len(lowered) - len(z.origin) - len(z.alias)
	if z.alias == "" || front < 0 {
		return 0, false
	}
	return front, string(lowered[front:front+len(z.alias)]) == z.alias && onLabel(lowered, front)
}

// synthetic is room for a node that is made for one answer.
type synthetic struct {
	node    node
	sets    [1]rrset
	records [1]record
	wire    [offsetData + 16]byte
}

// spelled makes the node of an address that the first label spells (8 or 32
// hexadecimal digits), directly below z.addrs; nil when it spells none.
func (z *zone) spelled(lowered []byte, room *synthetic) *node {
	size := int(lowered[0])
	if size != 8 && size != 32 || len(lowered) != 1+size+len(z.addrs) || string(lowered[1+size:]) != string(z.addrs) {
		return nil
	}
	data := room.wire[offsetData : offsetData+size/2]
	if _, err := hex.Decode(data, lowered[1:1+size]); err != nil {
		return nil
	}
	kind := dns.TypeA
	if size == 32 {
		kind = dns.TypeAAAA
	}
	binary.BigEndian.PutUint16(room.wire[:], kind)
	binary.BigEndian.PutUint16(room.wire[2:], dns.ClassINET)
	binary.BigEndian.PutUint32(room.wire[offsetTTL:], z.addrsTTL)
	binary.BigEndian.PutUint16(room.wire[offsetLength:], uint16(len(data)))
	room.records[0] = record{wire: room.wire[:offsetData+len(data)]}
	room.sets[0] = rrset{kind: kind, records: room.records[:]}
	room.node = node{sets: room.sets[:]}
	return &room.node
}

// onLabel tells whether a label begins at an offset of a name: bytes within a
// label may look like anything.
func onLabel(lowered []byte, at int) bool {
	i := 0
	for i < at && lowered[i] != 0 {
		i += 1 + int(lowered[i])
	}
	return i == at
}

var emptyNonTerminal node // constant: never written

// nameTable is an immutable map from names to nodes that can be changed at
// the cost of the shards the change touches.
type nameTable struct {
	seed   maphash.Seed
	shards []map[name]*node // a power of two
}

func newNameTable(shards int) *nameTable {
	return &nameTable{seed: maphash.MakeSeed(), shards: make([]map[name]*node, shards)}
}

// get returns the node of a name in lower case; nil when there is none.
func (t *nameTable) get(lowered []byte) *node {
	if len(t.shards) == 1 {
		return t.shards[0][name(lowered)]
	}
	return t.shards[maphash.Bytes(t.seed, lowered)&uint64(len(t.shards)-1)][name(lowered)]
}

// size is the number of names.
func (t *nameTable) size() int {
	n := 0
	for _, shard := range t.shards {
		n += len(shard)
	}
	return n
}

// edit starts a change; t stays as it is.
func (t *nameTable) edit() *nameEdit {
	shards := make([]map[name]*node, len(t.shards))
	copy(shards, t.shards)
	return &nameEdit{table: &nameTable{seed: t.seed, shards: shards}, owned: make([]bool, len(shards))}
}

// nameEdit builds the next nameTable. Its table must not be used before the
// last change, nor changed after the first use.
type nameEdit struct {
	table *nameTable
	owned []bool // which shards are copies already
}

func (e *nameEdit) shard(n name) map[name]*node {
	i := maphash.String(e.table.seed, string(n)) & uint64(len(e.owned)-1)
	if !e.owned[i] {
		e.owned[i] = true
		if e.table.shards[i] = maps.Clone(e.table.shards[i]); e.table.shards[i] == nil {
			e.table.shards[i] = map[name]*node{}
		}
	}
	return e.table.shards[i]
}

func (e *nameEdit) set(n name, to *node) { e.shard(n)[n] = to }
func (e *nameEdit) remove(n name)        { delete(e.shard(n), n) }
