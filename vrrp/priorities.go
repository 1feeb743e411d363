package vrrp

import (
	"maps"
	"slices"
	"time"
)

const (
	ownerPriority = 255 // RFC 9568 §5.2.4
	// topPriority is the first one's in an order. 254 is left for who is told
	// to hold (Pull), so that no tie of addresses decides about a move.
	topPriority = 253
	// skewApart is how far apart two backups' skews should be: with less,
	// what a scheduler and a wire take can make both of them act.
	skewApart = 8 * time.Millisecond
)

// priorityStep is the distance between the priorities of neighbours in the
// order. A skew is (256−priority)/256 of the interval in version 3 (RFC 9568
// §6.1) and of a second in version 2 (RFC 3768 §6.1); a longer step would only
// make the takeover slower.
func priorityStep(version uint8, interval time.Duration) int {
	if version == 2 {
		interval = time.Second
	}
	step := (256*skewApart + interval - 1) / interval
	return int(min(max(step, 1), topPriority-1))
}

// ranks are the priorities of n members from the first to the last: those that
// the file gives, and for the others numbers from 253 downwards in steps, or
// in smaller ones where that many do not fit. n is at most 253.
func ranks(n int, given map[string]uint8, step int) []uint8 {
	taken := slices.Collect(maps.Values(given))
	for {
		list := slices.Clone(taken)
		next := topPriority
		for len(list) < n && next > 0 {
			if slices.Contains(taken, uint8(next)) {
				next--
				continue
			}
			list = append(list, uint8(next))
			next -= step
		}
		if len(list) == n || step == 1 {
			slices.Sort(list)
			slices.Reverse(list)
			return list
		}
		step--
	}
}

// pins are the places in the order that given priorities mean.
func pins(ranks []uint8, given map[string]uint8, index map[string]int) map[int]int {
	places := map[int]int{}
	for node, priority := range given {
		places[slices.Index(ranks, priority)] = index[node]
	}
	return places
}
