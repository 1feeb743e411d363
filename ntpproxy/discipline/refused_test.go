package discipline

import (
	"math"
	"testing"
)

// refusing makes a server of a world refuse in place of an answer, at times.
func refusing(w *world, i int, denied bool, when func(now float64) bool) {
	w.servers[i].cut = func(now float64) bool {
		if when(now) {
			w.core.Refused(i, denied)
			return true
		}
		return false
	}
}

// ntpd with `limited kod` refuses who restarts twice; what the other sources say
// must not wait for it.
func TestSourceThatRefusesAtTheStartKeepsNobodyWaiting(t *testing.T) {
	for name, denied := range map[string]bool{"RATE": false, "DENY": true} {
		w := newWorld(t, 1, lan(), lan(), lan(), lan())
		refusing(w, 2, denied, func(float64) bool { return true })
		w.clock = 40
		w.start(Config{})
		w.run(15)
		if k := w.core.Tracking(w.reading()); !k.Synchronised || len(w.steps) != 1 {
			t.Errorf("%s: not synchronised within 15 s by the three others: %+v", name, k)
		}
	}
}

// The only source refuses the second request of the burst: the next three come
// at the ordinary pace, and not a quarter as often.
func TestSourceThatRefusesABurstIsAskedAtItsOrdinaryPace(t *testing.T) {
	w := newWorld(t, 1, lan())
	refusing(w, 0, false, func(now float64) bool { return now > 1 && now < 10 })
	w.start(Config{})
	w.run(200)
	if k := w.core.Tracking(w.reading()); !k.Synchronised || w.asked > 5 {
		t.Errorf("synchronised: %v after 200 s and %d requests, want two of a burst and one every 64 s", k.Synchronised, w.asked)
	}
}

func TestRefusalsRaiseTheIntervalWithinBoundsAndAnswersLowerIt(t *testing.T) {
	w := newWorld(t, 1, lan(), lan(), lan())
	refusing(w, 0, false, func(now float64) bool { return now > 2*hour && now < 26*hour })
	w.start(Config{})
	w.run(2 * hour)
	w.asked = 0
	w.run(26 * hour)
	if got := w.core.Sources(w.reading())[0].Poll; got != refusedPoll {
		t.Errorf("a source that refuses for a day is asked every 2^%d s, want 2^%d", got, refusedPoll)
	}
	w.run(48 * hour)
	if s := w.core.sources[0]; s.floor() != s.config.MinPoll {
		t.Errorf("a day after the last refusal it is still asked every 2^%d s at most, want 2^%d", s.floor(), s.config.MinPoll)
	}
	w.core.Refused(0, true)
	if s := w.core.sources[0]; s.floor() != refusedPoll || !s.lost() {
		t.Errorf("who denies us is asked every 2^%d s at most, lost: %v", s.floor(), s.lost())
	}
	w.core.Forget(0)
	if s := w.core.sources[0]; s.floor() != s.config.MinPoll || s.poll != s.config.MinPoll {
		t.Errorf("another server of the same name is asked every 2^%d s: nobody of it ever refused us", s.poll)
	}
}

func TestNodeWhoseSourcesAllRefuseIsNoAuthority(t *testing.T) {
	for name, test := range map[string]struct {
		denied bool
		within float64
	}{"RATE": {false, 2 * hour}, "DENY": {true, 0.5 * hour}} {
		w := newWorld(t, 1, wan(), wan())
		refused := func(now float64) bool { return now > 24*hour }
		for i := range w.servers {
			refusing(w, i, test.denied, refused)
		}
		w.start(Config{})
		w.run(24 * hour)
		if k := w.core.Tracking(w.reading()); k.Phase != Sourced {
			t.Fatalf("%s: %v before anybody refused", name, k.Phase)
		}
		w.run(24*hour + test.within)
		if k := w.core.Tracking(w.reading()); k.Phase != Alone || k.Stratum != aloneStratum || k.Leading != -1 {
			t.Errorf("%s: %.1f h after all refused it is %v, stratum %d", name, test.within/hour, k.Phase, k.Stratum)
		}
		if math.Abs(w.clock) > 10e-3 {
			t.Errorf("%s: off by %v s", name, w.clock)
		}
	}
}

// The daily look-up of a pool's names gives other servers, all at once: polls
// are 17 minutes apart by then.
func TestNamesThatLeadToOtherServersMakeNoOrphan(t *testing.T) {
	c := newNodes(t, 3, 11)
	for i, w := range c.list {
		moved := map[int]float64{}
		for s := range sourcesEach {
			cut := w.servers[s].cut
			w.servers[s].cut = func(now float64) bool {
				if now > 24*hour && moved[s] == 0 {
					moved[s] = now
					w.core.Forget(s)
				}
				return cut(now)
			}
		}
		w.each = func() {
			if k := w.core.Tracking(w.reading()); w.now > hour && k.Phase != Sourced {
				t.Fatalf("at %.0f s node %d is %v: its sources answer", w.now, i, k.Phase)
			}
			for s, at := range moved {
				if r := w.core.Sources(w.reading())[s]; w.now > at+30 && r.Samples < minSamples {
					t.Fatalf("at %.0f s node %d has %d samples of a server that it found at %.0f s: want a burst", w.now, i, r.Samples, at)
				}
			}
		}
	}
	c.lead(1)
	c.run(24 * hour)
	if poll := c.list[0].core.sources[0].poll; poll < 9 {
		t.Fatalf("a source is asked every 2^%d s: this test is of long polls", poll)
	}
	c.run(24*hour + 1100)
	for i, w := range c.list {
		for s := range sourcesEach {
			if r := w.core.Sources(w.reading())[s]; r.Samples < minSamples || r.State < Outlier {
				t.Errorf("node %d, source %d: %v with %d samples, want it heard in a burst", i, s, r.State, r.Samples)
			}
		}
	}
}
