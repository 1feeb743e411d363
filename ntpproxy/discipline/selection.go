package discipline

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// candidate is a source as selection sees it at a moment.
type candidate struct {
	index    int
	ahead    time.Duration // of the oscillator
	distance time.Duration
	jitter   float64 // seconds
}

// intersect finds the truechimers: those whose intervals hold what the largest
// number of intervals has in common, if that is a majority (RFC 5905 §11.2.1).
// For each number of falsetickers, from none to just below half, it looks for
// an interval that the others share.
func intersect(list []candidate) (true_ []candidate) {
	type edge struct {
		at   time.Duration
		kind int // -1 lower, 0 middle, +1 upper
	}
	var edges []edge
	for _, c := range list {
		edges = append(edges, edge{c.ahead - c.distance, -1}, edge{c.ahead, 0}, edge{c.ahead + c.distance, +1})
	}
	// At one place lower ends come first: intervals that touch agree.
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.kind, b.kind)) })
	for liars := 0; 2*liars < len(list); liars++ {
		low, high, ok := time.Duration(0), time.Duration(0), 0
		middles, chime := 0, 0
		for _, e := range edges {
			chime -= e.kind
			if chime >= len(list)-liars {
				low, ok = e.at, ok+1
				break
			}
			if e.kind == 0 {
				middles++
			}
		}
		chime = 0
		for _, e := range slices.Backward(edges) {
			chime += e.kind
			if chime >= len(list)-liars {
				high, ok = e.at, ok+1
				break
			}
			if e.kind == 0 {
				middles++
			}
		}
		if ok == 2 && low <= high && middles <= liars {
			for _, c := range list {
				if c.ahead+c.distance >= low && c.ahead-c.distance <= high {
					true_ = append(true_, c)
				}
			}
			return true_
		}
	}
	return nil
}

// leastSurvivors is where the cluster algorithm stops (NMIN, RFC 5905 §7.2).
const leastSurvivors = 3

// cluster throws out the one that stands apart most from the rest, again and
// again, until that gains nothing (RFC 5905 §11.2.2).
func cluster(list []candidate) []candidate {
	list = slices.Clone(list)
	for len(list) > leastSurvivors {
		worst, most, least := 0, -1.0, math.Inf(1)
		for i, c := range list {
			var sum float64
			for _, o := range list {
				d := (c.ahead - o.ahead).Seconds()
				sum += d * d
			}
			if spread := math.Sqrt(sum / float64(len(list)-1)); spread > most {
				worst, most = i, spread
			}
			least = min(least, c.jitter)
		}
		if most <= least {
			break
		}
		list = slices.Delete(list, worst, worst+1)
	}
	return list
}

// selection is what became of the sources.
type selection struct {
	survivors []candidate // best first; empty: no majority
	states    []State
}

// elect runs the chain over the sources at a raw time.
// Those that are not eligible stand by.
func elect(sources []*source, eligible func(int) bool, raw time.Duration, maxDistance time.Duration) selection {
	sel := selection{states: make([]State, len(sources))}
	var usable []candidate
	for i, s := range sources {
		l := &s.register.line
		switch {
		case s.reach == 0:
			sel.states[i] = Unreachable
		case !l.ok:
			sel.states[i] = Waiting
		case s.last.Stratum == 0 || s.last.Stratum > maxStratum || s.distance(raw) > maxDistance:
			sel.states[i] = Unusable
		case s.apart != 0:
			sel.states[i] = OtherLeap
		case !eligible(i):
			sel.states[i] = Standby
		default:
			sel.states[i] = Falseticker
			usable = append(usable, candidate{i, l.aheadAt(raw), s.distance(raw), l.residual})
		}
	}
	agreed := intersect(usable)
	for _, c := range agreed {
		sel.states[c.index] = Outlier
	}
	sel.survivors = cluster(agreed)
	slices.SortStableFunc(sel.survivors, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(sources[a.index].last.Stratum, sources[b.index].last.Stratum), cmp.Compare(a.distance, b.distance))
	})
	for i, c := range sel.survivors {
		sel.states[c.index] = Survivor
		if i == 0 {
			sel.states[c.index] = Leading
		}
	}
	return sel
}

// maxStratum is the largest of a source that we can stand below.
const maxStratum = 14
