// Package clock reads and steers the kernel's clock (adjtimex(2)).
package clock

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// State is what the kernel knows of its clock.
type State struct {
	Synchronised bool          // someone disciplines it, and did so lately
	Insert       bool          // a second will be inserted at the end of the UTC day
	Delete       bool          // the last second of the UTC day will be left out
	MaxError     time.Duration // as whoever disciplines it said, growing by 500 µs each second
	EstError     time.Duration // likewise; does not grow
	Offset       time.Duration // yet to be slewed by the kernel's phase-locked loop
	Tick         int64         // in microseconds; NominalTick unless somebody corrects the oscillator by it
	Frequency    float64       // correction of the oscillator, in parts per million
}

// Read asks the kernel. It needs no privilege and does not block.
func Read() (State, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return State{}, fmt.Errorf("clock: adjtimex: %w", err)
	}
	return understand(state, t), nil
}

// frequencyUnit is one part per million in the kernel's 16.16 fixed point.
const frequencyUnit = 1 << 16

// Rate is how much faster than its oscillator the clock runs, in parts per
// million, by the frequency and the tick.
func (s State) Rate() float64 {
	if s.Tick == 0 { // nobody said
		return s.Frequency
	}
	return s.Frequency + float64(s.Tick-NominalTick)*1e6/NominalTick
}

func understand(state int, t unix.Timex) State {
	unit := time.Microsecond
	if t.Status&unix.STA_NANO != 0 {
		unit = time.Nanosecond
	}
	return State{
		Synchronised: state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0,
		Insert:       t.Status&unix.STA_INS != 0,
		Delete:       t.Status&unix.STA_DEL != 0,
		MaxError:     time.Duration(t.Maxerror) * time.Microsecond,
		EstError:     time.Duration(t.Esterror) * time.Microsecond,
		Offset:       time.Duration(t.Offset) * unit,
		Tick:         t.Tick,
		Frequency:    float64(t.Freq) / frequencyUnit,
	}
}
