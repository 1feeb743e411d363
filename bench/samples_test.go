package bench

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRoundsAreComparedWithEachOther: ratios are of the runs of one round, and
// not of the medians. What nobody measured is no row, and the order is the one
// that was asked for.
func TestRoundsAreComparedWithEachOther(t *testing.T) {
	s := NewSamples(Lower("never", "s"), Lower("time", "ms"), Higher("rate", "1/s"))
	s.Add(Higher("later", "1"), "holdfast", 7)
	for _, v := range []float64{10, 20, 60} {
		s.Note("rate", "holdfast", v)
	}
	for _, v := range []float64{10, 5, 0, 9} { // nothing is so many times nothing; and a round that ours lacks
		s.Note("rate", "other 1.0", v)
	}
	s.Note("time", "other 1.0", 3)
	rate, other, once := Figures{20, 10, 60, 52}, Figures{7, 0, 10, 9.7}, Figures{3, 3, 3, 3}
	later := Figures{7, 7, 7, 7}
	want := []Result{
		{Name: "time", Unit: "ms", Better: "lower", Peers: map[string]Figures{"other 1.0": once}, Ratios: map[string]Figures{}, Runs: 1},
		{Name: "rate", Unit: "1/s", Better: "higher", Ours: &rate, Peers: map[string]Figures{"other 1.0": other}, Ratios: map[string]Figures{"other 1.0": {2.5, 1, 4, 3.7}}, Runs: 4},
		{Name: "later", Unit: "1", Better: "higher", Ours: &later, Peers: map[string]Figures{}, Ratios: map[string]Figures{}, Runs: 1},
	}
	if diff := cmp.Diff(want, s.Results("holdfast"), cmp.Comparer(func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestABenchmarkThatFailsHasAStatus(t *testing.T) {
	if status := Main("test", func(context.Context) error { return nil }); status != 0 {
		t.Errorf("status %d of one that went well", status)
	}
	if status := Main("test", func(context.Context) error { return errors.New("as it should") }); status != 1 {
		t.Errorf("status %d of one that failed", status)
	}
}
