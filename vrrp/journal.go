package vrrp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// The journal says which addresses are ours, for a successor that adopts them
// and for the guard that withdraws them. It is a text file, a line an address:
//
//	BOOT-ID NETNS IFINDEX INTERFACE PREFIX ROUTER
//
// The address is added after its line is written and the line is removed after
// the address is. Lines of another boot or of another network namespace speak
// of a kernel that is not this one, and are ignored.
const journalFile = "addresses"

// entry is an address that is ours.
type entry struct {
	Index  int    // of the interface
	Name   string // of the interface when it was written; for people
	Prefix netip.Prefix
	Router string
}

// origin is where this process is: which kernel, which network namespace.
type origin struct {
	boot  string
	netns uint64
}

// here reads the place of the calling thread.
func here() (origin, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return origin{}, err
	}
	info, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return origin{}, err
	}
	return origin{boot: strings.TrimSpace(string(boot)), netns: info.Sys().(*syscall.Stat_t).Ino}, nil
}

// journal is the file and what stands in it. Its methods may be called from
// any goroutine; they write to a memory file system and so block for
// microseconds.
type journal struct {
	path string
	at   origin

	mu      sync.Mutex
	entries []entry // sorted
	buf     []byte
}

// openJournal reads the journal of the run directory. Lines that can't be read
// are left out: what they meant is not known.
func openJournal(dir string, at origin) (j *journal, broken int, err error) {
	j = &journal{path: filepath.Join(dir, journalFile), at: at}
	text, err := os.ReadFile(j.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	j.entries, broken = parseJournal(text, at)
	slices.SortFunc(j.entries, compareEntries)
	return j, broken, nil
}

func parseJournal(text []byte, at origin) (entries []entry, broken int) {
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 6 {
			broken++
			continue
		}
		netns, err := strconv.ParseUint(fields[1], 10, 64)
		index, err2 := strconv.Atoi(fields[2])
		prefix, err3 := netip.ParsePrefix(fields[4])
		if errors.Join(err, err2, err3) != nil || index <= 0 {
			broken++
			continue
		}
		if (origin{fields[0], netns}) == at {
			entries = append(entries, entry{Index: index, Name: fields[3], Prefix: prefix, Router: fields[5]})
		}
	}
	return entries, broken
}

func compareEntries(a, b entry) int {
	if a.Index != b.Index {
		return a.Index - b.Index
	}
	if c := a.Prefix.Addr().Compare(b.Prefix.Addr()); c != 0 {
		return c
	}
	return a.Prefix.Bits() - b.Prefix.Bits()
}

// list gives what is ours.
func (j *journal) list() []entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.entries)
}

// add writes that addresses are ours. What stands there already is not written
// again.
func (j *journal) add(entries []entry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	before := j.entries
	j.entries = slices.Clone(before)
	changed := false
	for _, e := range entries {
		at, found := slices.BinarySearchFunc(j.entries, e, compareEntries)
		switch {
		case !found:
			j.entries = slices.Insert(j.entries, at, e)
		case j.entries[at] != e:
			j.entries[at] = e
		default:
			continue
		}
		changed = true
	}
	return j.replace(before, changed)
}

// remove writes that addresses are a router's no more. What became another
// router's stays.
func (j *journal) remove(entries []entry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	before := j.entries
	j.entries = slices.DeleteFunc(slices.Clone(before), func(e entry) bool {
		return slices.ContainsFunc(entries, func(gone entry) bool { return compareEntries(e, gone) == 0 && e.Router == gone.Router })
	})
	return j.replace(before, len(j.entries) != len(before))
}

// replace puts the file in place whole; on an error what stood there stands.
func (j *journal) replace(before []entry, changed bool) error {
	if !changed {
		return nil
	}
	j.buf = j.buf[:0]
	for _, e := range j.entries {
		j.buf = fmt.Appendf(j.buf, "%s %d %d %s %s %s\n", j.at.boot, j.at.netns, e.Index, e.Name, e.Prefix, e.Router)
	}
	if err := replaceFile(j.path, j.buf); err != nil {
		j.entries = before
		return fmt.Errorf("vrrp: journal: %w", err)
	}
	return nil
}

// replaceFile writes a file below the run directory, so that a reader sees the
// old or the new text. It need not outlive the kernel, so nothing is synced.
func replaceFile(path string, text []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
