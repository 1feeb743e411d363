package ntpproxy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/cluster"
	"holdfast/ntpproxy/discipline"
)

// keptFile is a cluster file with more in its section `ntp`.
func keptFile(t *testing.T, more string, sources ...string) *cluster.File {
	t.Helper()
	return testCluster(t, "ntp:\n", fmt.Sprintf("ntp:\n  poll: {min: -4, max: -2}\n  sources: [%s]\n%s", strings.Join(sources, ", "), more))
}

// A file that names other sources and other settings is in use at once: the
// clock goes on, and is not stepped anew.
func TestChangedFileReachesTheDisciplineAtOnce(t *testing.T) {
	source := func() string { return newFixture(t, testCluster(t), "127.0.0.1:0").serve(t).String() }
	one, two, three, four := source(), source(), source(), source()
	c := newFakeClock(t, -3*time.Second, 0)
	f := keeping(t, c, keepDiscipline, one, two)
	f.server.config.Node = "fbservice1" // in the file before it was another node, which is asked as well
	f.serve(t)
	eventually(t, "we steer", func() bool { k := f.server.Kept(); return k != nil && k.Updates > 5 })
	updates := f.server.Kept().Updates
	lost := false
	f.server.SetFile(keptFile(t, "  leap: {mode: smear}\n  agreeing: 2\n", three, four))
	eventually(t, "the file's sources are asked, and the mode of leap seconds is in use", func() bool {
		k := f.server.Kept()
		lost = lost || k == nil || k.standing(k.at).Stratum == 0 || k.Stratum == 14 || raised(f.board, conditionOrphan)
		return k != nil && len(k.Sources) == 2 && k.Sources[0].Name == three && k.Sources[0].Samples > 2 && k.Sources[1].Samples > 2 &&
			k.leapMode == discipline.LeapSmear && f.server.leapMode() == discipline.LeapSmear
	})
	if k := f.server.Kept(); k.Updates < updates || len(c.stepped()) != 1 {
		t.Errorf("updates %d (before %d), steps %v: it began anew", k.Updates, updates, c.stepped())
	}
	if lost {
		t.Error("clients were told that nobody keeps the clock, or an admin that the sources are gone")
	}
	f.server.SetFile(keptFile(t, "  keep: serve\n", two))
	eventually(t, "the clock is another's", func() bool { return f.server.Kept() == nil })
	f.server.SetFile(keptFile(t, "", two))
	eventually(t, "it is ours again", func() bool { k := f.server.Kept(); return k != nil && k.Updates > 1 })
	if raised(f.board, conditionRefused) {
		t.Error("our own clock is taken for another's")
	}
}

// Where a name leads stays known when the list of sources changes.
func TestAddressesStayWithTheirNames(t *testing.T) {
	k := resolving(t)
	k.set = &settings{}
	k.found(t, raw5, "192.0.2.1", "192.0.2.2")
	k.answer(t, raw5, true)
	old := k.generation
	k.follow(&settings{sources: []string{"other.example.org:123", "pool.example.org:123"}})
	if k.addrs[0].IsValid() || k.addrs[1].String() != "192.0.2.1:123" || k.last[1].String() != "192.0.2.1" || len(k.lead(1).found) != 2 {
		t.Errorf("addresses %v, answered from %v, known %v", k.addrs, k.last, k.lead(1).found)
	}
	k.take(ended(t), heard{generation: old, lookup: true}) // of a list that is no more
	if !slices.Equal(k.lead(0).found, nil) || k.addrs[0].IsValid() {
		t.Error("what was looked up for another source is taken")
	}
	was := k.generation
	if k.follow(&settings{sources: k.names}); k.generation != was {
		t.Error("the same sources are not the same")
	}
}

func TestListenAddressesWaitForARestartAndSayIt(t *testing.T) {
	f := newFixture(t, testCluster(t))
	changed := testCluster(t, "ntp:\n", "ntp:\n  listen: [127.0.0.1:1123]\n")
	if f.server.SetFile(changed); len(f.server.Waiting()) != 0 {
		t.Error("a server that does not run waits for a restart")
	}
	first := parseFile(t, "schema: 1\ncluster: c\ndomain: d.example\nnetworks: {n: {prefix: 127.0.0.0/8}}\nroles: {service: {voters: 1, run: [ntp]}}\nnodes: {a: {role: service, addresses: {n: 127.0.0.1}}}\nntp: {listen: [\"127.9.8.7:11123\"]}\n")
	f.server.SetFile(first)
	f.serve(t)
	if keys := f.server.Waiting(); len(keys) != 0 {
		t.Errorf("waiting: %v", keys)
	}
	if f.server.SetFile(changed); !slices.Equal(f.server.Waiting(), []string{"ntp.listen"}) {
		t.Errorf("waiting: %v", f.server.Waiting())
	}
	if f.server.SetFile(first); len(f.server.Waiting()) != 0 {
		t.Errorf("changed back, and waiting: %v", f.server.Waiting())
	}
}

// The source that led was taken out, and the new ones have yet to answer: what
// clients were told still holds, with an error that grows.
func TestClientsAreNotLeftWithoutTimeWhileNewSourcesAreHeardFirst(t *testing.T) {
	k := resolving(t)
	led := &Kept{Tracking: discipline.Tracking{Synchronised: true, Leading: 0, Stratum: 3}, reference: orphanReference}
	k.server.kept.Store(led)
	none := &Kept{Tracking: discipline.Tracking{Synchronised: true, Leading: -1, Dispersion: time.Second}}
	if k.bridge(none); none.standing(start).Stratum != 3 || none.reference != led.reference || none.standing(start).RootDispersion != time.Second {
		t.Errorf("clients are told %+v", none.standing(start))
	}
	other := &Kept{Tracking: discipline.Tracking{Synchronised: true, Leading: 1, Stratum: 5}}
	if k.bridge(other); other.Stratum != 5 {
		t.Error("a source that leads is not what clients are told")
	}
}
