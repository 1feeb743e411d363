package clock

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Permitted tells whether this process may steer the clock, by writing the
// frequency back that the kernel has; nil: it may. The error wraps EPERM
// without CAP_SYS_TIME. It does not block.
func Permitted() error {
	state, err := Read()
	if err != nil {
		return err
	}
	t := unix.Timex{Modes: unix.ADJ_FREQUENCY, Freq: int64(math.Round(state.Frequency * frequencyUnit))}
	if _, err := unix.Adjtimex(&t); err != nil {
		return fmt.Errorf("clock: adjtimex: %w: steering the clock needs CAP_SYS_TIME, and a machine's own kernel (no container)", err)
	}
	return nil
}
