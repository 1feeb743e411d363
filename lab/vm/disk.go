package vm

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"holdfast/lab/vm/nbd"
)

// sector is what a disk writes wholly or not at all, in bytes.
const sector = 512

// DiskOptions say what a disk is like.
type DiskOptions struct {
	// Size in bytes; rounded up to whole sectors of 512 bytes. It takes memory
	// only for what was written.
	Size int64

	// Shared is a disk with its own power, such as a RAID box that two servers
	// are cabled to: it does not lose its cache when a machine loses its power,
	// only by PowerCut. Any number of machines may have it at the same time.
	Shared bool

	// Survivors decides what of the cache is on the disk after a power cut.
	// nil: nothing. Otherwise each sector that was written and not flushed is
	// there or not, by chance: the order of writes means nothing.
	Survivors *rand.Rand
}

// Disk is a raw disk with a write cache that is lost with its power: what a
// machine wrote is read back, but it is on the disk only after a flush (which
// fsync in the machine comes to) or a write with forced unit access. It lives
// in the memory of this process.
type Disk struct {
	o DiskOptions

	mu     sync.Mutex
	cache  *os.File // what is read: all that was written
	medium *os.File // what survives
	dirty  map[int64]bool
	stats  DiskStats
	ports  []net.Conn
	armed  chan struct{} // closed by the cut that CutAtFlush asked for; nil: none is to come
	dead   bool          // since such a cut
}

// errDead is what a disk without power answers.
var errDead = errors.New("vm: the disk has no power")

// DiskStats count what a disk was asked.
type DiskStats struct {
	Writes  int // requests
	Flushes int
	Lost    int // sectors that power cuts took
}

// NewDisk makes a disk full of zeros. Close it after its machines are off.
func NewDisk(o DiskOptions) (*Disk, error) {
	if o.Size <= 0 {
		return nil, fmt.Errorf("vm: a disk of %d bytes", o.Size)
	}
	o.Size = (o.Size + sector - 1) / sector * sector
	d := &Disk{o: o, dirty: make(map[int64]bool)}
	for _, file := range []**os.File{&d.cache, &d.medium} {
		fd, err := unix.MemfdCreate("holdfast-lab-disk", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("vm: make a disk: %w", err), d.Close())
		}
		*file = os.NewFile(uintptr(fd), "disk")
		if err := (*file).Truncate(o.Size); err != nil {
			return nil, errors.Join(fmt.Errorf("vm: make a disk: %w", err), d.Close())
		}
	}
	return d, nil
}

// Close forgets the disk.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, c := range d.ports {
		errs = append(errs, c.Close())
	}
	d.ports = nil
	for _, f := range []*os.File{d.cache, d.medium} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Size is the disk's size in bytes.
func (d *Disk) Size() int64 { return d.o.Size }

// ReadAt reads what a machine would read.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return 0, errDead
	}
	return d.cache.ReadAt(p, off)
}

// WriteAt writes into the disk's cache, as a machine would.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return 0, errDead
	}
	d.stats.Writes++
	for s := off / sector; s*sector < off+int64(len(p)); s++ {
		d.dirty[s] = true
	}
	return d.cache.WriteAt(p, off)
}

// Flush makes durable what was written.
func (d *Disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.armed != nil && len(d.dirty) > 0 {
		d.dead = true
		close(d.armed)
		d.armed = nil
	}
	if d.dead {
		return errDead
	}
	d.stats.Flushes++
	return d.settle(d.cache, d.medium, slices.Sorted(maps.Keys(d.dirty)))
}

// settle copies sectors, in order, which then are the same in both.
func (d *Disk) settle(from, to *os.File, sectors []int64) error {
	for len(sectors) > 0 {
		run := 1 // sectors that follow each other are copied at once
		for run < len(sectors) && sectors[run] == sectors[0]+int64(run) {
			run++
		}
		buf := make([]byte, run*sector)
		if _, err := from.ReadAt(buf, sectors[0]*sector); err != nil {
			return err
		}
		if _, err := to.WriteAt(buf, sectors[0]*sector); err != nil {
			return err
		}
		for _, s := range sectors[:run] {
			delete(d.dirty, s)
		}
		sectors = sectors[run:]
	}
	return nil
}

// CutAtFlush cuts the disk's power in the worst moment: when next it is asked to
// flush something, before it has. A cut at any other time nearly always falls
// where nothing waits for a flush, since a flush follows the writes at once. From
// then on the disk answers with errors; the channel is closed, and it is for the
// caller to cut the power of its machine too, or the disk's by PowerCut.
func (d *Disk) CutAtFlush() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.armed == nil {
		d.armed = make(chan struct{})
	}
	return d.armed
}

// PowerCut cuts the disk's power and gives it back: what was not flushed is lost,
// as DiskOptions.Survivors says. Machines that have it go on and read what is
// left.
func (d *Disk) PowerCut() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed, d.dead = nil, false
	var lost, kept []int64
	for _, s := range slices.Sorted(maps.Keys(d.dirty)) { // sorted: the same for the same seed
		if d.o.Survivors != nil && d.o.Survivors.IntN(2) == 0 {
			kept = append(kept, s)
		} else {
			lost = append(lost, s)
		}
	}
	d.stats.Lost += len(lost)
	if err := errors.Join(d.settle(d.cache, d.medium, kept), d.settle(d.medium, d.cache, lost)); err != nil {
		return fmt.Errorf("vm: cut a disk's power: %w", err)
	}
	return nil
}

// Stats returns what the disk was asked so far.
func (d *Disk) Stats() DiskStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Save writes the disk's contents to a file, sparse, for tools such as e2fsck.
func (d *Disk) Save(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(d.o.Size), d.copyTo(f), f.Close())
	if err != nil {
		return fmt.Errorf("vm: save a disk to %s: %w", path, err)
	}
	return nil
}

func (d *Disk) copyTo(f *os.File) error {
	const chunk = 64 << 10
	buf, zeros := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); off < d.o.Size; off += chunk {
		n, err := d.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if slices.Equal(buf[:n], zeros[:n]) {
			continue
		}
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			return err
		}
	}
	return nil
}

// attach returns the emulator's end of a cable to the disk. After the emulator
// is gone, detached is closed when the last that it asked for is done.
func (d *Disk) attach() (theirs *os.File, detached <-chan struct{}, err error) {
	ours, theirs, err := socketPair("disk")
	if err != nil {
		return nil, nil, err
	}
	done := make(chan struct{})
	d.mu.Lock()
	d.ports = append(d.ports, ours)
	d.mu.Unlock()
	go func() {
		defer close(done)
		// A client that was killed in the middle of a request is no fault.
		_ = nbd.Serve(ours, d)
		ours.Close()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ports = slices.DeleteFunc(d.ports, func(c net.Conn) bool { return c == ours })
	}()
	return theirs, done, nil
}
