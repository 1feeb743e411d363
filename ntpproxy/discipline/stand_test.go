package discipline

import (
	"errors"
	"math"
	"testing"
	"time"
)

// A node that knows no other must say so, too, when nobody sets its clock.
func TestSingleNodeSaysThatItsSourcesAreGone(t *testing.T) {
	s := lan()
	s.cut = func(now float64) bool { return now > 24*hour && now < 48*hour }
	w := newWorld(t, 1, s)
	w.heat = func(now float64) float64 { return 1e-6 * max(0, min(1, (now-24*hour)/hour)) }
	w.start(Config{})
	w.run(25 * hour)
	if k := w.core.Tracking(w.reading()); k.Phase != Alone || k.Stratum != aloneStratum || !k.Synchronised {
		t.Errorf("an hour after its only source fell silent: %v, stratum %d", k.Phase, k.Stratum)
	}
	w.run(48 * hour)
	off := w.clock
	if math.Abs(off) < 50e-3 {
		t.Fatalf("off by %v s after a day, in which the oscillator ran 1 ppm wrong", off)
	}
	w.run(48*hour + 1800)
	k := w.core.Tracking(w.reading())
	if k.Phase != Sourced || k.Stratum != 2 || math.Abs(w.clock) > 100e-6 || len(w.steps) > 0 {
		t.Errorf("half an hour after it came back: %v, stratum %d, off by %v s of %v, steps %v; nobody walks beside it", k.Phase, k.Stratum, w.clock, off, w.steps)
	}
}

// That sources answer is not enough: they must be able to set the clock.
func TestSourcesThatAnswerButCanNotSetTheClockAreSaidToBeGone(t *testing.T) {
	after := func(now float64) bool { return now > 2*hour }
	for name, test := range map[string]struct {
		spoil func(a, b *server)
	}{
		"one of two that must agree is left": {func(a, _ *server) { a.cut = after }},
		"all are too far away": {func(a, b *server) {
			for _, s := range []*server{a, b} {
				s.fill = func(s *Sample) {
					if s.Server.Sub(birth) > 2*time.Hour {
						s.Dispersion = 5 * time.Second
					}
				}
			}
		}},
		"they contradict each other": {func(a, _ *server) {
			a.wrong = func(now float64) float64 {
				if after(now) {
					return 3
				}
				return 0
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := lan(), lan()
			test.spoil(a, b)
			w := newWorld(t, 1, a, b)
			w.start(Config{Agreeing: 2, Orphan: 10})
			w.run(2 * hour)
			if k := w.core.Tracking(w.reading()); k.Phase != Sourced {
				t.Fatalf("%v while both are in order", k.Phase)
			}
			w.run(4 * hour)
			if k := w.core.Tracking(w.reading()); k.Phase != Alone {
				t.Errorf("two hours later it claims to be %v; the last update was %v ago", k.Phase, (w.reading().Raw - k.Updated).Round(time.Second))
			}
		})
	}
}

func TestOneSourceOfTwoThatMustAgreeIsNoPhaseToBeginWith(t *testing.T) {
	a := lan()
	a.cut = func(float64) bool { return true }
	w := newWorld(t, 1, a, lan())
	w.start(Config{Agreeing: 2, Orphan: 10})
	w.core.Lead(Self)
	w.run(600)
	if k := w.core.Tracking(w.reading()); k.Phase != OrphanLeader || k.Stratum != 10 {
		t.Errorf("%v, stratum %d: its clock was never set, and it leads", k.Phase, k.Stratum)
	}
}

// Who follows nobody yet must not go on in the name of a source that is gone.
func TestNodeThatNobodyConvincesYetIsNoAuthority(t *testing.T) {
	dark := func(now float64) bool { return now > 2*hour }
	own := lan()
	own.cut = dark
	peer := func(off float64) *server {
		s := lan()
		s.config = SourceConfig{MinPoll: 4, MaxPoll: 4, Burst: true, Peer: true}
		s.fill = func(sample *Sample) { sample.Stratum, sample.Authority = 3, SourceAuthority }
		s.wrong = func(now float64) float64 {
			if dark(now) {
				return off
			}
			return 0
		}
		return s
	}
	w := newWorld(t, 1, own, peer(3), peer(-3))
	w.start(Config{Orphan: 10})
	w.run(2 * hour)
	was := w.core.Tracking(w.reading())
	if was.Phase != Sourced || was.Leading != 0 || was.Stratum != 2 {
		t.Fatalf("%+v", was)
	}
	w.run(4 * hour)
	if k := w.core.Tracking(w.reading()); k.Leading == 0 || k.Phase != Alone || k.Stratum != aloneStratum {
		t.Errorf("two others that contradict each other: it claims stratum %d below source %d, %v", k.Stratum, k.Leading, k.Phase)
	}
}

func TestSourcesThatReturnTooFarAwayLendNoAuthority(t *testing.T) {
	s := lan()
	s.cut = func(now float64) bool { return now < hour }
	w := newWorld(t, 1, s)
	w.clock = 5000
	w.start(Config{Orphan: 10})
	w.core.Lead(Self)
	w.run(2 * hour)
	k := w.core.Tracking(w.reading())
	if len(w.errs) == 0 || !errors.Is(w.errs[0], ErrPanic) || len(w.steps) > 0 || math.Abs(w.clock-5000) > 1 {
		t.Fatalf("off by %v s, steps %v, errors %v", w.clock, w.steps, w.errs)
	}
	if k.Phase != OrphanLeader || k.Stratum != 10 || !k.Synchronised {
		t.Errorf("while an admin is waited for it claims to be %v, stratum %d", k.Phase, k.Stratum)
	}
	w.core.HoldSteps(true) // what lives here forbids the step
	w.core.AllowStep(false)
	w.wake = w.now
	w.run(w.now + 5)
	if k = w.core.Tracking(w.reading()); k.Phase != Alone || k.Stratum != aloneStratum || len(w.steps) > 0 {
		t.Errorf("an admin's word that did not help: it claims to be %v, stratum %d; steps %v", k.Phase, k.Stratum, w.steps)
	}
}

// Sources come back too far away, at each node at another time: the cluster
// stays together, and goes home when each node has an admin's word.
func TestOrphansStayTogetherUntilAnAdminLetsThemGoFar(t *testing.T) {
	c := newNodes(t, 4, 13)
	for i := range c.cut {
		c.cut[i] = func(now float64) bool { return now < hour+float64(i)*900 }
		c.list[i].clock = -3000
	}
	c.lead(1)
	c.run(1800)
	c.most = 0
	c.run(6 * hour)
	c.want(t, Orphan, OrphanLeader, Orphan, Orphan)
	for i, w := range c.list {
		if len(w.errs) == 0 {
			t.Errorf("node %d does not ask an admin", i)
		}
	}
	if c.most > 1e-3 {
		t.Errorf("waiting for an admin they went up to %.2f ms apart", c.most*1e3)
	}
	for _, i := range []int{2, 1, 0, 3} {
		c.list[i].core.AllowStep(false)
		c.list[i].wake = c.list[i].now
		c.run(c.list[0].now + 120)
		if off := c.list[i].clock; math.Abs(off) > 1e-3 {
			t.Errorf("node %d is off by %v s after its step", i, off)
		}
	}
	c.want(t, Sourced, Sourced, Sourced, Sourced)
}

// A power failure without upstream: the leader was never set, but knows its
// oscillator. What others follow must run at that frequency, and go on being
// good enough to be followed.
func TestLeaderThatStartsColdRunsAtItsRememberedFrequency(t *testing.T) {
	c := newNodes(t, 3, 12)
	for i, w := range c.list {
		c.cut[i] = func(float64) bool { return true }
		w.drift, w.wander = 25e-6+float64(i)*10e-6, 1e-10
		w.core = New(Config{Sources: w.core.config.Sources, Orphan: 10, Frequency: -w.drift, Skew: 0.1e-6}, w.reading())
	}
	c.lead(0)
	c.run(600)
	leader := c.list[0]
	if e := leader.drift + leader.kernel; math.Abs(e) > 0.5e-6 {
		t.Errorf("the leader's clock runs %.2f ppm wrong, and its frequency was remembered", e*1e6)
	}
	before := leader.clock
	c.most = 0
	for c.list[0].now < 48*hour {
		c.run(c.list[0].now + hour)
		k := leader.core.Tracking(leader.reading())
		if said := k.Dispersion + k.Offset.Abs(); said > 600*time.Millisecond {
			t.Fatalf("after %.0f h the leader admits to %v: clients refuse it", leader.now/hour, said)
		}
	}
	c.want(t, OrphanLeader, Orphan, Orphan)
	if moved := math.Abs(leader.clock - before); moved > 0.1 || c.most > 1e-3 {
		t.Errorf("in two days the leader's clock moved by %v s; nodes were up to %.2f ms apart", moved, c.most*1e3)
	}
	for i, w := range c.list[1:] {
		if s := w.core.Sources(w.reading())[sourcesEach]; s.State != Leading {
			t.Errorf("to node %d the leader is %v", i+1, s.State)
		}
	}
}

// The kernel calls its clock unsynchronised when it is told nothing for 9 hours.
func TestKernelIsToldAgainInAHoldover(t *testing.T) {
	s := lan()
	s.cut = func(now float64) bool { return now > hour }
	w := newWorld(t, 1, s)
	w.start(Config{})
	w.run(hour)
	w.kernel = 0 // as far as it can tell, nobody else wrote that
	longest := time.Duration(0)
	w.each = func() { longest = max(longest, w.reading().Raw-w.core.toldAt) }
	w.run(20 * hour)
	if longest > tellEvery+5*time.Second || w.kernel == 0 {
		t.Errorf("told nothing for %v", longest)
	}
}
