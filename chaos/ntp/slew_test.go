package ntp_test

import (
	"math"
	"testing"
	"time"

	"holdfast/internal/kernel/clock"
	"holdfast/lab/vm"
)

// The kernel does with a fast slew what the simulator of ntpproxy/discipline
// takes for granted: a quarter of what is left each second, to the end, with
// nobody there to end it, and the frequency stays.
func TestMachinesOwnClockEndsAFastSlewByItself(t *testing.T) {
	length(t)
	vm.Inside(t, vm.Options{Name: "slew", CPUs: 1}, func(t *testing.T) {
		const slew = 40 * time.Millisecond
		tell := func(s clock.Steering) {
			s.MaxError = time.Millisecond
			if err := clock.Steer(s); err != nil {
				t.Fatal(err)
			}
		}
		start, err := clock.Now()
		if err != nil {
			t.Fatal(err)
		}
		w := &truth{start: start}
		off := func() (float64, time.Duration) {
			now, err := clock.Now()
			if err != nil {
				t.Fatal(err)
			}
			return (now.Clock.Sub(w.start.Clock) - (now.Raw - w.start.Raw)).Seconds(), now.Raw - w.start.Raw
		}
		tell(clock.Steering{Fast: slew})
		half, most := time.Duration(0), 0.0
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			e, since := off()
			most = max(most, e)
			if half == 0 && e > slew.Seconds()/2 {
				half = since
			}
			if since > 35*time.Second {
				break
			}
		}
		e, _ := off()
		t.Logf("half of %v after %v, %.3f ms in the end, %.3f at most", slew, half, e*1e3, most*1e3)
		// Up to a second until the kernel's next begins, then 10 + 7.5 ms, and a
		// half of the next 5.6.
		if half < 2*time.Second || half > 6*time.Second {
			t.Errorf("half of it took %v, want 2.4 to 3.4 s, or a little more", half)
		}
		if math.Abs(e-slew.Seconds()) > 1e-3 || most > slew.Seconds()+1e-3 {
			t.Errorf("%v ends as %v s, at most %v", slew, e, most)
		}
		// Offsets that come one after the other are what a phase-locked loop
		// learns a frequency from, unless it is held.
		for range 3 {
			tell(clock.Steering{Fast: time.Millisecond})
			for _, since := off(); ; <-tick.C {
				if _, now := off(); now-since > 2*time.Second {
					break
				}
			}
		}
		if state, err := clock.Read(); err != nil || math.Abs(state.Frequency) > 1e-3 || state.Tick != clock.NominalTick || !state.Synchronised {
			t.Errorf("the kernel's clock is %+v (%v), want the frequency and tick that it was told", state, err)
		}
	})
}
