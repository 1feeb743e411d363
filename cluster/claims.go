package cluster

import (
	"maps"
	"slices"
)

// claims tells who took a name, address or number first.
type claims struct {
	one, many string // what is taken: "address", "addresses"
	remedy    string
	by        map[string]claim
}

type claim struct {
	path string
	line int
}

func newClaims(one, many, remedy string) claims {
	return claims{one: one, many: many, remedy: remedy, by: map[string]claim{}}
}

// take claims items for the key at path; what others took first, or the same
// key took twice, is noted, once for every owner. fresh are the items that
// were free.
func (c claims) take(p *problems, pos position, path string, items []string) (fresh []string) {
	taken := map[claim][]string{}
	mine := claim{path, pos.line}
	for _, item := range items {
		if first, ok := c.by[item]; ok {
			taken[first] = append(taken[first], item)
			continue
		}
		c.by[item] = mine
		fresh = append(fresh, item)
	}
	byLine := func(a, b claim) int { return a.line - b.line }
	for _, first := range slices.SortedFunc(maps.Keys(taken), byLine) {
		what, verb := c.one, "is"
		if len(newNodes(taken[first]).list()) > 1 {
			what, verb = c.many, "are"
		}
		twice := clip(Fold(taken[first]))
		if first == mine {
			p.at(pos, path, "%s %s stands here twice; %s", what, twice, c.remedy)
			continue
		}
		p.at(pos, path, "%s %s %s taken by %s in line %d; %s", what, twice, verb, first.path, first.line, c.remedy)
	}
	return fresh
}
