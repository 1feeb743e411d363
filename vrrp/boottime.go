package vrrp

import (
	"time"

	"holdfast/internal/kernel/clock"
)

// bootNow is the time by a clock that all processes of the machine read alike,
// that nobody can set and that counts while the machine sleeps, as a Time so
// that what takes times can have it. Compare it with nothing but itself.
func bootNow() time.Time { return afterBoot(clock.SinceBoot()) }

// sinceBoot is a bootNow as another process is told it.
func sinceBoot(at time.Time) time.Duration { return at.Sub(time.Unix(0, 0)) }

// afterBoot is the reverse.
func afterBoot(up time.Duration) time.Time { return time.Unix(0, 0).Add(up) }
