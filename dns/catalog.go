package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"holdfast/internal/state"
)

// service compiles the names of one service:
//
//	SERVICE.service         TAG.SERVICE.service
//	_SERVICE._tcp.service   _SERVICE._TAG.service
//
// _tcp always means all instances, _udp those tagged "udp" where there are any.
// Each has A, AAAA, SRV and TXT of the instances that are healthy. A service
// without a healthy instance has no names, as with Consul: NXDOMAIN, not an
// empty answer, unless its rules say never_empty. One whose name holds a dot, or begins with an underscore, has
// none either: in front of a dot stands a tag, and _x._y is RFC 2782's.
func (c *compiler) service(snap *state.Snapshot, service string) contribution {
	all, _ := snap.Instances(nil, service)
	label := state.Fold(service)
	delete(c.unregistered, label)
	if len(all) == 0 && c.inFile(label) {
		c.unregistered[label] = true
		all = c.fromFile(snap, label)
	}
	if len(all) == 0 {
		c.good.forget(label)
		return nil
	}
	if strings.Contains(label, ".") || strings.HasPrefix(label, "_") {
		return nil
	}
	r := c.rulesOf(label)
	out := contribution{}
	tags := byTag(all)
	if n := c.answering(snap, r, label, "", all); n != nil {
		c.put(out, n, c.services, label)
		c.put(out, n, c.services, "_"+label, "_tcp")
		if tags["udp"] == nil {
			c.put(out, n, c.services, "_"+label, "_udp")
		}
	} else {
		c.put(out, c.denied(r, service, all), c.services, label)
	}
	for tag, tagged := range tags {
		n := c.answering(snap, r, label, tag, tagged)
		if n == nil {
			continue
		}
		c.put(out, n, c.services, append(strings.Split(tag, "."), label)...)
		if tag != "tcp" && !strings.Contains(tag, ".") {
			c.put(out, n, c.services, "_"+label, "_"+tag)
		}
	}
	return out
}

// answering makes the node of a service's instances, all or those with a tag,
// that answers are given from; nil when there is none.
func (c *compiler) answering(snap *state.Snapshot, r rules, service, tag string, all []state.Instance) *node {
	chosen := snap.Healthy(all, r.onlyPassing)
	var why *extended
	switch {
	case c.unregistered[service]:
		why = reasonDayZero
	case r.neverEmpty:
		if len(chosen) > 0 {
			c.good.remember(service, tag, chosen)
		} else {
			last, known := c.good.among(service, tag, all)
			chosen, why = alive(snap, last), newExtended(dns.ExtendedErrorCodeStaleAnswer, neverEmptyReason(service, known))
		}
	}
	n := c.instances(chosen, r.ttl)
	if n != nil {
		n.traits = r.traits(why)
	}
	return n
}

func neverEmptyReason(service string, known bool) string {
	if known {
		return "no instance of " + service + " is healthy: these were the last that were"
	}
	return "no instance of " + service + " is healthy, nor was since this server's start: these are all"
}

// denied makes the node of a service that exists and has no healthy instance:
// NXDOMAIN, with the reason.
func (c *compiler) denied(r rules, service string, all []state.Instance) *node {
	reason := fmt.Sprintf("%s has no healthy instance: %d of %d fail their checks", service, len(all), len(all))
	n := &node{traits: r.traits(newExtended(dns.ExtendedErrorCodeOther, reason))}
	n.traits.denied = true
	return n
}

func byTag(all []state.Instance) map[string][]state.Instance {
	tags := map[string][]state.Instance{}
	for _, i := range all {
		seen := map[string]bool{}
		for _, tag := range i.Service.Tags {
			if tag = state.Fold(tag); tag != "" && !seen[tag] {
				seen[tag] = true
				tags[tag] = append(tags[tag], i)
			}
		}
	}
	return tags
}

// instances makes the records of a set of instances; nil when none of them
// has an address.
func (c *compiler) instances(healthy []state.Instance, ttl uint32) *node {
	n := &node{}
	glued := map[name]bool{}
	for _, i := range healthy {
		addr := i.Addr().Unmap()
		if !addr.IsValid() || addr.Zone() != "" {
			continue
		}
		n.addAddress(addr, ttl)
		n.add(txtRecord(classIN, ttl, describe(i)))
		target, ok := c.target(i, addr)
		if !ok {
			continue
		}
		var glue []record
		if !glued[target] { // once an answer is enough
			glued[target] = true
			glue = []record{addressRecord(addr, seconds(c.ttl))}
		}
		n.add(srvRecord(ttl, weight(i), i.Service.Port, target, glue))
	}
	if len(n.sets) == 0 {
		return nil
	}
	n.finish()
	return n
}

// target is a name that resolves to where an instance is: its node's or, when
// the instance has an address of its own, that address spelled in hexadecimal
// below addr, as Consul does it.
func (c *compiler) target(i state.Instance, addr netip.Addr) (name, bool) {
	if addr == i.Node.Address.Unmap() {
		if n, ok := c.nodes.child(strings.Split(state.Fold(i.Node.Name), ".")...); ok {
			return n, true
		}
	}
	return c.addrs.child(hexadecimal(addr))
}

func hexadecimal(addr netip.Addr) string {
	var b strings.Builder
	for _, v := range addr.AsSlice() {
		b.WriteByte(hexDigits[v>>4])
		b.WriteByte(hexDigits[v&0xf])
	}
	return b.String()
}

// weight is RFC 2782's, by the instance's health.
func weight(i state.Instance) uint16 {
	w := i.Service.Weights.Passing
	if i.Status() != state.Passing {
		w = i.Service.Weights.Warning
	}
	return max(w, 1)
}

// describe is the text of an instance: attributes as in RFC 1464.
func describe(i state.Instance) string {
	var b strings.Builder
	b.WriteString("node=" + i.Node.Name + " id=" + i.Service.ID)
	for _, tag := range i.Service.Tags {
		b.WriteString(" tag=" + tag)
	}
	return b.String()[:min(b.Len(), maxText)]
}

// maxText bounds what a TXT record tells, in bytes.
const maxText = 1024

// put gives names below parent their data, and what is between them and the
// zone its existence. Labels that DNS can't hold are left out: not ok.
func (c *compiler) put(out contribution, data *node, parent name, labels ...string) (name, bool) {
	n, ok := parent.child(labels...)
	if !ok {
		return "", false
	}
	out[n] = data
	for up := n.parent(); up != c.virtual; up = up.parent() {
		if out[up] == nil {
			out[up] = nil
		}
	}
	return n, true
}

// node compiles NODE.node: the catalog's address or, for machines that run no
// agent and before there is a catalog, the cluster file's. A node's name keeps
// its address however the node is: it is a fact, not a choice among several.
func (c *compiler) node(snap *state.Snapshot, host string) contribution {
	n := &node{}
	ttl := seconds(c.ttl)
	known, _ := snap.Node(nil, host)
	if known != nil && known.Address.IsValid() {
		n.addAddress(known.Address, ttl)
	} else if machine := c.machines[state.Fold(host)]; machine != nil {
		n.addAddress(machine.Addresses[c.file.Main().Name], ttl)
	}
	if known != nil {
		for key, value := range known.Meta {
			text := key + "=" + value
			n.add(txtRecord(classIN, ttl, text[:min(len(text), maxText)]))
		}
	}
	if len(n.sets) == 0 {
		return nil
	}
	n.finish()
	out := contribution{}
	c.put(out, n, c.nodes, strings.Split(state.Fold(host), ".")...)
	return out
}

// seconds is a TTL on the wire (RFC 2181 §8); ValidateSection keeps it small.
func seconds(d time.Duration) uint32 { return uint32(d / time.Second) }
