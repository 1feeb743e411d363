package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// leastRecord is how many bytes a record has at least: what can't be read has
// no more of them than it has room for.
const leastRecord = 11

// recover finds what is there. Only the newest segment is read: the others were
// closed when the next began, and are checked when somebody reads them.
func (j *Journal) recover() error {
	if err := j.sweep(); err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(j.config.Dir, "*"+suffix))
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	slices.Sort(names) // by their first record: the names have a fixed width
	for i, name := range slices.Backward(names) {
		if err := j.recoverSegment(name, i == len(names)-1); err != nil {
			return err
		}
	}
	slices.Reverse(j.segments)
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

// recoverSegment puts a segment in front of the younger ones.
func (j *Journal) recoverSegment(path string, newest bool) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil && !unreadable(err) {
		return fmt.Errorf("journal: %w", err)
	}
	if err != nil {
		// Nor is it known how long it is: it may have all that a segment can.
		size := int64(0)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
		return j.setAside(path, size, max(size, j.greatest()))
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	header := make([]byte, segmentHeader)
	_, err = file.ReadAt(header, 0)
	bad := unreadable(err)
	if err != nil && !bad && !errors.Is(unlessEOF(err), errBlock) {
		return fmt.Errorf("journal: %s: %w", path, err)
	}
	seg, err := parseSegment(header)
	if err != nil {
		if newest && !bad && info.Size() <= segmentHeader {
			return os.Remove(path) // it was being made; nothing is acknowledged before its header is durable
		}
		return j.setAside(path, info.Size(), info.Size()) // without its salt no block can be told from a forged one
	}
	h := held{segment: seg, path: path, end: info.Size()}
	if len(j.segments) == 0 {
		if h.end, err = j.recoverEnd(h, file, newest); err != nil {
			return err
		}
	}
	j.segments = append(j.segments, h)
	return nil
}

// recoverEnd finds where the records end, in the newest segment that has some,
// and cuts off what a crash left of the last write.
func (j *Journal) recoverEnd(h held, file *os.File, newest bool) (end int64, err error) {
	path, size := h.path, h.end
	e, err := h.scan(file, size)
	if err != nil {
		return 0, fmt.Errorf("journal: %s: %w", path, err)
	}
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
		if err := errors.Join(file.Truncate(e.end), file.Sync()); err != nil {
			return 0, fmt.Errorf("journal: %s: cut off the torn end: %w", path, err)
		}
	}
	return e.end, nil
}

// greatest is how many bytes a segment has at most: the last block begins before
// it is full. One that was written with another configuration had the default.
func (j *Journal) greatest() int64 {
	return max(j.config.Segment, defaultSegment) + blockHeader + MaxBlock
}

// setAside takes a segment of that many bytes out of the journal. The numbers of
// all records that had room in so many are used by no other line: cursors, and
// the other node, may have seen them.
func (j *Journal) setAside(path string, size, room int64) error {
	j.lost(path, 0, max(size, 1))
	first, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(path), suffix), 10, 64)
	if err == nil && len(j.segments) == 0 { // else a younger one begins behind all that it had
		j.nextNumber = max(j.nextNumber, first+uint64(room)/leastRecord)
	}
	if err := os.Rename(path, path+".damaged"); err != nil {
		return fmt.Errorf("journal: set aside a segment that can't be read: %w", err)
	}
	return nil
}

// unreadable tells whether an error is the disk's, which has lost what was
// asked for.
func unreadable(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENODATA) || errors.Is(err, syscall.EBADMSG) || errors.Is(err, syscall.EUCLEAN)
}
