// Package runfile keeps what a process has put into the kernel, a line each, in
// a file below /run: for a successor that adopts it, and for who removes it. A
// line of another boot or of another network namespace speaks of a kernel that
// is not this one, and is never believed.
package runfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Origin is where things in the kernel are.
type Origin struct {
	Boot  string // the boot ID
	NetNS uint64 // inode of the network namespace
}

// Here is the origin of the calling thread.
func Here() (Origin, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Origin{}, err
	}
	info, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return Origin{}, err
	}
	return Origin{Boot: strings.TrimSpace(string(boot)), NetNS: info.Sys().(*syscall.Stat_t).Ino}, nil
}

// String is what each line begins with: "BOOT-ID NETNS".
func (o Origin) String() string { return o.Boot + " " + strconv.FormatUint(o.NetNS, 10) }

// Parse calls line with the words behind the origin of each line of a text, and
// whether that is this one. Lines with another number of words are broken, and
// those that line says no to: what they meant is not known.
func (o Origin) Parse(text []byte, words int, line func(words []string, ours bool) bool) (broken int) {
	for row := range bytes.Lines(text) {
		fields := strings.Fields(string(row))
		if len(fields) != 2+words {
			broken++
			continue
		}
		netns, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil || !line(fields[2:], Origin{fields[0], netns} == o) {
			broken++
		}
	}
	return broken
}

// File is a file of such lines, all of one origin.
type File struct {
	Path string
	At   Origin
}

// Read parses the file; one that is not there is empty.
func (f File) Read(words int, line func(words []string, ours bool) bool) (broken int, err error) {
	text, err := os.ReadFile(f.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return f.At.Parse(text, words, line), nil
}

// Write replaces the file with these lines; the origin is put before each.
func (f File) Write(lines []string) error {
	var text []byte
	for _, line := range lines {
		text = fmt.Appendf(text, "%v %s\n", f.At, line)
	}
	return Replace(f.Path, text)
}

// Replace writes a file whole, so that a reader sees the old text or the new. It
// need not outlive the kernel, so nothing is synced. The file lies below /run,
// where only we may write: hence a name beside it that is always the same.
func Replace(path string, text []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
