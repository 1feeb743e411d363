package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFiguresAreThoseOfTheSamples(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		want    Figures
	}{
		{[]float64{7}, Figures{7, 7, 7, 7}},
		{[]float64{4, 1}, Figures{2.5, 1, 4, 3.7}},
		{[]float64{11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, Figures{6, 1, 11, 10}},
	} {
		if got := Sum(c.samples); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.samples, got, c.want)
		}
	}
}

func TestPiecesOfABenchmarkAddUpInTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "build", "x.json")
	a, b := Figures{1, 1, 1, 1}, Figures{2, 2, 2, 2}
	first := []Result{{Name: "x", Unit: "ms", Better: "lower", Ours: &a, Runs: 1}, {Name: "y", Unit: "ms", Better: "lower", Runs: 1}}
	if err := Save(path, first); err != nil {
		t.Fatal(err)
	}
	again := Result{Name: "x", Unit: "ms", Better: "lower", Ours: &b, Peers: map[string]Figures{"keepalived 2.2.7": a}, Runs: 3}
	if err := Save(path, []Result{again}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []Result
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Result{again, first[1]}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	var table strings.Builder
	if err := Print(&table, got); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"x  holdfast          2.00", "   keepalived 2.2.7  1.00"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
}
