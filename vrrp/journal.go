package vrrp

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"holdfast/internal/runfile"
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

// journal is the file and what stands in it. Its methods may be called from
// any goroutine; they write to a memory file system and so block for
// microseconds.
type journal struct {
	path string
	at   runfile.Origin

	mu      sync.Mutex
	entries []entry // sorted
	buf     []byte
}

// openJournal reads the journal of the run directory. Lines that can't be read
// are left out: what they meant is not known.
func openJournal(dir string, at runfile.Origin) (j *journal, broken int, err error) {
	j = &journal{path: filepath.Join(dir, journalFile), at: at}
	broken, err = runfile.File{Path: j.path, At: at}.Read(entryWords, func(words []string, ours bool) bool {
		e, ok := parseEntry(words)
		if ok && ours {
			j.entries = append(j.entries, e)
		}
		return ok
	})
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(j.entries, compareEntries)
	return j, broken, nil
}

// entryWords are those of a line behind its origin.
const entryWords = 4

func parseEntry(words []string) (e entry, ok bool) {
	index, err := strconv.Atoi(words[0])
	prefix, err2 := netip.ParsePrefix(words[2])
	return entry{Index: index, Name: words[1], Prefix: prefix, Router: words[3]}, errors.Join(err, err2) == nil && index > 0
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
		j.buf = fmt.Appendf(j.buf, "%v %d %s %s %s\n", j.at, e.Index, e.Name, e.Prefix, e.Router)
	}
	if err := runfile.Replace(j.path, j.buf); err != nil {
		j.entries = before
		return fmt.Errorf("vrrp: journal: %w", err)
	}
	return nil
}
