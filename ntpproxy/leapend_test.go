package ntpproxy

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/kernel/clock"
	"holdfast/ntpproxy/discipline"
)

func TestConditionOfTheLeapListEndsWithTheList(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leap-seconds.list")
	if err := os.WriteFile(path, []byte("nothing of the kind\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, testCluster(t, "ntp:\n", "ntp:\n  leap: {list: "+path+"}\n"))
	if !raised(f.board, conditionLeapList) {
		t.Fatal("a list that is none is no condition")
	}
	if f.server.SetFile(testCluster(t)); raised(f.board, conditionLeapList) {
		t.Error("it stands though the file names no list")
	}
}

func TestConditionOfTheDaemonEndsWithSmearing(t *testing.T) {
	f := newFixture(t, testCluster(t, "ntp:\n", "ntp:\n  leap: {mode: smear}\n"))
	f.server.spreader = spreader{failed: true, passed: true, looked: true, smear: discipline.Smear{
		LeapSecond: discipline.LeapSecond{At: newYear, Kind: discipline.LeapInsert}}, current: &smearing{at: newYear, midnight: newYear, passed: true}}
	now := newYear.Add(time.Hour)
	f.server.spread(fromKernel(synchronised, 4, now), synchronised, now)
	if !raised(f.board, conditionLeapDaemon) {
		t.Fatal("a leap second that was not made is no condition")
	}
	f.server.SetFile(testCluster(t))
	if s, smear := f.server.spread(fromKernel(synchronised, 4, now), synchronised, now); raised(f.board, conditionLeapDaemon) || s.Stratum != 4 || smear != nil {
		t.Errorf("it stands though nothing is smeared any more: %+v, %v", s, smear)
	}
}

// The kernel stepped the clock, and what is added to it is still that of before:
// nothing is answered until the next look.
func TestOffsetOfBeforeTheLeapSecondIsNotServedAfterIt(t *testing.T) {
	for _, kind := range []discipline.Leap{discipline.LeapInsert, discipline.LeapDelete} {
		d := &dayAround{midnight: newYear, kind: kind, told: true}
		answered := 0
		for elapsed := 43190.0; elapsed < 43215; elapsed++ {
			d.look(elapsed)
			for _, later := range []float64{0, 0.3, 0.6, 0.999, 1.199} { // until the next look, and a chronyd that is slow to answer
				wall, _ := d.at(elapsed + later)
				ns, ok := d.s.current.shift(wall)
				if !ok {
					continue
				}
				answered++
				served := wall.Add(time.Duration(ns)).Sub(d.midnight.Add(-12 * time.Hour)).Seconds()
				want := (elapsed + later) * (1 - float64(kind)/(86400+float64(kind)))
				if off := served - want; off > 1e-3 || off < -1e-3 {
					t.Fatalf("%v: %v s after noon what is served is %v s off", kind, elapsed+later, off)
				}
			}
		}
		if answered < 60 {
			t.Errorf("%v: %d answers in 25 seconds: silent for too long", kind, answered)
		}
	}
}

// A mode that changes in the middle of a smear is no jump for clients.
func TestSmearOfADaemonsClockIsGoneThroughWith(t *testing.T) {
	f := newFixture(t, testCluster(t, "ntp:\n", "ntp:\n  leap: {mode: smear}\n"))
	noon := newYear.Add(-6 * time.Hour)
	leap := clock.State{Synchronised: true, MaxError: time.Millisecond, Insert: true}
	if _, smear := f.server.spread(fromKernel(leap, 4, noon), leap, noon); smear == nil {
		t.Fatal("nothing is smeared")
	}
	f.server.SetFile(testCluster(t))
	s, smear := f.server.spread(fromKernel(leap, 4, noon.Add(time.Second)), leap, noon.Add(time.Second))
	if smear == nil || s.Leap != 0 {
		t.Errorf("a quarter of a second was taken back at once: %+v", s)
	}
}
