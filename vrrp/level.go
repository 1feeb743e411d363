package vrrp

import (
	"cmp"
	"slices"
)

// level moves free candidates, whose last place in the order is theirs to
// choose, from nodes with more to nodes with less until nothing is gained any
// more. loads is what the nodes hold.
func (p *placement) level(free, loads []int) {
	for p.levelOnce(free, loads) {
	}
}

// levelOnce makes one row of moves; false: there is none that helps.
func (p *placement) levelOnce(free, loads []int) bool {
	from := slices.Clone(free)
	slices.SortStableFunc(from, func(a, b int) int { return loads[*p.last(b)] - loads[*p.last(a)] })
	for _, i := range from {
		row := p.improve(i, free, loads)
		for _, m := range row {
			holder, weight := p.last(m.candidate), p.list[m.candidate].weight
			loads[*holder] -= weight
			loads[m.to] += weight
			*holder = m.to
		}
		if len(row) > 0 {
			return true
		}
	}
	return false
}

// last is the node that a candidate's order ends with so far.
func (p *placement) last(i int) *int { return &p.orders[i][len(p.orders[i])-1] }

type move struct{ candidate, to int }

// improve finds the shortest row of moves that begins with a candidate and
// ends at a node with so much less that the two are closer afterwards: the
// node with less may be no member of the first. What the nodes between give
// and take is the same.
func (p *placement) improve(i int, free, loads []int) []move {
	type step struct {
		move
		before int // index of steps; -1: the first
	}
	start, weight := *p.last(i), p.list[i].weight
	if loads[start]-slices.Min(loads) <= weight {
		return nil
	}
	var steps []step
	seen := map[int]bool{start: true}
	extend := func(j, before int) {
		targets := p.open(j, len(p.orders[j])-1)
		slices.SortFunc(targets, func(a, b int) int { return cmp.Or(loads[a]-loads[b], p.compareAffinity(j, b, a)) })
		for _, node := range targets {
			if !seen[node] {
				seen[node] = true
				steps = append(steps, step{move{j, node}, before})
			}
		}
	}
	extend(i, -1)
	for at := 0; at < len(steps); at++ {
		if loads[start]-loads[steps[at].to] > weight {
			var row []move
			for k := at; k >= 0; k = steps[k].before {
				row = append(row, steps[k].move)
			}
			return row
		}
		for _, j := range free {
			if j != i && p.list[j].weight == weight && *p.last(j) == steps[at].to {
				extend(j, at)
			}
		}
	}
	return nil
}
