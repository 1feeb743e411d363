package clock

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// Steer itself is never called here: it would set the machine's clock.
func TestOrdersToTheKernel(t *testing.T) {
	const state = unix.ADJ_TICK | unix.ADJ_FREQUENCY | unix.ADJ_STATUS | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR |
		unix.ADJ_OFFSET | unix.ADJ_NANO | unix.ADJ_TIMECONST
	const loop = unix.STA_PLL | unix.STA_FREQHOLD
	step := func(seconds, ns int64) unix.Timex {
		return unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO, Time: unix.Timeval{Sec: seconds, Usec: ns}}
	}
	slew := func(us int64) unix.Timex { return unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: us} }
	for name, test := range map[string]struct {
		steering Steering
		want     []unix.Timex
	}{
		"slewed": {Steering{Frequency: -1.5, Slew: 1600 * time.Nanosecond, MaxError: time.Millisecond, EstError: 9 * time.Microsecond},
			[]unix.Timex{{Modes: state, Tick: 10_000, Status: loop, Freq: -3 << 15, Maxerror: 1001, Esterror: 10}, slew(2)}},
		"stepped back by less than a second": {Steering{Step: -300 * time.Millisecond, Slew: time.Second},
			[]unix.Timex{step(-1, 700e6), {Modes: state, Tick: 10_000, Status: loop, Maxerror: 1, Esterror: 1}, slew(0)}},
		"stepped ahead": {Steering{Step: 2500 * time.Millisecond},
			[]unix.Timex{step(2, 500e6), {Modes: state, Tick: 10_000, Status: loop, Maxerror: 1, Esterror: 1}, slew(0)}},
		"beyond the kernel's limit, with a leap second": {Steering{Frequency: 900, Insert: true},
			[]unix.Timex{{Modes: state, Tick: 10_000, Freq: 500 << 16, Status: loop | unix.STA_INS, Maxerror: 1, Esterror: 1}, slew(0)}},
		"slewed fast": {Steering{Fast: -40*time.Millisecond - 7},
			[]unix.Timex{{Modes: state, Tick: 10_000, Status: loop, Offset: -40_000_007, Maxerror: 1, Esterror: 1}, slew(0)}},
		"slewed faster than the kernel can": {Steering{Fast: time.Second},
			[]unix.Timex{{Modes: state, Tick: 10_000, Status: loop, Offset: 500e6, Maxerror: 1, Esterror: 1}, slew(0)}},
		"stepped, whatever is left to slew": {Steering{Step: time.Second, Fast: time.Second},
			[]unix.Timex{step(1, 0), {Modes: state, Tick: 10_000, Status: loop, Maxerror: 1, Esterror: 1}, slew(0)}},
		"nobody's": {Steering{Unsynchronised: true},
			[]unix.Timex{{Modes: state, Tick: 10_000, Status: loop | unix.STA_UNSYNC, Maxerror: 1, Esterror: 1}, slew(0)}},
		"a second less": {Steering{Delete: true},
			[]unix.Timex{{Modes: state, Tick: 10_000, Status: loop | unix.STA_DEL, Maxerror: 1, Esterror: 1}, slew(0)}},
	} {
		if diff := cmp.Diff(test.want, test.steering.orders(), cmp.AllowUnexported(unix.Timex{}), cmp.FilterPath(func(p cmp.Path) bool {
			return p.String() == "_"
		}, cmp.Ignore())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestBothClocksAreReadAtOnce: whoever keeps the clock may have it run faster or
// slower than the oscillator, by MaxFrequency and the rate of a slew together, so
// the longer it takes from one pair to the next the more they may differ.
func TestBothClocksAreReadAtOnce(t *testing.T) {
	first, err := Now()
	if err != nil {
		t.Fatal(err)
	}
	second, err := Now()
	if err != nil {
		t.Fatal(err)
	}
	clock, raw := second.Clock.Sub(first.Clock), second.Raw-first.Raw
	if kept := 100*time.Microsecond + raw/1000; raw <= 0 || (clock-raw).Abs() > kept {
		t.Errorf("the clock went on by %v, the oscillator by %v", clock, raw)
	}
}
