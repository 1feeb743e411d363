package raftstore

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"
)

// gone reads how long servers have not answered, such as "c=20m d=4h".
func gone(t *testing.T, text string) map[string]time.Duration {
	t.Helper()
	found := map[string]time.Duration{}
	for _, word := range strings.Fields(text) {
		id, age, _ := strings.Cut(word, "=")
		d, err := time.ParseDuration(age)
		if err != nil {
			t.Fatal(err)
		}
		found[id] = d
	}
	return found
}

func TestAutopilotReplacesWhatIsLostAndNeverTheMajority(t *testing.T) {
	for name, c := range map[string]struct {
		voters             int
		raft, gossip, gone string
		change             func(*view)
		want               string
	}{
		"a lost voter: the warm one gets a vote first": {3,
			"fb1/a!+ fb2/b+ fb3/c+~ fb4/d", "fb1/a fb2/b fb3/c=failed fb4/d", "c=11m", nil, "promote fb4"},
		"then the lost one's is taken": {3,
			"fb1/a!+ fb2/b+ fb3/c+~ fb4/d+", "fb1/a fb2/b fb3/c=failed fb4/d", "c=11m", nil, "demote fb3"},
		"not before it counts as lost": {3,
			"fb1/a!+ fb2/b+ fb3/c+~ fb4/d", "fb1/a fb2/b fb3/c=failed fb4/d", "c=9m", nil, ""},
		"not while the gossip sees it": {3,
			"fb1/a!+ fb2/b+ fb3/c+~ fb4/d", "fb1/a fb2/b fb3/c fb4/d", "c=11m", nil, ""},
		"not because the gossip alone lost it": {3,
			"fb1/a!+ fb2/b+ fb3/c+ fb4/d", "fb1/a fb2/b fb3/c=failed fb4/d", "", nil, ""},
		"a warm server that has just come waits": {3,
			"fb1/a!+ fb2/b+ fb3/c+~ fb4/d", "fb1/a fb2/b fb3/c=failed fb4/d", "c=11m", func(v *view) { v.Unstable["d"] = true }, ""},
		"a demoted server is not warm": {3,
			"fb1/a!+ fb2/b+ fb3/c+~ fb4/d", "fb1/a fb2/b fb3/c=failed fb4/d", "c=11m", func(v *view) { v.Demoted["d"] = true }, ""},
		"of three without a warm one the vote stays": {3,
			"fb1/a!+ fb2/b+ fb3/c+~", "fb1/a fb2/b fb3/c=failed", "c=11m", nil, ""},
		"of four without a warm one it goes": {4,
			"fb1/a!+ fb2/b+ fb3/c+ fb4/d+~", "fb1/a fb2/b fb3/c fb4/d=failed", "d=11m", nil, "demote fb4"},
		"never when the rest would be no majority": {4,
			"fb1/a!+ fb2/b+~ fb3/c+ fb4/d+~", "fb1/a fb2/b=failed fb3/c fb4/d=failed", "b=99h d=99h", func(v *view) { v.Pilot.MinQuorum = 1 }, "demote fb2"}, // three of four stay, two of them up
		"of three with two lost nothing goes": {3,
			"fb1/a!+ fb2/b+~ fb3/c+~ fb4/d", "fb1/a fb2/b=failed fb3/c=failed fb4/d", "b=99h c=99h", func(v *view) { v.Pilot.MinQuorum = 1 }, ""},
		"switched off, nothing goes": {3,
			"fb1/a!+ fb2/b+ fb3/c+~ fb4/d", "fb1/a fb2/b fb3/c=failed fb4/d", "c=99h", func(v *view) { v.Pilot.CleanUp = false }, ""},
		"a lost server without a vote is forgotten at last": {3,
			"fb1/a!+ fb2/b+ fb3/c~ fb4/d+", "fb1/a fb2/b fb3/c=failed fb4/d", "c=73h", nil, "remove fb3"},
		"but not before": {3,
			"fb1/a!+ fb2/b+ fb3/c~ fb4/d+", "fb1/a fb2/b fb3/c=failed fb4/d", "c=71h", nil, ""},
		"what was lost and is back gets a vote that is free": {3,
			"fb1/a!+ fb2/b+ fb3/c", "fb1/a fb2/b fb3/c", "", nil, "promote fb3"},
		"what flaps gets none": {3,
			"fb1/a!+ fb2/b+ fb3/c", "fb1/a fb2/b fb3/c", "", func(v *view) { v.Unstable["c"] = true }, ""},
		"what an admin demoted gets none": {3,
			"fb1/a!+ fb2/b+ fb3/c", "fb1/a fb2/b fb3/c", "", func(v *view) { v.Demoted["c"] = true }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := parseView(t, c.voters, c.raft, c.gossip)
			v.Gone, v.Pilot, v.Unstable, v.Demoted = gone(t, c.gone), DefaultAutopilot(), map[string]bool{}, map[string]bool{}
			if c.change != nil {
				c.change(&v)
			}
			got := ""
			if next, _ := plan(v); next != nil {
				got = fmt.Sprintf("%s %s", next.Kind, next.Server.Name)
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestWarmServerTakesTheVoteOfOneThatIsLost(t *testing.T) {
	h := newHosts(t, 4, 3)
	h.timing = calm // to each new leader the lost one is gone since a moment
	h.startAll()
	h.settled("fb1 fb2 fb3", "fb4")
	if _, err := h.leader().operation(opPilot, "dead-after=1s"); err == nil {
		t.Fatal("a server that restarts would count as lost")
	}
	lost := h.follower()
	lost.kill()
	var rest []string
	for _, name := range []string{"fb1", "fb2", "fb3", "fb4"} {
		if name != lost.name {
			rest = append(rest, name)
		}
	}
	if _, err := h.leader().operation(opPilot, "dead-after=10s"); err != nil {
		t.Fatal(err)
	}
	h.settled(strings.Join(rest, " "), lost.name)
	lost.start()
	h.everywhere("", "")
	h.settled(strings.Join(rest, " "), lost.name) // it is the warm one now
}

func TestServerIsLostOnlyWhenItNeverAnsweredMeanwhile(t *testing.T) {
	tr := newTracker()
	tr.missed("a")
	since := tr.peers["a"].goneSince
	tr.missed("a")
	if s, ok := tr.sighting("a"); ok || s.goneSince != since || since.IsZero() {
		t.Errorf("after two misses: %+v, %v", s, ok)
	}
	tr.saw("a", progress{})
	up := tr.peers["a"].upSince
	if s, ok := tr.sighting("a"); !ok || !s.goneSince.IsZero() || up.IsZero() {
		t.Errorf("after an answer: %+v, %v", s, ok)
	}
	tr.saw("a", progress{})
	if tr.peers["a"].upSince != up {
		t.Error("an answer after an answer begins anew")
	}
	tr.missed("a")
	if s, ok := tr.sighting("a"); !ok || !s.silent || !s.upSince.IsZero() || s.goneSince.Before(up) {
		t.Errorf("after another miss: %+v, %v", s, ok)
	}
}

func TestSettingsOfTheAutopilot(t *testing.T) {
	def := DefaultAutopilot()
	if err := def.Validate(); err != nil {
		t.Fatal(err)
	}
	changed, err := changedPilot(def, map[string][]string{"clean-up": {"false"}, "dead-after": {"1h"}, "min-quorum": {"2"}, "stabilization": {"0s"}, "server": {"x"}})
	want := def
	want.CleanUp, want.DeadAfter, want.MinQuorum, want.Stabilization = false, time.Hour, 2, 0
	if err != nil || changed != want {
		t.Errorf("%+v, %v; want %+v", changed, err, want)
	}
	for key, value := range maps.All(map[string]string{
		"clean-up": "perhaps", "dead-after": "9s", "forget-after": "9m", "min-quorum": "0", "stabilization": "-1s",
	}) {
		if _, err := changedPilot(def, map[string][]string{key: {value}}); err == nil {
			t.Errorf("%s=%s is accepted", key, value)
		}
	}
}
