package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// What the operating system refuses is no damage: a file that may not be read,
// no descriptors left. To take it for one would set a good store aside.

// asDamage says of what was found wrong in a file that it is damaged, unless the
// operating system could not read it at all. A file that is gone is damage.
func asDamage(err error) error {
	if err == nil || errors.Is(err, ErrDamaged) {
		return err
	}
	if _, refused := errors.AsType[syscall.Errno](err); refused && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// readTries is how often the disk may fail to read something before it counts as
// lost.
const readTries = 3

// reading does what reads the disk, once or more often; its error is the last one.
type reading func(read func() error) error

// once reads as whoever is not patient.
func once(read func() error) error { return read() }

// patiently repeats what the disk could not read (EIO), since a cable, a
// controller or the other end of a network may be at fault, and says meanwhile
// that the disk is sick. What can't be read at last is a damage: the others
// have it. A write is not for it: who can't write has all that it had. It blocks for (readTries-1) times the limit of a hung disk at most.
func (e *engine) patiently(ctx context.Context, read func() error) error {
	for try := 1; ; try++ {
		err := read()
		if !errors.Is(err, syscall.EIO) || errors.Is(err, ErrDamaged) {
			return err
		}
		if try == readTries {
			return fmt.Errorf("%w: it could not be read %d times: %w", ErrDamaged, readTries, err)
		}
		e.store.log.Error("the disk could not be read; trying again", "error", err, "path", e.store.config.dir())
		e.disk.wrote(err)
		e.tellDisk(diskSick, diskSick, look{})
		if !sleep(ctx, e.store.times.disk) {
			return err
		}
	}
}
