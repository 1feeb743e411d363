// Package bench is what the benchmarks share: how figures are summed up,
// printed and kept.
package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// Figures sum up the samples of one program.
type Figures struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	P90    float64 `json:"p90"`
}

// Sum sums up samples; there must be one.
func Sum(samples []float64) Figures {
	s := slices.Sorted(slices.Values(samples))
	return Figures{Median: quantile(s, 0.5), Min: s[0], Max: s[len(s)-1], P90: quantile(s, 0.9)}
}

// quantile interpolates between the two nearest of sorted samples.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	below := int(at)
	if below+1 == len(sorted) {
		return sorted[below]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}

// Result is one thing that was measured of several programs.
type Result struct {
	Name   string             `json:"name"`
	Unit   string             `json:"unit"`
	Better string             `json:"better"` // "higher" or "lower"
	Ours   *Figures           `json:"ours,omitempty"`
	Peers  map[string]Figures `json:"peers,omitempty"` // by name and version
	// Ratios are ours by theirs, of the runs of one round each.
	Ratios map[string]Figures `json:"ratios,omitempty"`
	Runs   int                `json:"runs"`
	Note   string             `json:"note,omitempty"`
}

// Save writes results to a file, in the place of those of the same names that
// it has, so that a long benchmark can be run in pieces.
func Save(path string, results []Result) error {
	var kept []Result
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(text, &kept); err != nil {
			return fmt.Errorf("%s: %w; remove it", path, err)
		}
	}
	for _, r := range results {
		i := slices.IndexFunc(kept, func(k Result) bool { return k.Name == r.Name })
		if i < 0 {
			kept = append(kept, r)
			continue
		}
		kept[i] = r
	}
	text, err = json.MarshalIndent(kept, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// Print writes results as a table.
func Print(w io.Writer, results []Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\twho\tmedian\tmin\tp90\tmax\tours/theirs\tunit\truns\t")
	for _, r := range results {
		name := r.Name
		line := func(who string, f Figures) {
			ratio := ""
			if q, ok := r.Ratios[who]; ok {
				ratio = fmt.Sprintf("%s (%s-%s)", short(q.Median), short(q.Min), short(q.Max))
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", name, who, short(f.Median), short(f.Min), short(f.P90), short(f.Max), ratio, r.Unit, r.Runs, r.Note)
			name = ""
		}
		if r.Ours != nil {
			line("holdfast", *r.Ours)
		}
		for _, peer := range slices.Sorted(maps.Keys(r.Peers)) {
			line(peer, r.Peers[peer])
		}
	}
	return t.Flush()
}

// short keeps three digits.
func short(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return fmt.Sprintf("%.*f", digits, v)
}
