package ntpproxy

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/kernel/clock"
	"holdfast/ntpproxy/discipline"
)

// ends is how far off the clock is when the kernel did all that it was told.
func (c *fakeClock) ends(t *testing.T) time.Duration {
	off := c.off(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	second := 1 - float64(c.at.Clock.Nanosecond())/1e9
	return off + c.slow + c.fast + time.Duration(second*float64(c.running))
}

// orders are what it was told.
func (c *fakeClock) orders() []clock.Steering {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]clock.Steering(nil), c.told...)
}

// What a slew has left is handed over by who ends, and by who gives the clock to
// another. The disk and the kernel may take as long for that as they like.
func TestSlewIsToldOfAndHandedOverAtTheEnd(t *testing.T) {
	source := newFixture(t, testCluster(t), "127.0.0.1:0").serve(t).String()
	for name, end := range map[string]func(f *fixture, cancel func()){
		"the process ends":             func(_ *fixture, cancel func()) { cancel() },
		"the file gives it to another": func(f *fixture, _ func()) { f.server.SetFile(keptFile(t, "  keep: serve\n", source)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newFakeClock(t, -80*time.Millisecond, 0)
			f := keeping(t, c, keepDiscipline, source)
			var slow atomic.Bool
			f.server.kernel = func() (clock.State, error) {
				if slow.Load() { // into the clock's next second
					now, _ := c.Now()
					<-time.After(now.Clock.Truncate(time.Second).Add(1100 * time.Millisecond).Sub(now.Clock))
				}
				return c.State()
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- f.server.Run(ctx, func() {}) }()
			// 50 ms at 10 a second.
			eventually(t, "the clock is slewed, and most of it is done", func() bool {
				k := f.server.Kept()
				return k != nil && k.Slew > 5e-3 && c.off(t).Abs() < 30*time.Millisecond
			})
			if tracking := f.server.Tracking(); tracking.Slew < 1000 || tracking.Slew > 10_001 || tracking.Offset < time.Millisecond {
				t.Errorf("`ntp tracking` says %.0f ppm, and %v to be corrected", tracking.Slew, tracking.Offset)
			}
			for name, least := range map[string]float64{"holdfast_ntp_slew_ratio": 1e-3, "holdfast_ntp_offset_seconds": 1e-3} {
				if got := f.gauge(t, name); got < least {
					t.Errorf("%s is %v", name, got)
				}
			}
			end(f, cancel)
			slow.Store(true)
			eventually(t, "the clock is steered no more", func() bool { return f.server.Kept() == nil })
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if off := c.ends(t); off.Abs() > 2*time.Millisecond || len(c.stepped()) > 0 {
				t.Errorf("the clock ends %v off, steps %v: want what was left handed over, and no more", off, c.stepped())
			}
			for _, s := range c.orders() {
				if s.Fast.Abs() > time.Duration(4*discipline.DefaultSlew*float64(time.Second)) {
					t.Errorf("told to slew %v a quarter each second: above the limit", s.Fast)
				}
			}
		})
	}
}

func TestNothingIsHandedOverWhereTheClocksSecondsMeet(t *testing.T) {
	for in, want := range map[time.Duration]time.Duration{
		0: 20 * time.Millisecond, 19 * time.Millisecond: time.Millisecond, 20 * time.Millisecond: 0, 500 * time.Millisecond: 0,
		949 * time.Millisecond: 0, 950 * time.Millisecond: 70 * time.Millisecond, 999 * time.Millisecond: 21 * time.Millisecond,
	} {
		if got := untilEarly(start.Add(in)); got != want {
			t.Errorf("%v into a second %v is waited, want %v", in, got, want)
		}
	}
}

// gauge is a metric without labels.
func (f *fixture) gauge(t testing.TB, name string) float64 {
	t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// A daemon that slews by the tick was killed in the middle of it.
func TestARunawayClockIsSetRightBeforeAnySourceAnswers(t *testing.T) {
	_, silent := listenLocal(t)
	for name, test := range map[string]struct {
		left clock.State
		want []clock.Steering
	}{
		"1 % fast": {clock.State{Tick: 10_100, Frequency: 12},
			[]clock.Steering{{Frequency: 12, Unsynchronised: true, MaxError: forgotten, EstError: forgotten}}},
		"what an oscillator may need":  {clock.State{Tick: 10_004, Frequency: 99}, nil},
		"nobody said what the tick is": {clock.State{Frequency: 99}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := newFakeClock(t, 0, 0)
			c.state = test.left
			f := keeping(t, c, keepDiscipline, silent)
			f.serve(t)
			eventually(t, "the loop turns", func() bool { return f.server.Kept() != nil })
			got := c.orders()
			if len(got) != len(test.want) || len(got) > 0 && got[0] != test.want[0] {
				t.Errorf("told %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestDaemonThatSlewsByTheTickIsNotedAsAnother(t *testing.T) {
	source := newFixture(t, testCluster(t), "127.0.0.1:0").serve(t).String()
	c := newFakeClock(t, 0, 0)
	f := keeping(t, c, keepDiscipline, source)
	f.serve(t)
	eventually(t, "we steer", func() bool { k := f.server.Kept(); return k != nil && k.Updates > 3 })
	f.givesWayTo(t, c, func(s *clock.State) { s.Tick = clock.NominalTick + 50 })
}
