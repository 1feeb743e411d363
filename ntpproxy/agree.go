package ntpproxy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// sighting is what this node saw of another service node's clock.
type sighting struct {
	node   string
	offset time.Duration // how far it is ahead of ours
	delay  time.Duration // of the way there and back: half of it may be error
	source string        // "stratum 3, below 192.0.2.1"
}

// excess is how far apart the two clocks are at least.
func (s sighting) excess() time.Duration { return s.offset.Abs() - max(0, s.delay)/2 }

// council judges whether the nodes agree on the time. It is pure.
type council struct {
	suspects map[string]int // how many times in a row a node was apart
}

// suspicion is how many times in a row two clocks are apart before it is said:
// one measurement may have been held up on one way.
const suspicion = 3

// hear takes one round of sightings of nodes that are synchronised, and says in
// a sentence what is wrong; "" nothing is.
func (c *council) hear(round []sighting, tolerance time.Duration) string {
	suspects := map[string]int{}
	var apart []sighting
	for _, s := range round {
		if s.excess() <= tolerance {
			continue
		}
		suspects[s.node] = c.suspects[s.node] + 1
		if suspects[s.node] >= suspicion {
			apart = append(apart, s)
		}
	}
	c.suspects = suspects
	if len(apart) == 0 {
		return ""
	}
	slices.SortFunc(apart, func(a, b sighting) int { return strings.Compare(a.node, b.node) })
	var parts []string
	for _, s := range apart {
		direction := "ahead of"
		if s.offset < 0 {
			direction = "behind"
		}
		parts = append(parts, fmt.Sprintf("%s is %v %s this node (%s)", s.node, s.offset.Abs().Round(100*time.Microsecond), direction, s.source))
	}
	verdict := "compare the sources of the two"
	switch {
	case len(round) < 2:
	case len(apart)*2 > len(round):
		verdict = "most nodes differ, so it is this node's clock that is likely wrong: look at its sources (chronyc sources)"
	default:
		verdict = "most nodes agree with this one: look at the sources of the other (chronyc sources)"
	}
	return fmt.Sprintf("the clocks of the service nodes are more than %v apart: %s; %s", tolerance, strings.Join(parts, ", "), verdict)
}
