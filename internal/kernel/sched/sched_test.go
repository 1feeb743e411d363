package sched_test

import (
	"errors"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/internal/kernel/sched"
)

func TestRealtimeIsTheThreadsOwn(t *testing.T) {
	runtime.LockOSThread() // so that the other goroutine is on another thread
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends here
		if err := sched.Realtime(5); errors.Is(err, syscall.EPERM) {
			if !strings.Contains(err.Error(), "LimitRTPRIO") {
				t.Errorf("what would be right? %v", err)
			}
			return
		} else if err != nil {
			t.Error(err)
			return
		}
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil || attr.Policy != unix.SCHED_FIFO || attr.Priority != 5 {
			t.Errorf("%+v, %v", attr, err)
		}
	}()
	<-done
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		t.Errorf("another thread: %+v, %v", attr, err)
	}
}

func TestPriorityOutOfRangeIsNamed(t *testing.T) {
	if err := sched.Realtime(100); err == nil || !strings.Contains(err.Error(), "1 to 99") {
		t.Errorf("100: %v", err)
	}
}
