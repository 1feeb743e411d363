package discipline

import (
	"math"
	"testing"
	"time"
)

// reconfigure has another list of servers asked, in the configuration that a
// test changes; each says its name in its configuration.
func (w *world) reconfigure(config Config, servers ...*server) (later bool) {
	w.t.Helper()
	config.Sources = nil
	for _, s := range servers {
		config.Sources = append(config.Sources, s.config)
	}
	w.servers, w.flights = servers, nil
	later = w.core.Reconfigure(config, w.reading().Raw)
	w.wake = w.now
	return later
}

// What is learned survives a change of the file: the clock goes on as it was,
// and no step is allowed anew.
func TestSourcesThatStayInTheFileAreStillKnown(t *testing.T) {
	a, b, c := lan(), lan(), lan()
	w := newWorld(t, 1, a, b, c)
	w.clock = -3
	w.start(Config{})
	w.run(4000)
	samples, updates := len(w.core.sources[2].register.samples), w.core.updates
	frequency := w.core.frequency
	d := lan()
	d.config = SourceConfig{Name: "d", MinPoll: 6, MaxPoll: 10, Burst: true}
	w.clock += 0.5 // so that a step that is allowed anew would show
	if later := w.reconfigure(w.core.config, c, d, a); later {
		t.Error("no leap second is near, and the change waits for one")
	}
	if got := len(w.core.sources[0].register.samples); got != samples || w.core.sources[0].config.Name != "c" {
		t.Errorf("of the source that stays %d samples are known, want %d", got, samples)
	}
	if got := len(w.core.sources[1].register.samples); got != 0 {
		t.Errorf("of the new source %d samples are known", got)
	}
	asked := w.core.sources[1].asked
	w.run(w.now + 100)
	if w.core.sources[1].asked == asked {
		t.Error("the new source is not asked")
	}
	if w.core.updates < updates || len(w.steps) != 1 || math.Abs(w.core.frequency-frequency) > 1e-6 {
		t.Errorf("updates %d (before %d), steps %v, frequency %v (before %v): it began anew", w.core.updates, updates, w.steps, w.core.frequency, frequency)
	}
	w.run(w.now + 3000)
	if math.Abs(w.clock) > 1e-3 {
		t.Errorf("off by %v s later", w.clock)
	}
}

// The source that leads is taken out: another one does, at the next step.
func TestAnotherSourceLeadsWhenTheOneThatDidIsTakenOut(t *testing.T) {
	servers := []*server{lan(), lan(), lan()}
	w := newWorld(t, 1, servers...)
	w.start(Config{})
	w.run(4000)
	was := w.core.leading
	var rest []*server
	for i, s := range servers {
		if i != was {
			rest = append(rest, s)
		}
	}
	w.reconfigure(w.core.config, rest...)
	w.core.Step(w.reading())
	if got := w.core.Tracking(w.reading()); got.Leading < 0 || got.Stratum != 2 {
		t.Errorf("source %d leads, stratum %d: clients are told that nobody keeps the clock", got.Leading, got.Stratum)
	}
}

// All sources are others, at all nodes of a cluster at once: until these were
// heard clients are told what they were told before, and nobody is called an
// orphan. When they don't answer, it is said.
func TestNodeWhoseSourcesAreAllReplacedIsNoOrphanBeforeTheyHadTheirChance(t *testing.T) {
	for name, test := range map[string]struct {
		answer bool
		want   Phase
	}{"they answer": {true, Sourced}, "they are dead": {false, Alone}} {
		w := newWorld(t, 1, lan(), lan())
		w.start(Config{Agreeing: 2, Orphan: 10})
		w.run(4000)
		began, waited := w.now, 0
		phase := func() Phase { return w.core.Tracking(w.reading()).Phase }
		var others []*server
		for _, name := range []string{"c", "d"} {
			s := lan()
			s.config = SourceConfig{Name: name, MinPoll: 6, MaxPoll: 10, Burst: true}
			s.cut = func(float64) bool { return !test.answer }
			others = append(others, s)
		}
		w.each = func() {
			k := w.core.Tracking(w.reading())
			if w.now < began+5 || test.answer {
				if k.Phase != Sourced || k.Stratum == aloneStratum || !k.Synchronised {
					t.Errorf("%s: %.0f s after the change: %v, stratum %d", name, w.now-began, k.Phase, k.Stratum)
				}
			}
			if k.Leading < 0 {
				waited++
			}
		}
		w.reconfigure(w.core.config, others...)
		w.core.Step(w.reading())
		w.reconfigure(w.core.config, others...) // another change before they were heard
		w.run(began + 60)
		if waited == 0 {
			t.Errorf("%s: another source led at once: this test is of the time before", name)
		}
		if got := phase(); got != test.want || test.answer && w.core.leading < 0 {
			t.Errorf("%s: a minute after the change: %v, source %d leads", name, got, w.core.leading)
		}
	}
}

func TestSettingsAreTakenOver(t *testing.T) {
	a := lan()
	w := newWorld(t, 1, a, lan())
	w.start(Config{})
	w.run(4000)
	config := w.core.config
	config.StepOver, config.Agreeing, config.Growth, config.Orphan = time.Second, 2, 1e-4, 7
	config.Leap, config.Shape = LeapSmear, Cosine
	a.config.MinPoll, a.config.MaxPoll = 2, 3
	w.reconfigure(config, w.servers...)
	got := w.core.config
	if got.StepOver != time.Second || got.Agreeing != 2 || got.Growth != 1e-4 || got.Orphan != 7 || w.core.LeapMode() != LeapSmear || got.Shape != Cosine {
		t.Errorf("in use: %+v", got)
	}
	if s := w.core.sources[0]; s.poll != 3 || s.next > w.reading().Raw+8*time.Second {
		t.Errorf("asked every 2^%d s, the next time in %v, want 2^3", s.poll, s.next-w.reading().Raw)
	}
}

// A change of the mode in the middle of a smear would be a jump by a part of a
// second: it waits for the end.
func TestModeChangesWhenTheSmearIsOver(t *testing.T) {
	w := newWorld(t, 1, honest(lan(), LeapInsert), honest(lan(), LeapInsert), honest(lan(), LeapInsert))
	w.now = midnight - 20*hour
	w.start(Config{Leap: LeapSmear})
	w.run(midnight - 6*hour)
	config := w.core.config
	config.Leap = LeapKernel
	if later := w.reconfigure(config, w.servers...); !later || w.core.LeapMode() != LeapSmear {
		t.Fatalf("in use %v, to be called again %v", w.core.LeapMode(), later)
	}
	w.run(midnight + 6*hour)
	if d := w.clock - ideal(w.now, LeapInsert, Linear); math.Abs(d) > 1e-3 {
		t.Errorf("%v s beside the smear that had begun", d)
	}
	w.run(midnight + 13*hour)
	if later := w.reconfigure(config, w.servers...); later || w.core.LeapMode() != LeapKernel {
		t.Errorf("after the smear in use %v, to be called again %v", w.core.LeapMode(), later)
	}
}

// In the morning of the day another mode is chosen: it makes of the leap second
// what it would have made of it all along.
func TestModeThatIsChosenBeforeTheNoonIsThatOfTheLeapSecond(t *testing.T) {
	for name, test := range map[string]struct {
		from, to LeapMode
		server   func() *server
		want     func(now float64) float64
	}{
		"left to the sources": {LeapKernel, LeapUpstream, func() *server { return smearing(lan(), LeapInsert) },
			func(now float64) float64 { return ideal(now, LeapInsert, Linear) }},
		"smeared": {LeapKernel, LeapSmear, func() *server { return honest(lan(), LeapInsert) },
			func(now float64) float64 { return ideal(now, LeapInsert, Linear) }},
		"the kernel's": {LeapSmear, LeapKernel, func() *server { return honest(lan(), LeapInsert) }, func(now float64) float64 {
			if now >= midnight {
				return -1
			}
			return 0
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, test.server(), test.server(), test.server())
			w.now = midnight - 20*hour
			w.start(Config{Leap: test.from})
			w.core.Leaps([]LeapSecond{{leapDay, LeapInsert}}) // sources that smear announce none
			w.run(midnight - 13*hour)
			if w.core.Leaping().Kind != LeapInsert {
				t.Fatal("no leap second is known of: this test is of a change after that")
			}
			config := w.core.config
			config.Leap = test.to
			if later := w.reconfigure(config, w.servers...); later {
				t.Error("the change waits")
			}
			most := 0.0
			w.each = func() {
				if math.Abs(w.now-midnight) > 3 {
					most = max(most, math.Abs(w.clock-test.want(w.now)))
				}
			}
			w.run(midnight + 14*hour)
			if most > 30e-3 || len(w.steps) > 0 {
				t.Errorf("off by up to %v s, steps %v", most, w.steps)
			}
		})
	}
}

// Whoever steers no more leaves a clock that runs as its oscillator needs it.
func TestRateOfASmearIsTakenBackAtTheEnd(t *testing.T) {
	w := newWorld(t, 1, honest(lan(), LeapInsert), honest(lan(), LeapInsert), honest(lan(), LeapInsert))
	w.now = midnight - 20*hour
	w.start(Config{Leap: LeapSmear})
	w.run(midnight - 13*hour)
	if a := w.core.Leave(w.reading()); a != nil {
		t.Errorf("before the smear the kernel is told %+v", a)
	}
	w.run(midnight - 6*hour)
	if math.Abs(w.kernel-w.core.frequency+1/86401.0) > 1e-9 {
		t.Fatalf("the kernel runs at %v, the oscillator needs %v: no smear", w.kernel, w.core.frequency)
	}
	was := w.clock
	a := w.core.Leave(w.reading())
	if a == nil || a.Frequency != w.core.frequency || a.Step != 0 || a.Slew.Abs() > time.Millisecond {
		t.Fatalf("the kernel is told %+v, want the frequency %v and no more than what was left", a, w.core.frequency)
	}
	w.kernel = a.Frequency
	w.pass(w.now + 0.5)
	for range 6 * 3600 {
		w.pass(w.now + 1)
	}
	if d := w.clock - was; math.Abs(d) > 20e-3 {
		t.Errorf("six hours later the clock is %v s from where it was left", d)
	}
}
