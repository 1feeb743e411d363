// Package filesystem asks the kernel for what concerns a file system as a whole.
package filesystem

import (
	"os"

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
