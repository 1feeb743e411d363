package debian

import (
	"fmt"
	"io"
	"strings"
)

// archive writes an initrd: a cpio archive of the "new ASCII" form (the
// kernel's Documentation/driver-api/early-userspace/buffer-format.rst). The
// first error stays.
type archive struct {
	w     io.Writer
	inode int
	err   error
}

const (
	modeDir  = 0o040755
	modeFile = 0o100755
	trailer  = "TRAILER!!!"
)

func (a *archive) directory(name string) { a.entry(name, modeDir, nil) }

func (a *archive) file(name string, data []byte) { a.entry(name, modeFile, data) }

func (a *archive) close() error {
	a.entry(trailer, 0, nil)
	return a.err
}

func (a *archive) entry(name string, mode int, data []byte) {
	a.inode++
	var header strings.Builder
	header.WriteString("070701")
	for _, field := range []int{
		a.inode, mode, 0, 0, // user, group
		1, 0, // links, time
		len(data), 0, 0, 0, 0, // devices
		len(name) + 1, 0, // check sum
	} {
		fmt.Fprintf(&header, "%08X", field)
	}
	header.WriteString(name + "\x00")
	a.padded([]byte(header.String()))
	a.padded(data)
}

// padded writes data and zeros up to a multiple of four bytes.
func (a *archive) padded(data []byte) {
	for _, part := range [][]byte{data, make([]byte, -len(data)&3)} {
		if a.err == nil {
			_, a.err = a.w.Write(part)
		}
	}
}
