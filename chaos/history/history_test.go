package history

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// at makes a record with given times.
func at(call, end int64, op Op, o Outcome) porcupine.Operation {
	if o.Unknown {
		end = math.MaxInt64
	}
	op.Key = "k"
	return porcupine.Operation{Input: op, Output: o, Call: call, Return: end}
}

func TestCheckerTellsGoodHistoriesFromBad(t *testing.T) {
	write := func(v string) Op { return Op{Kind: Write, New: v} }
	cas := func(from, to string) Op { return Op{Kind: CAS, Old: from, New: to} }
	end := func(of string) Op { return Op{Kind: Release, Old: of} }
	read, ok := Op{Kind: Read}, Outcome{}
	saw := func(v string) Outcome { return Outcome{Value: v} }
	swapped, unknown := Outcome{Swapped: true}, Outcome{Unknown: true}
	type ops = []porcupine.Operation
	for name, c := range map[string]struct {
		ops  ops
		good bool
	}{
		"a read after a write sees it":                        {ops{at(1, 2, write("a"), ok), at(3, 4, read, saw("a"))}, true},
		"a stale read":                                        {ops{at(1, 2, write("a"), ok), at(3, 4, read, saw(""))}, false},
		"a read beside a write sees either":                   {ops{at(1, 5, write("a"), ok), at(2, 3, read, saw(""))}, true},
		"a value that is seen and then not":                   {ops{at(1, 9, write("a"), ok), at(2, 3, read, saw("a")), at(4, 5, read, saw(""))}, false},
		"a value nobody wrote":                                {ops{at(1, 2, read, saw("a"))}, false},
		"an acknowledged write that was lost":                 {ops{at(1, 2, write("a"), ok), at(3, 4, write("b"), ok), at(5, 6, read, saw("a"))}, false},
		"an unknown write that happened late":                 {ops{at(1, 2, write("a"), unknown), at(3, 4, read, saw("")), at(5, 6, read, saw("a"))}, true},
		"an unknown write that happened and went":             {ops{at(1, 2, write("a"), unknown), at(3, 4, read, saw("a")), at(5, 6, read, saw(""))}, false},
		"two take the same lock":                              {ops{at(1, 2, cas("", "x"), swapped), at(3, 4, cas("", "y"), swapped)}, false},
		"a lock that is handed on":                            {ops{at(1, 2, cas("", "x"), swapped), at(3, 4, cas("x", ""), swapped), at(5, 6, cas("", "y"), swapped)}, true},
		"a lock refused though it is free":                    {ops{at(1, 2, cas("", "x"), Outcome{})}, false},
		"a lock that may have been taken keeps the other out": {ops{at(1, 2, cas("", "x"), unknown), at(3, 4, cas("", "y"), Outcome{})}, true},
		"a session that ends frees its lock":                  {ops{at(1, 2, cas("", "x"), swapped), at(3, 4, end("x"), ok), at(5, 6, cas("", "y"), swapped)}, true},
		"a session that ends and keeps its lock":              {ops{at(1, 2, cas("", "x"), swapped), at(3, 4, end("x"), ok), at(5, 6, cas("", "y"), Outcome{})}, false},
		"a lock taken while the other's session lives":        {ops{at(1, 2, cas("", "x"), swapped), at(3, 4, cas("", "y"), swapped), at(5, 6, end("x"), ok)}, false},
		"another's session that ends frees nothing":           {ops{at(1, 2, cas("", "x"), swapped), at(3, 4, end("y"), ok), at(5, 6, cas("", "y"), swapped)}, false},
	} {
		h := &History{ops: c.ops}
		err := h.Check(10 * time.Second)
		if (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		if !c.good && err != nil && !strings.Contains(err.Error(), `["k"]`) {
			t.Errorf("%s: the error does not name the key: %v", name, err)
		}
	}
}

// TestTheStoryOfAKeyIsTold, since a run under random faults can't be repeated.
func TestTheStoryOfAKeyIsTold(t *testing.T) {
	h := &History{ops: []porcupine.Operation{
		at(3000, 4000, Op{Kind: Read}, Outcome{Value: "b"}),
		at(1000, 0, Op{Kind: CAS, New: "c"}, Outcome{Unknown: true}),
		at(2000, 5000, Op{Kind: Write, New: "a"}, Outcome{}),
		at(6000, 7000, Op{Kind: Write, New: "d", Via: "fb2"}, Outcome{Refused: true, Said: "no leader"}),
	}}
	want := `history: no order explains what clients saw of ["k"]
k: 1µs to ?, client 0: cas "" -> "c": unknown
k: 2µs to 5µs, client 0: write "" -> "a": done
k: 3µs to 4µs, client 0: read "" -> "": saw "b"
k: 6µs to 7µs, client 0 via fb2: write "" -> "d": refused (no leader)`
	if err := h.Check(10 * time.Second); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestHistoryLeavesOutWhatWasNotCarriedOut(t *testing.T) {
	h := New()
	h.Begin(0, Op{Key: "k", Kind: Write, New: "refused"})(Outcome{Refused: true})
	h.Begin(0, Op{Key: "k", Kind: Read}) // nobody answered
	h.Begin(0, Op{Key: "k", Kind: Write, New: "lost"})(Outcome{Unknown: true})
	h.Begin(0, Op{Key: "k", Kind: Write, New: "a"})(Outcome{})
	h.Begin(1, Op{Key: "k", Kind: Read})(Outcome{Value: "a"})
	if known, unknown := h.Count(); known != 2 || unknown != 1 {
		t.Errorf("%d known and %d unknown, want 2 and 1", known, unknown)
	}
	if err := h.Check(10 * time.Second); err != nil {
		t.Error(err)
	}
}
