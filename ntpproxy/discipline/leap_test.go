package discipline

import (
	"math"
	"testing"
	"time"
)

// midnight is when the leap second of these tests is, in seconds of virtual
// time; leapDay is the same in UTC.
var (
	leapDay  = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	midnight = leapDay.Sub(birth).Seconds()
)

// dayBefore is when most of these tests begin: a day before the smear, in which
// sources come to be asked as rarely as they ever are.
var dayBefore = midnight - 36*hour

// moment is when it happens.
func moment(kind Leap) float64 { return leapSecondOf(kind).moment().Sub(birth).Seconds() }

func leapSecondOf(kind Leap) *LeapSecond { return &LeapSecond{leapDay, kind} }

// honest is a server whose clock makes the leap second, and says so before.
func honest(s *server, kind Leap) *server {
	s.leap = func(now float64) Leap {
		if now > midnight-30*hour && now < moment(kind) {
			return kind
		}
		return LeapNone
	}
	s.wrong = func(now float64) float64 {
		if now >= moment(kind) {
			return -float64(kind)
		}
		return 0
	}
	return s
}

// ideal is a clock that smears, less one that goes through the leap second, in
// seconds: written down anew, not taken from what is tested.
func ideal(now float64, kind Leap, shape Shape) float64 {
	x := (now - (midnight - 12*hour)) / (86400 + float64(kind))
	x = max(0, min(1, x))
	if shape == Cosine {
		x = 0.5 - 0.5*math.Cos(x*math.Pi)
	}
	return -float64(kind) * x
}

// smearing is a server that smears and says nothing of it, as those of Google
// and Amazon do.
func smearing(s *server, kind Leap) *server {
	s.wrong = func(now float64) float64 { return ideal(now, kind, Linear) }
	return s
}

var kinds = map[string]Leap{"insert": LeapInsert, "delete": LeapDelete}

func TestSmearGoesFromNoonToNoonAsPublished(t *testing.T) {
	for _, test := range []struct {
		kind   Leap
		shape  Shape
		utc    string
		passed bool
		ahead  time.Duration // of the smeared clock before UTC
	}{
		{LeapInsert, Linear, "2016-12-31 11:59:59", false, 0},
		{LeapInsert, Linear, "2016-12-31 12:00:00", false, 0},
		// Google, "Leap Smear": each second is 11.6 µs longer.
		{LeapInsert, Linear, "2016-12-31 12:00:01", false, -11574 * time.Nanosecond},
		{LeapInsert, Linear, "2016-12-31 18:00:00", false, -249997106 * time.Nanosecond},
		{LeapInsert, Linear, "2017-01-01 00:00:00", false, -499994213 * time.Nanosecond}, // the leap second begins
		{LeapInsert, Linear, "2017-01-01 00:00:00", true, 499994213 * time.Nanosecond},   // it is over
		{LeapInsert, Linear, "2017-01-01 06:00:00", true, 249997106 * time.Nanosecond},
		{LeapInsert, Linear, "2017-01-01 12:00:00", true, 0},
		{LeapInsert, Linear, "2017-01-01 13:00:00", true, 0},
		{LeapDelete, Linear, "2016-12-31 23:59:59", false, 499994213 * time.Nanosecond},
		{LeapDelete, Linear, "2017-01-01 00:00:00", true, -500005787 * time.Nanosecond},
		{LeapDelete, Linear, "2017-01-01 12:00:00", true, 0},
		{LeapInsert, Cosine, "2016-12-31 12:00:00", false, 0},
		{LeapInsert, Cosine, "2016-12-31 18:00:00", false, -146444 * time.Microsecond},
		{LeapInsert, Cosine, "2017-01-01 06:00:00", true, 146444 * time.Microsecond},
		{LeapInsert, Cosine, "2017-01-01 12:00:00", true, 0},
	} {
		at, err := time.Parse(time.DateTime, test.utc)
		if err != nil {
			t.Fatal(err)
		}
		s := Smear{LeapSecond{time.Date(2017, 1, 1, 0, 0, 0, 0, time.UTC), test.kind}, test.shape}
		ahead, _ := s.Offset(at, test.passed)
		off := 20 * time.Microsecond
		if test.shape == Linear {
			off = 50 * time.Nanosecond
		}
		if d := (ahead - test.ahead).Abs(); d > off {
			t.Errorf("%v %v %s, passed %v: %v, want %v", test.kind, test.shape, test.utc, test.passed, ahead, test.ahead)
		}
	}
}

func TestSmearedTimeIsTurnedBack(t *testing.T) {
	for _, kind := range kinds {
		for _, shape := range []Shape{Linear, Cosine} {
			s := Smear{LeapSecond{leapDay, kind}, shape}
			for h := -15.0; h < 15; h += 0.25 {
				through := leapDay.Add(seconds(h * hour))
				ahead, _ := s.behind(through)
				if d := s.through(through.Add(ahead)).Sub(through); d.Abs() > 2 {
					t.Errorf("%v %v, %v h: off by %v", kind, shape, h, d)
				}
			}
		}
	}
}

func TestKernelMakesTheLeapSecondAndTheClockDoesNotSwing(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, honest(lan(), kind), honest(lan(), kind), honest(lan(), kind))
			w.now = dayBefore
			w.start(Config{})
			w.run(midnight - 23.5*hour)
			if w.leap != LeapNone {
				t.Error("the kernel is told so early that it may take the midnight that was just over")
			}
			w.run(midnight - 5)
			if got := w.core.Tracking(w.reading()); got.Leap != kind || w.leap != kind || got.Smearing {
				t.Fatalf("clients are told %v, the kernel %v, want %v", got.Leap, w.leap, kind)
			}
			most := 0.0
			w.each = func() {
				want := 0.0
				if w.now >= moment(kind)+1 { // whose clock comes there first is right for a moment
					want = -float64(kind)
				} else if w.now >= moment(kind)-1 {
					return
				}
				most = max(most, math.Abs(w.clock-want))
			}
			w.run(midnight + 14*hour)
			if most > 100e-6 || len(w.steps) > 0 {
				t.Errorf("off by up to %v s around the leap second, steps %v", most, w.steps)
			}
			if got := w.core.Tracking(w.reading()).Leap; got != LeapNone || w.leap != LeapNone {
				t.Errorf("the leap second is still announced: %v, to the kernel %v", got, w.leap)
			}
		})
	}
}

// Most of the sources make the leap second a little late, as servers do that are
// told of it by others.
func TestNothingIsBelievedAtTheLeapSecondItself(t *testing.T) {
	var servers []*server
	for i := range 3 {
		s := honest(lan(), LeapInsert)
		if i > 0 {
			s.wrong = func(now float64) float64 {
				if now >= midnight+1.5 {
					return -1
				}
				return 0
			}
		}
		s.config = SourceConfig{MinPoll: -1, MaxPoll: -1}
		servers = append(servers, s)
	}
	w := newWorld(t, 1, servers...)
	w.now = midnight - hour
	w.start(Config{})
	w.run(midnight - 2)
	most := 0.0
	w.each = func() {
		if w.now > midnight+0.5 {
			most = max(most, math.Abs(w.clock+1))
		}
	}
	w.run(midnight + 60)
	if most > 200e-6 || len(w.steps) > 0 {
		t.Errorf("off by up to %v s, steps %v", most, w.steps)
	}
}

// A client that knows nothing of leap seconds follows a node through a smear.
func TestClientsAreLedThroughASmearedLeapSecondWithoutAStep(t *testing.T) {
	for name, kind := range kinds {
		for _, shape := range []Shape{Linear, Cosine} {
			t.Run(name+" "+shape.String(), func(t *testing.T) {
				w := newWorld(t, 1, honest(lan(), kind), honest(lan(), kind), honest(lan(), kind))
				w.now = dayBefore
				w.start(Config{Leap: LeapSmear, Shape: shape})
				node := map[int]float64{} // its clock, less UTC that goes through
				most, fastest := 0.0, 0.0
				w.each = func() {
					second := int(math.Round(w.now))
					node[second] = w.clock
					if w.now > dayBefore+hour {
						most = max(most, math.Abs(w.clock-ideal(w.now, kind, shape)))
						fastest = max(fastest, math.Abs(w.clock-node[second-1]))
					}
					if k := w.core.Tracking(w.reading()); k.Leap != LeapNone || w.leap != LeapNone {
						t.Fatalf("at %v: a leap second is announced to clients, %v, or to the kernel, %v", at(w.now), k.Leap, w.leap)
					}
				}
				const tail = 16 * hour
				w.run(midnight + tail)
				if len(w.steps) > 0 || most > 100e-6 || fastest > 60e-6 {
					t.Errorf("the node: off from the ideal smear by up to %.1f µs, up to %.1f µs from one second to the next, steps %v", most*1e6, fastest*1e6, w.steps)
				}
				if math.Abs(w.clock+float64(kind)) > 100e-6 {
					t.Errorf("the node is off by %v s when it is over", w.clock+float64(kind))
				}
				// Cluster's own are told to ask at least every 64 s; a client of
				// its own mind asks as rarely as it likes.
				for _, client := range []struct {
					maxPoll        int
					linear, cosine float64
				}{{6, 2e-3, 200e-6}, {10, 6e-3, 400e-6}} {
					bound := client.linear
					if shape == Cosine {
						bound = client.cosine
					}
					var servers []*server
					for range 3 {
						s := lan()
						s.config = SourceConfig{MinPoll: 6, MaxPoll: client.maxPoll, Burst: true}
						s.wrong = func(now float64) float64 {
							floor := math.Floor(now)
							a, b := node[int(floor)], node[int(floor)+1]
							return a + (b-a)*(now-floor)
						}
						servers = append(servers, s)
					}
					c := newWorld(t, 2, servers...)
					c.now = dayBefore
					c.start(Config{})
					off := 0.0
					c.each = func() {
						if c.now > dayBefore+hour {
							off = max(off, math.Abs(c.clock-ideal(c.now, kind, shape)))
						}
					}
					c.run(midnight + tail - 10)
					t.Logf("a client that asks every %v at most: off from the ideal smear by up to %.3f ms", Interval(client.maxPoll), off*1e3)
					if len(c.steps) > 0 || off > bound {
						t.Errorf("a client that asks every %v: off by up to %v s, bound %v; steps %v", Interval(client.maxPoll), off, bound, c.steps)
					}
				}
			})
		}
	}
}

// Each source makes its own of a leap second; what is mixed with another must
// not pull the clock away.
func TestSourcesThatSmearAreNotMixedWithThoseThatDoNot(t *testing.T) {
	const kind = LeapInsert
	for name, test := range map[string]struct {
		mode    LeapMode
		servers func() []*server
		apart   int // index of who is set aside in the afternoon before; -1 nobody
	}{
		"one of four smears, and we insert": {LeapKernel, func() []*server {
			return []*server{smearing(lan(), kind), honest(lan(), kind), honest(lan(), kind), honest(lan(), kind)}
		}, 0},
		"one of four smears, and so do we": {LeapSmear, func() []*server {
			return []*server{smearing(lan(), kind), honest(lan(), kind), honest(lan(), kind), honest(lan(), kind)}
		}, 0},
		"all smear, and we leave it to them": {LeapUpstream, func() []*server {
			return []*server{smearing(lan(), kind), smearing(lan(), kind), smearing(lan(), kind)}
		}, -1},
		"one does not smear, and we left it to them": {LeapUpstream, func() []*server {
			return []*server{honest(lan(), kind), smearing(lan(), kind), smearing(lan(), kind)}
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, test.servers()...)
			w.now = dayBefore
			w.start(Config{Leap: test.mode})
			w.run(midnight - 11*hour)
			most := 0.0
			w.each = func() {
				want := ideal(w.now, kind, Linear)
				if test.mode == LeapKernel {
					if math.Abs(w.now-midnight) < 2 {
						return
					}
					if want = 0; w.now > midnight {
						want = -1
					}
				}
				most = max(most, math.Abs(w.clock-want))
			}
			w.run(midnight - hour)
			for i, s := range w.core.Sources(w.reading()) {
				if (s.State == OtherLeap) != (i == test.apart) {
					t.Errorf("source %d is %v", i, s.State)
				}
			}
			w.run(midnight + 14*hour)
			bound := 100e-6
			if test.mode == LeapUpstream {
				bound = 30e-3 // what any client sees
			}
			if most > bound || len(w.steps) > 0 {
				t.Errorf("off by up to %v s, steps %v", most, w.steps)
			}
			for i, s := range w.core.Sources(w.reading()) {
				if s.State < Outlier {
					t.Errorf("source %d is %v two hours after all is over", i, s.State)
				}
			}
		})
	}
}

func TestServerThatSaysThatItSmearsIsSetAside(t *testing.T) {
	liar := lan()
	liar.fill = func(s *Sample) { s.Smeared = true }
	liar.wrong = func(float64) float64 { return -0.2 }
	w := newWorld(t, 1, liar, lan())
	w.start(Config{})
	w.run(hour)
	if got := w.core.Sources(w.reading())[0].State; got != OtherLeap || math.Abs(w.clock) > 1e-3 || len(w.steps) > 0 {
		t.Errorf("it is %v; off by %v s, steps %v", got, w.clock, w.steps)
	}
}

func TestOnlyAMajorityOrAListMakesALeapSecond(t *testing.T) {
	known := []LeapSecond{{leapDay, LeapInsert}}
	for name, test := range map[string]struct {
		says  []Leap
		known []LeapSecond
		want  Leap
	}{
		"a minority":              {[]Leap{LeapInsert, LeapNone, LeapNone}, nil, LeapNone},
		"a half":                  {[]Leap{LeapInsert, LeapNone}, nil, LeapNone},
		"a majority":              {[]Leap{LeapInsert, LeapInsert, LeapNone}, nil, LeapInsert},
		"the list alone":          {[]Leap{LeapNone, LeapNone, LeapNone}, known, LeapInsert},
		"the list against one":    {[]Leap{LeapDelete, LeapNone, LeapNone}, known, LeapInsert},
		"a list of another month": {[]Leap{LeapNone}, []LeapSecond{{leapDay.AddDate(0, 1, 0), LeapInsert}}, LeapNone},
	} {
		var servers []*server
		for _, says := range test.says {
			s := lan()
			s.leap = func(float64) Leap { return says }
			servers = append(servers, s)
		}
		w := newWorld(t, 1, servers...)
		w.now = dayBefore
		w.start(Config{})
		w.core.Leaps(test.known)
		w.run(midnight - 25*hour)
		if w.core.Tracking(w.reading()).Leap != LeapNone {
			t.Errorf("%s: it is made on another day than the last of a month", name)
		}
		w.run(midnight - 2*hour)
		if got := w.core.Tracking(w.reading()).Leap; got != test.want || w.leap != test.want {
			t.Errorf("%s: clients are told %v, the kernel %v, want %v", name, got, w.leap, test.want)
		}
	}
}

func TestNodeThatWakesUpInASmearJoinsIt(t *testing.T) {
	for _, when := range []float64{-6 * hour, 6 * hour} {
		var servers []*server
		for range 3 {
			servers = append(servers, honest(lan(), LeapInsert))
		}
		w := newWorld(t, 1, servers...)
		w.now = midnight + when
		w.clock = -300
		w.start(Config{Leap: LeapSmear})
		w.core.Leaps([]LeapSecond{{leapDay, LeapInsert}})
		w.run(w.now + 300)
		f := 0.0
		w.each = func() { f = max(f, math.Abs(w.clock-ideal(w.now, LeapInsert, Linear))) }
		w.run(midnight + 14*hour)
		if f > 200e-6 || len(w.steps) != 1 {
			t.Errorf("woken %v h from midnight: off by up to %v s, steps %v", when/hour, f, w.steps)
		}
	}
}

func TestNodesWithoutUpstreamSmearTogether(t *testing.T) {
	c := newNodesAt(t, 4, 1, dayBefore)
	for i, w := range c.list {
		w.core.config.Leap = LeapSmear
		w.core.Leaps([]LeapSecond{{leapDay, LeapInsert}})
		for j := range sourcesEach {
			honest(w.servers[j], LeapInsert)
		}
		// Two lose their sources before the smear, all in the middle of it.
		c.cut[i] = func(now float64) bool { return now > midnight-14*hour && (i < 2 || now > midnight-3*hour) }
	}
	c.lead(0)
	c.run(midnight - 16*hour)
	c.most = 0
	c.run(midnight - 13*hour)
	c.want(t, Following, Following, Sourced, Sourced)
	c.run(midnight + 2*hour)
	c.want(t, OrphanLeader, Orphan, Orphan, Orphan)
	c.run(midnight + 14*hour)
	if c.most > 1e-3 || c.steps() > 0 {
		t.Errorf("up to %v s from each other, %d steps", c.most, c.steps())
	}
	for i, w := range c.list {
		if off := math.Abs(w.clock - ideal(w.now, LeapInsert, Linear)); off > 20e-3 {
			t.Errorf("node %d is off by %v s when it is over", i, off)
		}
	}
	t.Logf("up to %.3f ms from each other", c.most*1e3)
}
