package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// SinceBoot is the time since the machine booted, its sleep included
// (CLOCK_BOOTTIME): all processes read it alike, and nobody can set it. It is 0
// on a kernel that does not have it, which is none since Linux 2.6.39.
func SinceBoot() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
