package dns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"holdfast/internal/state"
)

// Kinds of documents in the store.
const (
	kindRecord = "dns/record" // key: the record without TTL and class; value: its TTL in seconds
	kindFile   = "dns/file"   // key: "sum"; value: the hash of the leader's cluster file
)

// zoneBase is a zone as the cluster file makes it, and with what the store's
// records make of it.
type zoneBase struct {
	zone        zone // of the file: without an SOA
	soa         soa
	delegations map[name][]static // of the file
	names       *nameTable        // with the store's records
}

// storeRecords are the static records of the store.
type storeRecords struct {
	at    map[name]map[string]static // by owner and key
	under map[name]int               // how many owners are below a name
}

// overlay brings the store's records into the zones, and gives these the
// serial of this moment: all records, or those that keys name. It costs what
// changed, not what there is.
func (c *compiler) overlay(snap *state.Snapshot, keys []state.Key, all bool) {
	if !all && !slices.ContainsFunc(keys, isZoneKey) {
		return
	}
	docs, changed := snap.Documents(nil, kindRecord)
	touched := map[name]bool{}
	if all {
		c.stored = storeRecords{at: map[name]map[string]static{}, under: map[name]int{}}
		for _, base := range c.bases {
			base.names = base.zone.names
		}
		for _, d := range docs {
			c.storeRecord(d, d.Key, touched)
		}
	} else {
		for _, k := range keys {
			if key, ok := strings.CutPrefix(k.Name, kindRecord+"/"); ok && k.Table == state.TableDocument {
				d, _ := snap.Document(nil, kindRecord, key)
				c.storeRecord(d, key, touched)
			}
		}
	}
	edits := map[*zoneBase]*nameEdit{}
	for n := range touched {
		base := c.baseOf(n)
		if edits[base] == nil {
			edits[base] = base.names.edit()
		}
		c.layName(base, edits[base], n)
	}
	for base, edit := range edits {
		base.names = edit.table
	}
	c.publishZones(zoneSerial(snap, changed))
}

// storeRecord takes a document, nil when it is gone, into the records of its
// owner, and notes the names that may look different for it.
func (c *compiler) storeRecord(d *state.Document, key string, touched map[name]bool) {
	owner, _, _ := strings.Cut(key, " ")
	n, err := wireName(owner)
	if err != nil || c.baseOf(n) == nil {
		return // of another file than this node's, or not ours
	}
	base := c.baseOf(n)
	had := len(c.stored.at[n]) > 0
	delete(c.stored.at[n], key)
	if d != nil {
		if s, err := stored(d, c.file.Domain); err == nil { // else of a later version
			if c.stored.at[n] == nil {
				c.stored.at[n] = map[string]static{}
			}
			c.stored.at[n][key] = s
		}
	}
	has := len(c.stored.at[n]) > 0
	if !has {
		delete(c.stored.at, n)
	}
	touched[n] = true
	if had == has {
		return
	}
	for up := n; up != base.zone.origin; {
		up = up.parent()
		c.stored.under[up] += boolInt(has) - boolInt(had)
		touched[up] = true
	}
}

// publishZones makes the zones and delegations of this moment.
func (c *compiler) publishZones(serial uint32) {
	c.zoneCuts = map[name]cut{}
	for origin, base := range c.bases {
		z := base.zone
		authority := base.soa
		authority.serial, z.serial = serial, serial
		edit := base.names.edit()
		apex := edit.table.get([]byte(origin))
		edit.set(origin, &node{sets: append(slices.Clone(apex.sets), rrset{kind: dns.TypeSOA, records: []record{authority.record(authority.ttl)}})})
		z.names, z.negative = edit.table, authority.negative()
		c.zoneCuts[origin] = cut{zone: &z}
		maps.Copy(c.zoneCuts, c.delegate(&z, c.delegations(base)))
	}
}

// delegations are those of the file and the store in a zone.
func (c *compiler) delegations(base *zoneBase) map[name][]static {
	found := maps.Clone(base.delegations)
	for n, records := range c.stored.at {
		if c.baseOf(n) != base || n == base.zone.origin {
			continue
		}
		for _, key := range sortedKeys(records) {
			if s := records[key]; s.rr.Header().Rrtype == dns.TypeNS {
				found[n] = append(slices.Clip(found[n]), s)
			}
		}
	}
	return found
}

// zoneSerial never goes back and needs no clock: the index of the log at which
// the records in the store last changed or the leader took over another file.
// The same on all nodes; 1 before there is a store.
func zoneSerial(snap *state.Snapshot, records uint64) uint32 {
	serial := uint64(1)
	if records > 1 {
		serial = records
	}
	if d, _ := snap.Document(nil, kindFile, "sum"); d != nil {
		serial = max(serial, d.ModifyIndex)
	}
	return uint32(serial)
}

// baseOf is the zone of the cluster file that a name belongs in; nil for none.
func (c *compiler) baseOf(n name) *zoneBase {
	for up := n; ; up = up.parent() {
		if base := c.bases[up]; base != nil && base.zone.holds([]byte(n)) {
			return base
		}
		if up == root {
			return nil
		}
	}
}

// layFile lays the file's own records over the zones of its nodes.
func (c *compiler) layFile() {
	c.stored = storeRecords{at: map[name]map[string]static{}, under: map[name]int{}}
	owners := map[name]bool{}
	for _, s := range c.statics {
		if c.stored.at[s.owner] == nil {
			c.stored.at[s.owner] = map[string]static{}
		}
		c.stored.at[s.owner][s.key()] = s
		base := c.baseOf(s.owner)
		for up := s.owner; !owners[up]; up = up.parent() {
			if owners[up] = true; up == base.zone.origin {
				break
			}
			c.stored.under[up.parent()]++
		}
	}
	for _, base := range c.bases {
		base.names = base.zone.names
		base.delegations = map[name][]static{}
		base.delegations = c.delegations(base)
		edit := base.names.edit()
		for n := range owners {
			if c.baseOf(n) == base {
				c.layName(base, edit, n)
			}
		}
		base.zone.names = edit.table
	}
}

// layName makes a name of a zone from what the file has there and the records
// of the store. Of a name that has a CNAME and other data the CNAME is left
// out: the CLI refuses such a pair, but two nodes may be told at once, and
// then all must agree.
func (c *compiler) layName(base *zoneBase, edit *nameEdit, owner name) {
	old := base.zone.names.get([]byte(owner))
	records := c.stored.at[owner]
	switch {
	case len(records) > 0:
	case old != nil:
		edit.set(owner, old)
		return
	case c.stored.under[owner] > 0:
		edit.set(owner, &emptyNonTerminal) // what leads to a name exists
		return
	default:
		edit.remove(owner)
		return
	}
	n := &node{}
	if old != nil {
		for _, set := range old.sets {
			n.sets = append(n.sets, rrset{kind: set.kind, records: slices.Clone(set.records)})
		}
	}
	for _, key := range sortedKeys(records) {
		r, err := records[key].record()
		if err != nil {
			continue // it was packed once, when it was read
		}
		if set := n.find(r.kind()); set == nil || !slices.ContainsFunc(set.records, r.saysTheSame) {
			n.add(r)
		}
	}
	n.finish()
	n.levelTTLs()
	if alias := n.find(dns.TypeCNAME); alias != nil && (len(n.sets) > 1 || owner == base.zone.origin) {
		n.sets = slices.DeleteFunc(n.sets, func(s rrset) bool { return s.kind == dns.TypeCNAME })
	} else if alias != nil {
		alias.records = alias.records[:1]
	}
	edit.set(owner, n)
}

// delegate makes the cuts below which others are responsible. Where the
// addresses of these are known, questions of clients that want recursion are
// put to them; others are told whom to ask.
func (c *compiler) delegate(z *zone, delegations map[name][]static) map[name]cut {
	cuts := map[name]cut{}
	for owner, servers := range delegations {
		set := rrset{kind: dns.TypeNS}
		var addrs []netip.AddrPort
		for _, s := range servers {
			r, err := s.record()
			if err != nil {
				continue
			}
			if at := z.names.get([]byte(s.targetName())); at != nil {
				for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
					if found := at.find(kind); found != nil {
						for _, glue := range found.records {
							addr, _ := netip.AddrFromSlice(glue.wire[offsetData:])
							addrs = append(addrs, netip.AddrPortFrom(addr, Port))
							r.glue = append(r.glue, record{wire: glue.wire})
						}
					}
				}
			}
			set.records = append(set.records, r)
		}
		d := &delegation{origin: owner, parent: z, servers: set}
		if at := z.names.get([]byte(owner)); at != nil {
			d.ds = at.find(dns.TypeDS)
		}
		cuts[owner] = cut{delegation: d, route: c.delegatedRoute(owner, addrs)}
	}
	return cuts
}

// delegatedRoute keeps what is known of the servers of a delegation for as
// long as they are the same.
func (c *compiler) delegatedRoute(domain name, addrs []netip.AddrPort) *route {
	if len(addrs) == 0 {
		return nil
	}
	addrs = addrs[:min(len(addrs), maxForwarders)]
	key := fmt.Sprint(domain, addrs)
	r := c.routes[key]
	if r == nil {
		r = newRoute(domain, addrs, c.forwardTimeout)
		c.routes[key] = r
	}
	return r
}

// delegation is a name from which on others are responsible.
type delegation struct {
	origin  name
	parent  *zone
	servers rrset  // NS
	ds      *rrset // nil: none
}

// isZoneKey tells whether a change in the store changes the zones.
func isZoneKey(k state.Key) bool {
	return k.Table == state.TableDocument && (strings.HasPrefix(k.Name, kindRecord+"/") || strings.HasPrefix(k.Name, kindFile+"/"))
}
