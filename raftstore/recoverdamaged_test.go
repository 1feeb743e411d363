package raftstore

import (
	"strings"
	"testing"
)

// A log that can't be read to its end says less than it has: the damaged survivor
// looks older than the sound one, and has what the cluster acknowledged.
func TestRecoveryPassesOverNoDamagedSurvivorUnasked(t *testing.T) {
	damagedUpTo := func(id string, index uint64) Inspection {
		in := survivor(id, 3, index)
		in.Damage = "the log: page 7 is none"
		return in
	}
	survivors := []Inspection{damagedUpTo("b", 0), survivor("c", 3, 400)}
	if _, err := PlanRecovery(survivors); err == nil || !strings.Contains(err.Error(), "--give-up b") || !strings.Contains(err.Error(), "page 7 is none") {
		t.Errorf("a damaged survivor: %v", err)
	}
	r, err := PlanRecovery(survivors, "b")
	if err != nil || r.Freshest().NodeID != "c" {
		t.Fatalf("given up: %+v, %v", r.Survivors, err)
	}
	if got := r.Sentence(); !strings.Contains(got, "Damaged and given up, with what they alone have: b (b).") {
		t.Error(got)
	}
	for _, s := range r.Lost {
		if s.ID == "b" {
			t.Error("the damaged one counts as lost, though it is to be wiped and started")
		}
	}
	// A damaged one that has more, by what can be read, is not the freshest.
	if r, err = PlanRecovery([]Inspection{damagedUpTo("b", 900), survivor("c", 3, 400)}, "b"); err != nil || r.Freshest().NodeID != "c" {
		t.Errorf("given up: %+v, %v", r.Survivors, err)
	}
	for name, c := range map[string]struct {
		survivors []Inspection
		givenUp   string
		want      string
	}{
		"a sound one is given up":       {[]Inspection{survivor("a", 1, 2), survivor("b", 1, 1)}, "b", "is not damaged"},
		"a stranger is given up":        {[]Inspection{survivor("a", 1, 2)}, "x", "not among the survivors"},
		"no sound one is left":          {[]Inspection{damagedUpTo("a", 5)}, "a", "no survivor is sound"},
		"a majority is sound beside it": {[]Inspection{survivor("a", 1, 1), survivor("b", 1, 1), survivor("c", 1, 1), damagedUpTo("e", 1)}, "e", "a majority: start them"},
	} {
		if _, err := PlanRecovery(c.survivors, c.givenUp); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// A damaged server does not start, so it is none of the majority that is told to
// be started.
func TestDamagedSurvivorIsNoneOfAMajority(t *testing.T) {
	damaged := survivor("b", 3, 10)
	damaged.Damage = "a bit"
	// a, c and the damaged b are three of the five voters.
	survivors := []Inspection{survivor("a", 3, 10), survivor("c", 3, 9), damaged}
	if r, err := PlanRecovery(survivors, "b"); err != nil || r.Freshest().NodeID != "a" {
		t.Errorf("%+v, %v", r.Survivors, err)
	}
}
