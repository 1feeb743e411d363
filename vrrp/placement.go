package vrrp

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strings"
)

// candidate is what is placed as one: a virtual router, or a sync group.
type candidate struct {
	name    string
	weight  int         // how many virtual routers it is
	members []int       // nodes
	prefer  int         // node; -1: none
	pinned  map[int]int // place in the order to node, where the file gives priorities
}

// place gives every candidate its members in the order in which they are to
// hold it. It depends on nothing but its arguments, and not on the order of
// the candidates, so every node finds the same. names are the nodes'.
//
// When a node dies, what it held spreads over the survivors as evenly as the
// members and preferences allow. For more deaths several orders are tried and
// the most even one is taken (DESIGN.md has the measured bounds).
func place(list []candidate, names []string) [][]int {
	p := newPlacement(list, names)
	firsts := p.first()
	var best [][]int
	var least []int
	for salt := range maxVariants {
		orders := p.rest(firsts, byte(salt))
		if len(names) > maxLookAhead {
			return orders
		}
		if u := p.unevenness(orders); best == nil || slices.Compare(u, least) < 0 {
			best, least = orders, u
		}
		if least[0] <= 1 && least[2] <= 1 {
			break
		}
	}
	return best
}

const (
	maxVariants = 32
	// maxLookAhead bounds the nodes for which the second and third death are
	// considered: it takes the cube of them. No site has as many that hold.
	maxLookAhead = 16
)

type placement struct {
	names  []string
	list   []candidate
	sorted []int // indices of list, by name
	salt   byte
	orders [][]int // of list; grows from the first to the last
}

func newPlacement(list []candidate, names []string) *placement {
	p := &placement{names: names, list: list, sorted: make([]int, len(list))}
	for i := range list {
		p.sorted[i] = i
	}
	slices.SortFunc(p.sorted, func(a, b int) int { return naturally(list[a].name, list[b].name) })
	return p
}

// first decides who holds what when all are well. What prefers nobody goes
// where its hash says (rendezvous hashing), so that a change of the file moves
// hardly any other, and from there to where there is less.
func (p *placement) first() [][]int {
	p.orders = make([][]int, len(p.list))
	loads := make([]int, len(p.names))
	var free []int
	for _, i := range p.sorted {
		c := &p.list[i]
		node, fixed := c.pinned[0]
		if !fixed {
			node, fixed = c.prefer, c.prefer >= 0
		}
		if open := p.open(i, 0); !fixed && len(open) > 0 {
			node, fixed = slices.MaxFunc(open, func(a, b int) int { return p.compareAffinity(i, a, b) }), true
			free = append(free, i)
		}
		if fixed {
			p.orders[i] = []int{node}
			loads[node] += c.weight
		}
	}
	p.level(free, loads)
	return p.orders
}

// rest completes the orders whose first are decided. salt varies what is
// otherwise equal.
func (p *placement) rest(firsts [][]int, salt byte) [][]int {
	p.salt = salt
	p.orders = make([][]int, len(firsts))
	for i := range firsts {
		p.orders[i] = slices.Clone(firsts[i])
	}
	for depth := 1; ; depth++ {
		groups := map[string][]int{} // by who must be dead for it to matter
		for _, i := range p.sorted {
			if len(p.orders[i]) == depth && depth < len(p.list[i].members) {
				key := keyOf(slices.Sorted(slices.Values(p.orders[i])))
				groups[key] = append(groups[key], i)
			}
		}
		if len(groups) == 0 {
			return p.orders
		}
		keys := make([]string, 0, len(groups))
		for key := range groups {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		for _, key := range keys {
			p.fill(groups[key], depth)
		}
	}
}

func keyOf(nodes []int) string {
	var key strings.Builder
	for _, n := range nodes {
		key.WriteByte(byte(n >> 8))
		key.WriteByte(byte(n))
	}
	return key.String()
}

// fill spreads candidates whose holders so far are the same set of dead nodes
// over the survivors: each to the one that has least; of equals to the one
// that would have least if another one died too.
func (p *placement) fill(group []int, depth int) {
	dead := slices.Clone(p.orders[group[0]])
	now := p.loads(p.orders, dead)
	var after [][]int // by the node that dies next
	if len(p.names) <= maxLookAhead {
		after = make([][]int, len(p.names))
		for node := range p.names {
			after[node] = p.loads(p.orders, append(slices.Clone(dead), node))
		}
	}
	later := func(node int) int {
		sum := 0
		for died, loads := range after {
			if died != node {
				sum += loads[node] * loads[node]
			}
		}
		return sum
	}
	var free []int
	for _, i := range group {
		node, pinned := p.list[i].pinned[depth]
		if open := p.open(i, depth); !pinned && len(open) > 0 {
			node, pinned = slices.MinFunc(open, func(a, b int) int {
				return cmp.Or(now[a]-now[b], later(a)-later(b), p.compareAffinity(i, b, a))
			}), true
			free = append(free, i)
		}
		if !pinned {
			continue
		}
		p.orders[i] = append(p.orders[i], node)
		now[node] += p.list[i].weight
		for died := range after {
			if died != node {
				after[died][node] += p.list[i].weight
			}
		}
	}
	p.level(free, now)
}

// loads counts what each node holds when some are dead, as far as the orders
// are decided.
func (p *placement) loads(orders [][]int, dead []int) []int {
	loads := make([]int, len(p.names))
	for i, order := range orders {
		for _, node := range order {
			if !slices.Contains(dead, node) {
				loads[node] += p.list[i].weight
				break
			}
		}
	}
	return loads
}

// unevenness rates orders: the largest difference after two deaths and the sum
// of their squares, and the same after three.
func (p *placement) unevenness(orders [][]int) []int {
	rate := make([]int, 4)
	n := len(p.names)
	note := func(at int, dead ...int) {
		loads := p.loads(orders, dead)
		least, most := -1, 0
		for node, load := range loads {
			if slices.Contains(dead, node) {
				continue
			}
			if least < 0 || load < least {
				least = load
			}
			most = max(most, load)
		}
		if least >= 0 {
			rate[at] = max(rate[at], most-least)
			rate[at+1] += (most - least) * (most - least)
		}
	}
	for a := range n {
		for b := range a {
			note(0, a, b)
			for c := range b {
				note(2, a, b, c)
			}
		}
	}
	return rate
}

// open are the members that may have a place in a candidate's order: not those
// before it, nor those that the file gives another place.
func (p *placement) open(i, place int) []int {
	c := &p.list[i]
	taken := p.orders[i][:min(place, len(p.orders[i]))]
	return slices.DeleteFunc(slices.Clone(c.members), func(node int) bool {
		if slices.Contains(taken, node) {
			return true
		}
		for _, pinned := range c.pinned {
			if pinned == node {
				return true
			}
		}
		return false
	})
}

// compareAffinity orders nodes by what the hash of candidate and node says,
// which no other candidate or node changes.
func (p *placement) compareAffinity(i, a, b int) int {
	return cmp.Or(cmp.Compare(p.affinity(i, a), p.affinity(i, b)), cmp.Compare(p.names[b], p.names[a]))
}

func (p *placement) affinity(i, node int) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(p.list[i].name + "\x00" + p.names[node] + "\x00"))
	_, _ = h.Write([]byte{p.salt})
	x := h.Sum64()
	x ^= x >> 33 // FNV leaves the high bits of short texts alike
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}

// naturally compares names so that dns9 comes before dns10.
func naturally(a, b string) int {
	stemA, numberA := splitNumber(a)
	stemB, numberB := splitNumber(b)
	return cmp.Or(cmp.Compare(stemA, stemB), len(numberA)-len(numberB), cmp.Compare(numberA, numberB), cmp.Compare(a, b))
}

func splitNumber(s string) (stem, number string) {
	stem = strings.TrimRight(s, "0123456789")
	return stem, strings.TrimLeft(s[len(stem):], "0")
}
