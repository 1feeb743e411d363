package vrrp

import (
	"maps"
	"net/netip"
	"slices"

	"holdfast/cluster"
)

// checkTaken refuses an address that somebody else has.
func (d *vipDecoder) checkTaken(vips []vip) {
	owner := map[netip.Addr]string{}
	for i := range d.file.Nodes {
		for _, addr := range d.file.Nodes[i].Addresses {
			owner[addr] = "node " + d.file.Nodes[i].Name
		}
	}
	for i := range vips {
		if addr := vips[i].Address; addr.IsValid() {
			owner[addr] = "VIP " + vips[i].Name
		}
	}
	for i := range vips {
		v := &vips[i]
		for _, list := range []struct {
			key      string
			prefixes []netip.Prefix
		}{{"addresses", v.more}, {"excluded", v.excluded}} {
			for _, p := range list.prefixes {
				if other, taken := owner[p.Addr()]; taken {
					d.errorf(v, list.key, "%s belongs to %s; give a free one", p.Addr(), other)
					break // of a set of VIPs, all the others are taken as well
				}
				owner[p.Addr()] = "VIP " + v.Name
			}
		}
	}
}

// checkGroups refuses sync groups whose VIPs can't be where one of them is.
func (d *vipDecoder) checkGroups(vips []vip) {
	first := map[string]*vip{}
	for i := range vips {
		v := &vips[i]
		name := v.section.Sync
		if name == "" || v.Members == nil {
			continue
		}
		head := first[name]
		if head == nil {
			first[name] = v
			continue
		}
		switch {
		case !sameMembers(head, v):
			d.errorf(v, "sync", "%s and %s are in group %s and have other members: they could not always be on one node; give them the same", head.Name, v.Name, name)
		case head.Prefer != v.Prefer:
			d.errorf(v, "sync", "%s and %s are in group %s and prefer other nodes; let them prefer the same one", head.Name, v.Name, name)
		case !maps.Equal(head.given, v.given):
			d.errorf(v, "sync", "%s and %s are in group %s and have other priorities; give them the same", head.Name, v.Name, name)
		case !sameWeights(head, v):
			d.errorf(v, "sync", "%s and %s are in group %s and have other weights in track: two nodes could each be the better one for half of the group; give them the same, or weight 0", head.Name, v.Name, name)
		}
	}
}

// sameWeights tells whether what is tracked moves the priorities of both alike.
func sameWeights(a, b *vip) bool {
	weighing := func(v *vip) []trackItem {
		return slices.DeleteFunc(slices.Clone(v.items), func(t trackItem) bool { return t.weight == 0 })
	}
	theirs := weighing(b)
	for _, item := range weighing(a) {
		i := slices.IndexFunc(theirs, item.sameAs)
		if i < 0 {
			return false
		}
		theirs = slices.Delete(theirs, i, i+1)
	}
	return len(theirs) == 0
}

func sameMembers(a, b *vip) bool {
	return slices.Equal(slices.Sorted(slices.Values(a.Members)), slices.Sorted(slices.Values(b.Members)))
}

// checkWires refuses the same VRID twice on one interface, which two networks
// of the file may share.
func (d *vipDecoder) checkWires(vips []vip) {
	type wire struct {
		name string
		v4   bool
		vrid int
	}
	first := map[wire]*vip{}
	for i := range vips {
		v := &vips[i]
		network := d.file.Network(v.Network)
		if network == nil || !v.Address.IsValid() || v.VRID == 0 {
			continue
		}
		name := network.Interface
		if v.section.Interface != "" {
			name = v.section.Interface
		}
		if name == "" {
			continue
		}
		w := wire{name, v.Address.Is4(), v.VRID}
		other := first[w]
		if other == nil {
			first[w] = v
			continue
		}
		if other.Network != v.Network { // in one network cluster has said so
			d.entryErrorf(v, "vrid", "VRID %d is %s's, on the same interface %s; a VRID belongs to one virtual router of a wire", v.VRID, other.Name, name)
		}
	}
}

// order is who is to hold a VIP, first to last, and with which priorities.
type order struct {
	nodes []string
	ranks []uint8
}

// orders places all VIPs of the file. What is in one sync group has one order.
func orders(vips []vip) []order {
	names := memberNames(vips)
	index := make(map[string]int, len(names))
	for i, name := range names {
		index[name] = i
	}
	var list []candidate
	at := make([]int, len(vips)) // index of list
	group := map[string]int{}
	steps := groupSteps(vips)
	for i := range vips {
		v := &vips[i]
		if j, ok := group[v.section.Sync]; ok && v.section.Sync != "" {
			at[i] = j
			list[j].weight++
			continue
		}
		at[i], group[v.section.Sync] = len(list), len(list)
		c := candidate{name: v.Name, weight: 1, prefer: -1, pinned: pins(ranks(len(v.Members), v.given, steps[i]), v.given, index)}
		if v.section.Sync != "" {
			c.name = "group " + v.section.Sync
		}
		if v.Prefer != "" {
			c.prefer = index[v.Prefer]
		}
		for _, name := range v.Members {
			c.members = append(c.members, index[name])
		}
		slices.Sort(c.members)
		list = append(list, c)
	}
	placed := place(list, names)
	result := make([]order, len(vips))
	for i := range vips {
		for _, node := range placed[at[i]] {
			result[i].nodes = append(result[i].nodes, names[node])
		}
		result[i].ranks = ranks(len(vips[i].Members), vips[i].given, steps[i])
	}
	return result
}

// groupSteps are the steps between priorities: in a sync group the longest of
// its routers, so that their orders are one.
func groupSteps(vips []vip) []int {
	steps := make([]int, len(vips))
	longest := map[string]int{}
	for i := range vips {
		v := &vips[i]
		steps[i] = priorityStep(uint8(v.Version), v.Advertise)
		longest[v.section.Sync] = max(longest[v.section.Sync], steps[i])
	}
	for i := range vips {
		if group := vips[i].section.Sync; group != "" {
			steps[i] = longest[group]
		}
	}
	return steps
}

func memberNames(vips []vip) []string {
	seen := map[string]bool{}
	for i := range vips {
		for _, name := range vips[i].Members {
			seen[name] = true
		}
	}
	names := slices.Collect(maps.Keys(seen))
	slices.SortFunc(names, naturally)
	return names
}

// nodeSettings is the top-level section, understood.
type nodeSettings struct {
	hooks    Hooks
	realtime int
}

func decodeNode(s cluster.Section) (nodeSettings, error) {
	var raw nodeSection
	if err := s.Decode(&raw); err != nil {
		return nodeSettings{}, err
	}
	var errs cluster.Errors
	errorf := func(key, format string, args ...any) { errs = append(errs, s.Errorf(key, format, args...)) }
	if raw.Realtime < 0 || raw.Realtime > maxRealtime {
		errorf("realtime", "%d; the range is 1 to %d, 0: no realtime scheduling", raw.Realtime, maxRealtime)
	}
	set := nodeSettings{realtime: raw.Realtime}
	set.hooks = decodeHooks(raw.Notify, func(key, format string, args ...any) { errorf("notify."+key, format, args...) })
	if len(errs) > 0 {
		return nodeSettings{}, errs
	}
	return set, nil
}
