package main

import (
	"maps"
	"slices"
)

// spread is what several runs gave.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// figure is one comparison, in the form of docs/ARCHITECTURE.md, "Benchmarks".
// Ratios are ours by theirs, of the runs of one round each.
type figure struct {
	Name   string            `json:"name"`
	Unit   string            `json:"unit"`
	Better string            `json:"better"` // "higher" or "lower"
	Ours   spread            `json:"ours"`
	Peers  map[string]spread `json:"peers"`
	Ratios map[string]spread `json:"ratios"`
	Runs   int               `json:"runs"`
}

// quantity is one thing that is measured.
type quantity struct{ name, unit, better string }

// results collects what was measured, a value a round.
type results struct {
	order  []quantity
	values map[quantity]map[string][]float64 // by server
}

func newResults() *results { return &results{values: map[quantity]map[string][]float64{}} }

func (r *results) add(q quantity, server string, value float64) {
	if r.values[q] == nil {
		r.order = append(r.order, q)
		r.values[q] = map[string][]float64{}
	}
	r.values[q][server] = append(r.values[q][server], value)
}

func (r *results) figures(runs int) []figure {
	var all []figure
	for _, q := range r.order {
		f := figure{Name: q.name, Unit: q.unit, Better: q.better, Peers: map[string]spread{}, Ratios: map[string]spread{}, Runs: runs}
		ours := r.values[q][oursName]
		f.Ours = summary(ours)
		for server, values := range r.values[q] {
			if server == oursName {
				continue
			}
			f.Peers[server] = summary(values)
			var ratios []float64
			for i := range min(len(ours), len(values)) {
				if values[i] != 0 {
					ratios = append(ratios, ours[i]/values[i])
				}
			}
			f.Ratios[server] = summary(ratios)
		}
		all = append(all, f)
	}
	return all
}

func summary(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Min: sorted[0], Max: sorted[n-1]}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
