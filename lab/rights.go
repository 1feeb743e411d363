package lab

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// WithoutFileRights does something without root's rights to pass over the modes
// of files. It is the calling goroutine's thread that lacks them, so do starts no
// other.
func WithoutFileRights(t TB, do func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&head, &had[0]); err != nil {
		t.Fatalf("capabilities: %v", err)
	}
	fewer := had
	fewer[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&head, &fewer[0]); err != nil {
		t.Fatalf("capabilities: %v", err)
	}
	defer func() {
		if err := unix.Capset(&head, &had[0]); err != nil {
			t.Errorf("capabilities: %v", err)
		}
	}()
	do()
}
