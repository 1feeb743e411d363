package cluster

import (
	"slices"
	"strconv"
	"time"
)

// Bounds of what VRRP can say: RFC 9568 §5.2.7 gives the interval 12 bits of
// centiseconds, RFC 3768 §5.3.7 a byte of seconds.
const (
	minAdvertise    = 10 * time.Millisecond
	maxAdvertise    = 40950 * time.Millisecond
	maxAdvertiseV2  = 255 * time.Second
	maxPreemptDelay = time.Hour
)

// vipDefaults reads what the VIPs have unless they say otherwise.
func (l *loader) vipDefaults(v *value) VIP {
	defaults := VIP{Version: 3, Advertise: time.Second}
	if m, ok := l.mapping(v); ok {
		l.readTiming(m, &defaults)
		defaults.VRRP = l.readVRRP(m.get("vrrp"), Section{})
		m.done()
	}
	return defaults
}

func (l *loader) readTiming(m *mapping, vip *VIP) {
	version := m.get("version")
	if n, ok := l.integer(version, 2, 3, ""); ok {
		vip.Version = int(n)
	}
	advertise := m.get("advertise")
	longest := time.Duration(maxAdvertise)
	if vip.Version == 2 {
		longest = maxAdvertiseV2
	}
	if d, ok := l.duration(advertise, minAdvertise, longest); ok {
		vip.Advertise = d
	}
	at := advertise
	if at == nil {
		at = version
	}
	switch {
	case at == nil || at.broken:
	case vip.Version == 2 && vip.Advertise%time.Second != 0:
		l.at(at.pos, at.path, "version 2 with an interval of %s; it has whole seconds", vip.Advertise)
	case vip.Version == 3 && vip.Advertise > maxAdvertise:
		l.at(at.pos, at.path, "version 3 with an interval of %s; the range is %s to %s", vip.Advertise, minAdvertise, time.Duration(maxAdvertise))
	case vip.Version == 3 && vip.Advertise%minAdvertise != 0:
		l.at(at.pos, at.path, "%s; version 3 counts in steps of %s", vip.Advertise, minAdvertise)
	}
	if d, ok := l.duration(m.get("preempt_delay"), 0, maxPreemptDelay); ok {
		vip.PreemptDelay = d
	}
}

// readVRRP leaves the keys that only vrrp knows to it. A key of the VIP
// replaces the one of the defaults as a whole.
func (l *loader) readVRRP(v *value, defaults Section) Section {
	m, ok := l.mapping(v)
	if !ok {
		return defaults
	}
	merged := &value{kind: object, pos: m.v.pos, path: m.v.path, entries: slices.Clone(m.v.entries)}
	if !defaults.IsZero() {
		for _, e := range defaults.v.entries {
			if merged.child(e.key) == nil {
				merged.entries = append(merged.entries, e)
			}
		}
	}
	return Section{v: merged, f: l.f}
}

func (l *loader) readVIPs(v *value, defaults VIP) {
	l.each(v, func(e entry) {
		names, err := Expand(e.key, nil)
		switch {
		case err != nil:
			l.at(e.pos, e.value.path, "bad set of names: %v", err)
		case len(names) == 0:
			l.at(e.pos, e.value.path, "bad set of names: it names no VIP")
		case len(l.f.VIPs)+len(names) > MaxItems:
			l.at(e.pos, e.value.path, "more than %d VIPs", MaxItems)
			names = nil
		}
		for _, name := range names {
			if err := label(name); err != nil {
				l.at(e.pos, e.value.path, "%v", err)
				break
			}
		}
		l.vipNames.take(l.problems, e.pos, e.value.path, names)
		s := &vipSet{nodeSet: nodeSet{loader: l, e: e, names: names}, vips: make([]VIP, len(names))}
		for i, name := range names {
			s.vips[i] = defaults
			s.vips[i].Name = name
		}
		if m, ok := l.mapping(e.value); ok {
			s.read(m, defaults)
			m.done()
		}
		l.f.VIPs = append(l.f.VIPs, s.vips...)
	})
}

// vipSet is an entry of vips while it is read; its folded lists have one item
// a VIP.
type vipSet struct {
	nodeSet
	vips []VIP
}

func (s *vipSet) read(m *mapping, defaults VIP) {
	network := s.readNetworkRef(m.need("network", "network: administration"))
	s.readAddresses(m.need("address", "address: 10.1.0.101"), network)
	hostname := m.get("hostname")
	if hostnames, ok := s.perItem(hostname, "host name"); ok {
		s.claim(hostname.pos, hostname.path, hostnames)
		for i := range s.vips {
			s.vips[i].Hostname = hostnames[i]
		}
	}
	s.readVRIDs(m.need("vrid", "vrid: 161, a number from 1 to 255 that no other router of the network has"), network)
	timing := defaults
	s.readTiming(m, &timing)
	members := m.need("members", `members: "@service"`)
	names := s.readMembers(members, network)
	s.readPrefer(m.get("prefer"), names)
	track := s.readTrack(m.get("track"))
	vrrp := s.readVRRP(m.get("vrrp"), defaults.VRRP)
	for i := range s.vips {
		vip := &s.vips[i]
		vip.Network = network
		vip.Version, vip.Advertise, vip.PreemptDelay = timing.Version, timing.Advertise, timing.PreemptDelay
		vip.Members, vip.Track, vip.VRRP = names, track, vrrp
	}
}

// perItem is perNode with the words for a set of VIPs.
func (s *vipSet) perItem(v *value, wanted string) ([]string, bool) {
	return s.oneEach(v, wanted, "VIP", len(s.vips))
}

func (s *vipSet) readNetworkRef(v *value) string {
	name, ok := s.text(v)
	if ok && s.networks[name] == nil && !s.lostNetworks {
		s.at(v.pos, v.path, "unknown network %q; %s", clip(name), suggest(name, s.networkNames()))
	}
	return name
}

func (l *loader) networkNames() []string {
	names := make([]string, len(l.f.Networks))
	for i := range l.f.Networks {
		names[i] = l.f.Networks[i].Name
	}
	return names
}

func (s *vipSet) readAddresses(v *value, network string) {
	items, ok := s.perItem(v, "address")
	if !ok {
		return
	}
	addrs, ok := s.addrs(v, items)
	if !ok {
		return
	}
	s.inNetwork(v.pos, v.path, s.networks[network], addrs)
	s.addresses.take(s.problems, v.pos, v.path, addrStrings(addrs))
	for i := range s.vips {
		s.vips[i].Address = addrs[i]
	}
}

func (s *vipSet) readVRIDs(v *value, network string) {
	items, ok := s.perItem(v, "VRID")
	if !ok {
		return
	}
	for i, item := range items {
		n, err := strconv.Atoi(item)
		if err != nil || n < 1 || n > 255 {
			s.at(v.pos, v.path, "VRID %s; the range is 1 to 255", clip(item))
			return
		}
		s.vips[i].VRID, items[i] = n, strconv.Itoa(n)
	}
	if _, ok := s.vrids[network]; !ok {
		s.vrids[network] = newClaims("VRID", "VRIDs", "a VRID belongs to one virtual router of network "+network)
	}
	s.vrids[network].take(s.problems, v.pos, v.path, items)
}

func (s *vipSet) readMembers(v *value, network string) []string {
	names, ok := s.nodeRefs(v, s.f)
	if !ok {
		return nil
	}
	n := s.networks[network]
	var without []string
	for _, name := range names {
		if node := s.f.Node(name); node != nil && n != nil && !node.Addresses[network].IsValid() && !s.lostAddresses[network] {
			without = append(without, name)
		}
	}
	if len(without) > 0 {
		s.at(v.pos, v.path, "%s has no address in %s, the VIP's network; give one, or leave the node out", clip(Fold(without)), network)
	}
	if clients := s.withoutAgent(names); len(clients) > 0 {
		s.at(v.pos, v.path, "%s runs no agent, as the role says; only nodes that run Holdfast hold a VIP", clip(Fold(clients)))
	}
	return names
}

// readPrefer reads one node for all VIPs of the set, or one each.
func (s *vipSet) readPrefer(v *value, members []string) {
	set, ok := s.folded(v, "node")
	if !ok {
		return
	}
	items, err := ExpandList(set)
	switch {
	case err != nil:
		s.at(v.pos, v.path, "%v", err)
		return
	case len(s.vips) == 0:
		return
	case len(items) == 1:
		items = slices.Repeat(items, len(s.vips))
	case len(items) != len(s.vips):
		s.at(v.pos, v.path, "%s for %s; give one for all, or each one", count(len(items), "node"), count(len(s.vips), "VIP"))
		return
	}
	for i, name := range items {
		switch {
		case members != nil && s.f.Node(name) != nil && !slices.Contains(members, name):
			s.at(v.pos, v.path, "%s is no member of the VIP; prefer one of %s", name, clip(Fold(members)))
			return
		case s.f.Node(name) == nil && !s.lostNodes:
			s.at(v.pos, v.path, "unknown node %q; %s", clip(name), suggest(name, nodeNames(s.f.Nodes)))
			return
		}
		s.vips[i].Prefer = name
	}
}

// readTrack reads the units and services whose health decides who holds the
// VIP.
func (l *loader) readTrack(v *value) []string {
	known := Units()
	if services := l.root.v.child("services"); services != nil {
		for _, e := range services.entries {
			known = append(known, e.key)
		}
	}
	var track []string
	for _, item := range l.textList(v) {
		if !slices.Contains(known, item.text) {
			l.at(item.pos, item.path, "unknown unit or service %q; %s", clip(item.text), suggest(item.text, known))
			continue
		}
		track = append(track, item.text)
	}
	return track
}

// withoutAgent picks the nodes whose role runs no agent.
func (l *loader) withoutAgent(names []string) []string {
	var clients []string
	for _, name := range names {
		if n := l.f.Node(name); n != nil {
			if role := l.f.Role(n.Role); role != nil && !role.Agent {
				clients = append(clients, name)
			}
		}
	}
	return clients
}
