// Package filesystem asks the kernel what package os has no word for.
package filesystem

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Sync blocks until all that was written to the file system of an open file or
// folder is on its disk, whoever wrote it (syncfs(2)). From Linux 5.8 on the error
// tells if any of that failed since the file was opened; older kernels say
// nothing.
func Sync(of *os.File) error {
	if err := unix.Syncfs(int(of.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: of.Name(), Err: err}
	}
	return nil
}

// Birth is when a file was made, by the file system's own record (statx(2),
// stx_btime); ok is false where it keeps none.
func Birth(of *os.File) (at time.Time, ok bool) {
	var s unix.Statx_t
	err := unix.Statx(int(of.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &s)
	if err != nil || s.Mask&unix.STATX_BTIME == 0 || s.Btime.Sec <= 0 {
		return at, false
	}
	return time.Unix(s.Btime.Sec, int64(s.Btime.Nsec)), true
}
