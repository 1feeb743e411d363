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
	now, err := k.server.clock.Now()
	if err != nil {
		return
	}
	if a := k.core.Release(discipline.Reading(now)); a != nil {
		if err := k.apply(*a); err != nil {
			k.server.log.Warn("the slew that is under way ends elsewhere than it should, within the minute", "error", err)
		}
	}
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
