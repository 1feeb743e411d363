package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// leastRecord is how many bytes a record has at least: what can't be read has
// no more of them than it has room for.
const leastRecord = 11

// recover finds what is there. Only the newest segment is read: the others were
// closed when the next began, and are checked when somebody reads them.
func (j *Journal) recover(ctx context.Context) error {
	if err := j.sweep(); err != nil {
		return err
	}
	set, err := j.findAside()
	if err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(j.config.Dir, "*"+suffix))
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	slices.Sort(names) // by their first record: the names have a fixed width
	for i, name := range slices.Backward(names) {
		away, err := j.recoverSegment(ctx, name, i == len(names)-1)
		if err != nil {
			return err
		}
		set = append(set, away...)
	}
	slices.Reverse(j.segments)
	j.reserve(set)
	if err := j.readCursors(); err != nil {
		return err
	}
	for _, c := range j.cursors {
		// The disk forgot records that an output has: their numbers stay used.
		j.end = max(j.end, c.next)
	}
	j.nextNumber = max(j.nextNumber, j.end)
	return nil
}

// sweep removes what a crash left of files that were being replaced: ".NAME."
// and a number. Nobody replaces one before the journal is open.
func (j *Journal) sweep() error {
	entries, err := os.ReadDir(j.config.Dir)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	for _, e := range entries {
		dot := strings.LastIndexByte(e.Name(), '.')
		if !strings.HasPrefix(e.Name(), ".") || dot < 2 || !e.Type().IsRegular() {
			continue
		}
		if _, err := strconv.ParseUint(e.Name()[dot+1:], 10, 64); err != nil {
			continue
		}
		if err := os.Remove(filepath.Join(j.config.Dir, e.Name())); err != nil {
			return fmt.Errorf("journal: remove what a crash left: %w", err)
		}
	}
	return nil
}

// How long a start tries once more what the disk refuses to read.
const (
	recoverWithin = 5 * time.Second // all segments together
	recoverAgain  = 250 * time.Millisecond
)

// patient waits until it is time to read once more what the disk has refused;
// false: it has refused for long enough. Its error is ctx's end.
func (j *Journal) patient(ctx context.Context) (again bool, err error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	now := time.Now()
	if j.giveUp.IsZero() {
		j.giveUp = now.Add(recoverWithin)
	}
	if !now.Before(j.giveUp) {
		return false, nil
	}
	select {
	case <-time.After(recoverAgain):
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// inspected is what a start sees of a segment's file.
type inspected struct {
	segment
	size    int64  // bytes; 0: not known
	room    int64  // bytes that it has at most
	sound   bool   // its header is
	extent  extent // if it was asked for
	refused bool   // the disk refuses to read some of what was looked at
}

// inspect reads a segment's header, and with scan all of it. What the disk
// refuses to read is no error.
func (j *Journal) inspect(path string, scan bool) (f inspected, err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if unreadable(err) {
		f.refused = true
		f.size, f.room = j.sizeOf(path)
		return f, nil
	}
	if err != nil {
		return f, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return f, err
	}
	f.size, f.room = info.Size(), info.Size()
	header := make([]byte, segmentHeader)
	_, err = file.ReadAt(header, 0)
	f.refused = unreadable(err)
	if err != nil && !f.refused && !errors.Is(unlessEOF(err), errBlock) {
		return f, err
	}
	f.segment, err = parseSegment(header)
	f.sound = err == nil && !f.refused
	if !f.sound || !scan {
		return f, nil
	}
	f.extent, err = f.segment.scan(file, f.size)
	f.refused = f.extent.refused
	return f, err
}

// recoverSegment puts a segment in front of the younger ones. What the disk
// refuses is tried for some seconds: it may be away for a moment, as when a
// machine has just started, and what is set aside no output ever gets. away is the segment if it is.
func (j *Journal) recoverSegment(ctx context.Context, path string, newest bool) (away []aside, err error) {
	scan := len(j.segments) == 0
	f, err := j.inspect(path, scan)
	for again := true; err == nil && f.refused && again; {
		if again, err = j.patient(ctx); again {
			f, err = j.inspect(path, scan)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %s: %w", path, err)
	}
	if !f.sound {
		if newest && !f.refused && f.size <= segmentHeader {
			return nil, os.Remove(path) // it was being made; nothing is acknowledged before its header is durable
		}
		if first, ok := firstOf(path); ok {
			away = []aside{{first, f.room}}
		}
		return away, j.setAside(path, f.size) // without its salt no block can be told from a forged one
	}
	h := held{segment: f.segment, path: path, end: f.size}
	if scan {
		if h.end, err = j.recoverEnd(path, f, newest); err != nil {
			return nil, err
		}
	}
	j.segments = append(j.segments, h)
	return nil, nil
}

// recoverEnd takes over where the records end, in the newest segment that has
// some, and cuts off what a crash left of the last write.
func (j *Journal) recoverEnd(path string, f inspected, newest bool) (end int64, err error) {
	e, size := f.extent, f.size
	for _, gap := range e.gaps {
		j.lost(path, gap[0], gap[1]-gap[0])
	}
	j.end = max(j.end, e.next)
	if e.unreadable {
		// It may hold lines that were acknowledged: their numbers are used, and
		// it stays, for who can read the disk.
		j.lost(path, e.end, size-e.end)
		j.nextNumber = max(j.nextNumber, e.next+uint64(size-e.end)/leastRecord)
		return e.end, nil
	}
	switch {
	case e.end == size:
	case !newest: // it was closed: nothing of it is a torn write
		j.lost(path, e.end, size-e.end)
	default:
		if err := cut(path, e.end); err != nil {
			return 0, fmt.Errorf("journal: %s: cut off the torn end: %w", path, err)
		}
	}
	return e.end, nil
}

// cut makes a file durably shorter.
func cut(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(size), file.Sync(), file.Close())
}

// damagedSuffix is what a segment's name ends with that was set aside, and a
// number if there was such a file before.
const damagedSuffix = suffix + ".damaged"

// aside is a segment that was set aside, by this start or an earlier one.
type aside struct {
	first uint64 // number of its first record, as its name says
	room  int64  // bytes that it has at most
}

// findAside counts what earlier starts have set aside and nobody took away: the
// disk has it no less lost than it had then.
func (j *Journal) findAside() (list []aside, err error) {
	names, err := filepath.Glob(filepath.Join(j.config.Dir, "*"+damagedSuffix+"*"))
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	for _, path := range names {
		size, room := j.sizeOf(path)
		j.lost(path, 0, max(size, 1))
		if first, ok := firstOf(path); ok {
			list = append(list, aside{first, room})
		}
	}
	return list, nil
}

// sizeOf is how long a segment is that can't be opened, and how long at most. If
// that can't be seen either, it may have all that a segment can.
func (j *Journal) sizeOf(path string) (size, room int64) {
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
		return info.Size(), info.Size()
	}
	return 0, j.greatest()
}

// firstOf is the number of a segment's first record, as its name says.
func firstOf(path string) (first uint64, ok bool) {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	first, err := strconv.ParseUint(name, 10, 64)
	return first, err == nil
}

// reserve has the numbers of all records that had room in what was set aside be
// used by no other line: cursors, and the other node, may have seen them. A
// younger segment, sound or not, begins behind all that an older one had.
func (j *Journal) reserve(list []aside) {
	for _, a := range list {
		younger := func(b aside) bool { return b.first > a.first }
		if !slices.ContainsFunc(j.segments, func(h held) bool { return h.first >= a.first }) && !slices.ContainsFunc(list, younger) {
			j.nextNumber = max(j.nextNumber, a.first+uint64(a.room)/leastRecord)
		}
	}
}

// greatest is how many bytes a segment has at most: the last block begins before
// it is full. One that was written with another configuration had the default.
func (j *Journal) greatest() int64 {
	return max(j.config.Segment, defaultSegment) + blockHeader + MaxBlock
}

// setAside takes a segment of that many bytes out of the journal, and keeps it
// beside: who can read the disk may want it.
func (j *Journal) setAside(path string, size int64) error {
	j.lost(path, 0, max(size, 1))
	to := strings.TrimSuffix(path, suffix) + damagedSuffix
	for n := 1; ; n++ {
		_, err := os.Lstat(to)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("journal: set aside a segment that can't be read: %w", err)
		}
		to = fmt.Sprintf("%s%s.%d", strings.TrimSuffix(path, suffix), damagedSuffix, n)
	}
	if err := os.Rename(path, to); err != nil {
		return fmt.Errorf("journal: set aside a segment that can't be read: %w", err)
	}
	return nil
}

// unreadable tells whether an error is the disk's, which has lost what was
// asked for.
func unreadable(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENODATA) || errors.Is(err, syscall.EBADMSG) || errors.Is(err, syscall.EUCLEAN)
}
