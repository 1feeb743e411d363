package clock

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Steering is how the kernel's clock should run. It is complete: told twice, it
// changes nothing the second time but for a Step.
type Steering struct {
	// Frequency is how much faster than its oscillator the clock runs, in
	// parts per million, -500 to 500.
	Frequency float64
	// Slew is what the kernel works off by itself, at 500 µs a second, in
	// place of what it had left: rounded to microseconds. Whoever asked for it
	// may die meanwhile, and the clock runs on at Frequency.
	Slew time.Duration
	// Fast is likewise, a quarter of what is left each second (the kernel's
	// phase-locked loop, its frequency held): -500 ms to 500 ms, beyond which it
	// is cut. It begins with the next second of the clock.
	Fast time.Duration
	// Step is added at once. Slew and Fast are not looked at then.
	Step time.Duration
	// Unsynchronised says that nobody vouches for the clock.
	Unsynchronised bool
	Insert         bool // a second at the end of this UTC day
	Delete         bool // the last second of this UTC day
	MaxError       time.Duration
	EstError       time.Duration
}

// MaxFrequency is the kernel's limit (MAXFREQ), in parts per million.
const MaxFrequency = 500

// NominalTick is the length of a tick without any correction, in microseconds
// (1,000,000 / USER_HZ). The kernel takes 9,000 to 11,000.
const NominalTick = 10_000

// maxPhase is the most that the phase-locked loop takes (MAXPHASE).
const maxPhase = 500 * time.Millisecond

// Steer tells the kernel. It needs CAP_SYS_TIME and does not block.
func Steer(s Steering) error {
	for _, t := range s.orders() {
		if _, err := unix.Adjtimex(&t); err != nil {
			return fmt.Errorf("clock: adjtimex (modes %#x): %w", t.Modes, err)
		}
	}
	return nil
}

// orders are the calls that bring the steering about. A step comes first: it
// makes the kernel forget that it is synchronised (ntp_clear()).
func (s Steering) orders() (list []unix.Timex) {
	slew, fast := s.Slew, max(-maxPhase, min(maxPhase, s.Fast))
	if s.Step != 0 {
		slew, fast = 0, 0
		seconds, rest := s.Step/time.Second, s.Step%time.Second
		if rest < 0 { // the kernel wants 0 to 999,999,999 ns
			seconds, rest = seconds-1, rest+time.Second
		}
		t := unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO}
		t.Time.Sec, t.Time.Usec = int64(seconds), int64(rest)
		list = append(list, t)
	}
	state := unix.Timex{
		Modes: unix.ADJ_TICK | unix.ADJ_FREQUENCY | unix.ADJ_STATUS | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR |
			unix.ADJ_OFFSET | unix.ADJ_NANO | unix.ADJ_TIMECONST, // Constant 0: as fast as the loop can
		// The loop is always on: going off it forgets the state of a leap second.
		// It learns no frequency of its own from offsets (FREQHOLD).
		Status:   unix.STA_PLL | unix.STA_FREQHOLD,
		Offset:   fast.Nanoseconds(),
		Freq:     int64(math.Round(max(-MaxFrequency, min(MaxFrequency, s.Frequency)) * frequencyUnit)),
		Tick:     NominalTick, // another daemon may have left 100 ppm and more in it
		Maxerror: s.MaxError.Microseconds() + 1,
		Esterror: s.EstError.Microseconds() + 1,
	}
	switch {
	case s.Insert:
		state.Status |= unix.STA_INS
	case s.Delete:
		state.Status |= unix.STA_DEL
	}
	if s.Unsynchronised {
		state.Status |= unix.STA_UNSYNC
	}
	offset := unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: slew.Round(time.Microsecond).Microseconds()}
	return append(list, state, offset)
}

// Reading is the clock and its bare oscillator at one moment.
type Reading struct {
	Clock time.Time     // without Go's monotonic part
	Raw   time.Duration // CLOCK_MONOTONIC_RAW: never steered, never stepped
}

// readings is how often the pair is read, for the one that was interrupted
// least.
const readings = 5

// Now reads both clocks, as closely together as it can. It needs no privilege
// and does not block.
func Now() (best Reading, err error) {
	width := int64(math.MaxInt64)
	for range readings {
		var before, raw, after unix.Timespec
		if err = unix.ClockGettime(unix.CLOCK_REALTIME, &before); err != nil {
			return Reading{}, fmt.Errorf("clock: read: %w", err)
		}
		if err = unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &raw); err != nil {
			return Reading{}, fmt.Errorf("clock: read the oscillator: %w", err)
		}
		if err = unix.ClockGettime(unix.CLOCK_REALTIME, &after); err != nil {
			return Reading{}, fmt.Errorf("clock: read: %w", err)
		}
		if w := after.Nano() - before.Nano(); w >= 0 && w < width {
			width = w
			best = Reading{time.Unix(0, before.Nano()+w/2), time.Duration(raw.Nano())}
		}
	}
	return best, nil
}
