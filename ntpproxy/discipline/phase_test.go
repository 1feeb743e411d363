package discipline

import (
	"testing"
	"time"
)

func TestPhaseIsTheFirstThatTheOthersAllow(t *testing.T) {
	heard := func(authority Authority, misses int, peer bool) *source {
		s := &source{config: SourceConfig{Peer: peer}, reach: 1, misses: misses, last: Sample{Stratum: 3, Authority: authority}}
		s.register.line.ok = true
		return s
	}
	gone := heard(NoAuthority, lostAfter, false)
	for name, test := range map[string]struct {
		own, other *source
		leader     int
		want       Phase
		eligible   bool // the other node may be followed
	}{
		"a source of our own":          {heard(NoAuthority, lostAfter-1, false), heard(SourceAuthority, 0, true), Self, Sourced, false},
		"another node has one":         {gone, heard(SourceAuthority, 0, true), Self, Following, true},
		"nobody has, and we lead":      {gone, heard(NoAuthority, 0, true), Self, OrphanLeader, false},
		"nobody has, and another does": {gone, heard(LeaderAuthority, 0, true), 1, Orphan, true},
		"the leader is not one yet":    {gone, heard(NoAuthority, 0, true), 1, Alone, false},
		"the leader is lost":           {gone, heard(LeaderAuthority, lostAfter, true), 1, Alone, false},
		"who has a source is lost":     {gone, heard(SourceAuthority, lostAfter, true), Nobody, Alone, false},
		"one leads that is no leader":  {gone, heard(LeaderAuthority, 0, true), Nobody, Alone, false},
	} {
		c := &Core{sources: []*source{test.own, test.other}, leader: test.leader, config: Config{Orphan: 10, Agreeing: 1}}
		c.phase = c.find(Reading{Raw: takeover})
		if c.phase != test.want || c.eligible(1) != test.eligible {
			t.Errorf("%s: %v, the other may be followed: %v; want %v, %v", name, c.phase, c.eligible(1), test.want, test.eligible)
		}
	}
	c := &Core{sources: []*source{gone, heard(NoAuthority, 0, true)}, phase: Following}
	if c.eligible(1) {
		t.Error("a node that follows another is followed")
	}
}

func TestOrphanLeaderIsNotSteppedWhenItsSourceReturns(t *testing.T) {
	s := lan()
	s.cut = func(now float64) bool { return now < hour }
	w := newWorld(t, 1, s)
	w.clock = 0.5
	w.start(Config{Orphan: 10})
	w.core.Lead(Self)
	w.run(hour - 1)
	if k := w.core.Tracking(w.reading()); k.Phase != OrphanLeader || k.Stratum != 10 || k.Dispersion > time.Second {
		t.Fatalf("%+v", k)
	}
	before := w.clock
	w.run(2 * hour)
	// Three samples 64 s apart come first.
	if walked := before - w.clock; len(w.steps) > 0 || walked > 0.036 || walked < 0.030 {
		t.Errorf("steps %v, walked %v s in an hour: want 10 ppm", w.steps, walked)
	}
}
