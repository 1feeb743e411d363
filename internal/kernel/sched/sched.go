// Package sched makes a thread run before others.
package sched

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Realtime puts the calling thread, which must be locked to its goroutine
// (runtime.LockOSThread), under SCHED_FIFO with a priority of 1–99: it runs
// before every thread of the ordinary kind as soon as it is woken (sched(7)).
// It needs CAP_SYS_NICE, or LimitRTPRIO of at least the priority. Threads and
// processes that it starts are of the ordinary kind again.
//
// Such a thread that never waits takes a whole processor; keep LimitRTTIME set.
func Realtime(priority int) error {
	err := unix.SchedSetAttr(0, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: uint32(priority),
		Flags: unix.SCHED_FLAG_RESET_ON_FORK,
	}, 0)
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("sched: realtime priority %d: %w; CAP_SYS_NICE or LimitRTPRIO is needed (and, in a cgroup of a kernel with CONFIG_RT_GROUP_SCHED, cpu.rt_runtime_us)", priority, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("sched: realtime priority %d: %w; 1 to 99 are right", priority, err)
	case err != nil:
		return fmt.Errorf("sched: realtime priority %d: %w", priority, err)
	}
	return nil
}

// Ordinary ends what Realtime began. It needs no privilege.
func Ordinary() error {
	err := unix.SchedSetAttr(0, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Flags: unix.SCHED_FLAG_RESET_ON_FORK,
	}, 0)
	if err != nil {
		return fmt.Errorf("sched: ordinary thread: %w", err)
	}
	return nil
}
