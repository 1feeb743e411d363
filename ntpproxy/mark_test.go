package ntpproxy

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/kernel/clock"
	"holdfast/ntpproxy/discipline"
)

// While we were not there another daemon may have taken the clock: the mark of
// our last run says nothing of it.
func TestClockThatAnotherTookWhileWeWereGoneIsLeftAlone(t *testing.T) {
	source := newFixture(t, testCluster(t), "127.0.0.1:0").serve(t).String()
	c := newFakeClock(t, 0, 0)
	first := keeping(t, c, keepDiscipline, source)
	run := func(t *testing.T) *fixture {
		f := keeping(t, c, keepDiscipline, source)
		f.server.config.RunDir, f.server.config.StateDir = first.server.config.RunDir, first.server.config.StateDir
		f.serve(t)
		return f
	}
	steering := func(f *fixture) func() bool {
		return func() bool { k := f.server.Kept(); return k != nil && k.Updates > 3 }
	}
	t.Run("first", func(t *testing.T) { eventually(t, "we steer", steering(run(t))) })
	t.Run("nobody took it", func(t *testing.T) { eventually(t, "we steer again", steering(run(t))) })
	c.mu.Lock()
	c.frequency, c.state.Frequency = -77, -77
	c.mu.Unlock()
	t.Run("another took it", func(t *testing.T) {
		f := run(t)
		eventually(t, "it is said", func() bool { return raised(f.board, conditionRefused) })
		if s, _ := c.State(); s.Frequency != -77 {
			t.Errorf("its frequency of -77 ppm became %v", s.Frequency)
		}
	})
}

func TestMarkSaysWhichFrequenciesAreOurs(t *testing.T) {
	f := keeping(t, newFakeClock(t, 0, 0), keepDiscipline, "127.0.0.1:9")
	s := f.server
	has := func(ppm float64) bool { return s.marked(clock.State{Synchronised: true, Frequency: ppm}) }
	if has(0) {
		t.Error("a clock without a mark is ours")
	}
	if err := s.mark(8.25, -5); err != nil {
		t.Fatal(err)
	}
	// Killed before or after the kernel was told.
	if !has(8.25) || !has(-5) || !has(8.25+1.0/(1<<17)) || has(8.252) || has(0) {
		t.Error("the mark of 8.25 and -5 ppm is misread")
	}
	path := filepath.Join(s.config.RunDir, markFile)
	for text, want := range map[string]bool{"": true, "NaN\n": false, "x": false, "\n": false} { // empty: as former versions made it
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if has(0) != want {
			t.Errorf("a mark of %q is believed: %v, want %v", text, !want, want)
		}
	}
	s.unmark()
	if has(8.25) {
		t.Error("a clock that is another's is ours")
	}
}

// limited is a clock that, as the kernel's, runs 500 ppm faster or slower at most.
type limited struct{ *fakeClock }

func (c limited) Steer(s clock.Steering) error {
	s.Frequency = max(-clock.MaxFrequency, min(clock.MaxFrequency, s.Frequency))
	return c.fakeClock.Steer(s)
}

func TestFrequencyBeyondTheKernelsIsNotTakenForAnothers(t *testing.T) {
	c := newFakeClock(t, 0, 0)
	f := keeping(t, c, keepDiscipline, "127.0.0.1:9")
	f.server.clock = limited{c}
	k := &keeper{server: f.server}
	for _, ppm := range []float64{-511.6, 511.6, 499} { // an oscillator at the limit, and a smear
		for range 2 {
			if err := k.apply(discipline.Adjustment{Frequency: ppm * 1e-6}); err != nil {
				t.Errorf("told %v ppm: %v", ppm, err)
			}
		}
	}
	if s, _ := c.State(); !f.server.marked(s) {
		t.Error("a restart takes the clock for another's")
	}
}

// The rate of a smear would be one second a day of error, when nobody is there
// to take it back.
func TestServerThatEndsInASmearLeavesTheOscillatorsFrequency(t *testing.T) {
	when := time.Until(time.Date(2026, 12, 31, 18, 0, 0, 0, time.UTC)) // the clock's own time
	c := newFakeClock(t, when, 0)
	f := keeping(t, c, keepDiscipline, liar(t, when))
	set := *f.server.settings.Load()
	set.leap = leapSettings{mode: discipline.LeapSmear, second: discipline.LeapSecond{At: newYear, Kind: discipline.LeapInsert}}
	f.server.settings.Store(&set)
	f.server.loadLeaps(newYear.Add(-6 * time.Hour))
	t.Run("serving", func(t *testing.T) {
		f.serve(t)
		eventually(t, "the clock smears", func() bool {
			k := f.server.Kept()
			s, _ := c.State()
			return k != nil && k.Updates > 3 && k.Smearing && s.Frequency != 0
		})
	})
	d, err := readDrift(filepath.Join(f.server.config.StateDir, driftFile))
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := c.State(); s.Frequency < d.frequency-0.01 || s.Frequency > d.frequency+0.01 {
		t.Errorf("the clock is left at %v ppm, the oscillator needs %v", s.Frequency, d.frequency)
	}
}
