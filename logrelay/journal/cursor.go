package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/durable"
)

const cursorPrefix = "cursor-"

// Cursor is how far an output has come: it keeps what is behind it from being
// removed. Its methods may be called from any goroutine.
type Cursor struct {
	j    *Journal
	name string
	next uint64 // guarded by j.mu
}

// Cursor returns the cursor of that name (letters a-z, digits, '-', '_'). One
// that is new stands at the oldest record that is left, or at the end.
func (j *Journal) Cursor(name string, fromEnd bool) (*Cursor, error) {
	if !validName(name) {
		return nil, fmt.Errorf("journal: cursor %q: want 1 to 64 of a-z, 0-9, - and _", name)
	}
	j.naming.Lock() // else it might be made while one of that name is removed
	defer j.naming.Unlock()
	j.mu.Lock()
	c, ok := j.cursors[name]
	if !ok {
		c = &Cursor{j: j, name: name, next: j.end}
		if !fromEnd && len(j.segments) > 0 {
			c.next = j.segments[0].first
		}
		j.cursors[name] = c
	}
	next := c.next
	j.mu.Unlock()
	if ok {
		return c, nil
	}
	return c, c.Commit(next)
}

// Forget removes the cursors that are not named: those of outputs that are
// configured no more, which would keep the journal for ever.
func (j *Journal) Forget(except ...string) error {
	j.naming.Lock()
	defer j.naming.Unlock()
	j.mu.Lock()
	var names []string
	for name := range j.cursors {
		if !slices.Contains(except, name) {
			names = append(names, name)
		}
	}
	j.mu.Unlock()
	for _, name := range names {
		if err := j.drop(name); err != nil {
			return fmt.Errorf("journal: forget cursor %s: %w", name, err)
		}
	}
	return j.removePassed()
}

// Remove forgets the cursor, which is not used again: it keeps nothing any more.
func (c *Cursor) Remove() error {
	j := c.j
	j.naming.Lock()
	defer j.naming.Unlock()
	j.mu.Lock()
	known := j.cursors[c.name] == c
	j.mu.Unlock()
	if !known {
		return nil // it was removed before
	}
	if err := j.drop(c.name); err != nil {
		return fmt.Errorf("journal: remove cursor %s: %w", c.name, err)
	}
	return j.removePassed()
}

// drop removes a cursor, and takes out what it alone has kept. The caller holds
// naming.
func (j *Journal) drop(name string) error {
	if err := j.unlink(filepath.Join(j.config.Dir, cursorPrefix+name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.cursors, name)
	j.trim()
	return nil
}

// Next is the number of the first record that the output does not have.
func (c *Cursor) Next() uint64 {
	c.j.mu.Lock()
	defer c.j.mu.Unlock()
	return c.next
}

// Commit says that the output durably has all records before next. It blocks
// until that is on the disk. Going back is allowed: a replay.
func (c *Cursor) Commit(next uint64) error {
	b := binary.LittleEndian.AppendUint64(nil, next)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if err := durable.Replace(filepath.Join(c.j.config.Dir, cursorPrefix+c.name), b, 0o600); err != nil {
		return fmt.Errorf("journal: cursor %s: %w", c.name, err)
	}
	c.j.mu.Lock()
	c.next = next
	c.j.trim()
	c.j.mu.Unlock()
	return c.j.removePassed()
}

func (j *Journal) readCursors() error {
	names, err := filepath.Glob(filepath.Join(j.config.Dir, cursorPrefix+"*"))
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	for _, path := range names {
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		next, err := parseCursor(b)
		if err != nil {
			return fmt.Errorf("journal: %s: %w", path, err)
		}
		name := strings.TrimPrefix(filepath.Base(path), cursorPrefix)
		j.cursors[name] = &Cursor{j: j, name: name, next: next}
	}
	return nil
}

func parseCursor(b []byte) (uint64, error) {
	if len(b) != 12 || crc32.Checksum(b[:8], castagnoli) != binary.LittleEndian.Uint32(b[8:]) {
		return 0, fmt.Errorf("damaged (%d bytes, or a wrong checksum): remove it and the output gets all that is left once more", len(b))
	}
	return binary.LittleEndian.Uint64(b), nil
}
