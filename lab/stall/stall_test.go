package stall

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
)

// at is a time, in milliseconds after some other.
func at(ms int) time.Time {
	return time.Unix(1_700_000_000, 0).Add(time.Duration(ms) * time.Millisecond)
}

func TestSpansAreCutAndJoined(t *testing.T) {
	all := []Span{{at(50), at(90)}, {at(0), at(20)}, {at(60), at(70)}, {at(80), at(120)}, {at(200), at(300)}, {at(400), at(500)}}
	want := []Span{{at(10), at(20)}, {at(50), at(120)}, {at(200), at(250)}}
	if got := merge(all, at(10), at(250)); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A turn that ended late is a stall, also while it lasts; one that did not is
// none, and two that follow each other are one.
func TestAStallIsATurnThatIsLate(t *testing.T) {
	now := time.Now()
	s := &source{late: processorEvery + least}
	w := &Watch{sources: []*source{s}}
	turn := func(from, to time.Duration) {
		w.begin(s, now.Add(from))
		w.end(s, now.Add(to))
	}
	turn(-900*time.Millisecond, -871*time.Millisecond) // 19 ms late
	turn(-800*time.Millisecond, -770*time.Millisecond) // 20 ms late
	turn(-770*time.Millisecond, -700*time.Millisecond)
	w.begin(s, now.Add(-100*time.Millisecond))
	if got, want := w.Within(now.Add(-time.Second), now), 200*time.Millisecond; got != want {
		t.Errorf("stood still for %v, want %v", got, want)
	}
	if got := len(s.spans); got != 1 {
		t.Errorf("%d spans, want 1", got)
	}
}

// A processor that is late again and again lets others in between, and two that are
// late in turn are no machine that stood still: the longest is that of one turn. It
// fails where turns that touch, or overlap, are one, and where what lasts yet, or what
// is outside of the time, counts wrong.
func TestTheLongestIsOneTurnOfOneSource(t *testing.T) {
	now := time.Now()
	one, other := &source{late: processorEvery + least}, &source{late: processorEvery + least}
	w := &Watch{sources: []*source{one, other}}
	turn := func(s *source, from, to int) {
		w.begin(s, now.Add(time.Duration(from)*time.Millisecond))
		w.end(s, now.Add(time.Duration(to)*time.Millisecond))
	}
	longest := func(want time.Duration) {
		t.Helper()
		if got := w.Longest(now.Add(-time.Second), now); got != want {
			t.Errorf("it stood still for %v at a stretch, want %v", got, want)
		}
	}
	longest(0)
	turn(one, -1900, -920) // 80 ms of the time
	turn(one, -900, -850)
	turn(one, -850, -780)
	turn(other, -800, -710)
	longest(90 * time.Millisecond)
	if got, want := w.Within(now.Add(-900*time.Millisecond), now), 190*time.Millisecond; got != want {
		t.Errorf("stood still for %v in all, want %v", got, want)
	}
	w.begin(one, now.Add(-200*time.Millisecond))
	longest(200 * time.Millisecond)
}

// verdict is a test that notes what it is told.
type verdict struct {
	lab.TB
	failed, logged string
}

func (v *verdict) Helper()                       {}
func (v *verdict) Logf(text string, args ...any) { v.logged += fmt.Sprintf(text, args...) }
func (v *verdict) Errorf(text string, args ...any) {
	v.failed += fmt.Sprintf(text, args...)
}

func TestABoundIsWithoutTheStalls(t *testing.T) {
	w := &Watch{sources: []*source{{spans: []Span{{at(100), at(160)}}}}}
	for _, c := range []struct {
		took           int
		failed, logged bool
	}{{100, false, false}, {160, false, true}, {161, true, false}} {
		v := &verdict{}
		w.Judge(v, "it", 100*time.Millisecond, at(0), at(c.took))
		if (v.failed != "") != c.failed || (v.logged != "") != c.logged {
			t.Errorf("%d ms: failed %q, logged %q", c.took, v.failed, v.logged)
		}
	}
}

// A miss is no fault of the product only when a stall was measured in that very
// round, and not for ever.
func TestARoundIsRepeatedForAStallAlone(t *testing.T) {
	for name, c := range map[string]struct {
		stalls, misses int // rounds, from the first on
		rounds         int
		failed         bool
	}{
		"nothing is missed":               {0, 0, 1, false},
		"a miss without a stall":          {0, 1, 1, true},
		"a stall without a miss":          {1, 0, 1, false},
		"a miss in a stall":               {1, 1, 2, false},
		"a second miss, without a stall":  {1, 2, 2, true},
		"a machine that stalls all along": {9, 9, 3, true},
	} {
		s := &source{late: processorEvery + least}
		w := &Watch{sources: []*source{s}}
		rounds, v := 0, &verdict{}
		w.Repeat(v, "it", 3, 50*time.Millisecond, func() (from, to time.Time, missed error) {
			rounds++
			from = time.Now()
			if rounds <= c.stalls {
				w.begin(s, time.Now())
				<-time.After(80 * time.Millisecond)
				w.end(s, time.Now())
			}
			if rounds <= c.misses {
				missed = errors.New("missed")
			}
			return from, time.Now(), missed
		})
		if rounds != c.rounds || (v.failed != "") != c.failed || strings.Count(v.logged, "done again") != min(rounds, c.rounds)-1 {
			t.Errorf("%s: %d rounds, want %d; failed %q, logged %q", name, rounds, c.rounds, v.failed, v.logged)
		}
	}
}

// The watch itself runs and ends.
func TestAWatchRunsUntilItIsClosed(t *testing.T) {
	began := time.Now()
	w, err := Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(50 * time.Millisecond)
	ended := time.Now()
	if took, stood := ended.Sub(began), w.Within(began, ended); stood > took {
		t.Errorf("in %v it stood still for %v", took, stood)
	}
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Error(err)
	}
}
