package ntpproxy

import (
	"fmt"
	"math"
	"time"

	"holdfast/internal/kernel/clock"
	"holdfast/ntpproxy/discipline"
)

// release hands what is left of a fast slew to the kernel, which works it off
// when we are gone. Who is killed can't: see discipline's overdrive.
func (k *keeper) release() {
	if k.told == nil || !k.core.Slewing() {
		return
	}
	if err := k.handOver(*k.told, k.core.Release); err != nil {
		k.server.log.Warn("the slew that is under way ends elsewhere than it should, within the minute", "error", err)
	}
}

// What the kernel is told between lateInSecond and earlyInSecond of its clock's
// seconds may come before the next second's work is set aside or after it. The
// kernel begins a second at a tick, up to 10 ms late.
const (
	lateInSecond  = 950 * time.Millisecond
	earlyInSecond = 20 * time.Millisecond
)

// handOver tells the kernel the last thing, at a frequency in ppm. Nothing takes
// its time between the look at the clock and the word to the kernel: in a new
// second of the clock it is wrong, by a quarter of what the kernel was told
// before. It blocks for 70 ms at most, and for the files of prepare.
func (k *keeper) handOver(ppm float64, last func(discipline.Reading) *discipline.Adjustment) error {
	if err := k.prepare(ppm); err != nil {
		return err
	}
	now, err := k.server.clock.Now()
	if err != nil {
		return err
	}
	if wait := untilEarly(now.Clock); wait > 0 {
		time.Sleep(wait)
		if now, err = k.server.clock.Now(); err != nil {
			return err
		}
	}
	if a := last(discipline.Reading(now)); a != nil {
		return k.order(*a, ppm)
	}
	return nil
}

// untilEarly is how long is waited at a time of the clock's; 0 in the middle of
// a second.
func untilEarly(at time.Time) time.Duration {
	switch in := time.Duration(at.Nanosecond()); {
	case in < earlyInSecond:
		return earlyInSecond - in
	case in >= lateInSecond:
		return time.Second + earlyInSecond - in
	}
	return 0
}

// forgotten is the error of a clock that nobody vouches for.
const forgotten = 16 * time.Second

// repair sets a rate right that no oscillator needs: another daemon slewed the
// clock by its tick, and was killed. Ours is never left so. What an oscillator
// may need stays until the sources say better.
func (s *Server) repair(d drift) error {
	state, err := s.kernel()
	if err != nil {
		return err
	}
	if math.Abs(state.Rate()) <= clock.MaxFrequency {
		return nil
	}
	frequency := state.Frequency
	if d.skew > 0 {
		frequency = d.frequency
	}
	s.log.Warn("the clock was left running at a rate that no oscillator needs: set right", "ppm", state.Rate(), "now_ppm", frequency, "tick_us", state.Tick)
	if err := s.clock.Steer(clock.Steering{Frequency: frequency, MaxError: forgotten, EstError: forgotten, Unsynchronised: true}); err != nil {
		return fmt.Errorf("set right a clock that runs %.0f ppm fast: %w", state.Rate(), err)
	}
	return nil
}
