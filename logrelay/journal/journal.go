// Package journal keeps lines on this node's disk, in order, until every
// output has them. A line is acknowledged after fdatasync returned for it, and
// never before; one write makes durable all lines that waited meanwhile.
package journal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/durable"
)

// Config is what a Journal is told. Zero values mean the defaults.
type Config struct {
	Dir     string // made if it is not there, for this user alone
	Segment int64  // bytes after which a new segment begins; 64 MiB
	Pending int    // bytes that may wait for the disk; 4 MiB, MaxBlock at most
	Keep    int64  // bytes kept for a replay after all cursors have passed them
	// Committed is called after each write to the disk with its lines, its
	// bytes and how long the disk took, or why it failed. May be nil.
	Committed func(lines, bytes int, took time.Duration, err error)
	// Wrap stands between the journal and its open segment: what tests use to
	// break a disk. May be nil.
	Wrap func(File) File
}

// File is what a journal needs of an open segment.
type File interface {
	WriteAt(b []byte, off int64) (int, error)
	Datasync() error // fdatasync(2)
	Truncate(size int64) error
	Close() error
}

// osFile is a File of the operating system.
type osFile struct{ *os.File }

func (f osFile) Datasync() error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		for failed = syscall.Fdatasync(int(fd)); errors.Is(failed, syscall.EINTR); {
			failed = syscall.Fdatasync(int(fd))
		}
		if failed = os.NewSyscallError("fdatasync", failed); failed == nil {
			var s syscall.Stat_t
			if failed = os.NewSyscallError("fstat", syscall.Fstat(int(fd), &s)); failed == nil {
				failed = removedError(uint64(s.Nlink)) // nobody would find the lines
			}
		}
	}); err != nil {
		return err
	}
	return failed
}

// Journal is a directory of segments. Its methods may be called from any
// goroutine.
type Journal struct {
	config Config
	kick   chan struct{}

	mu       sync.Mutex // all below
	group    *group     // what the next write takes
	spare    []byte
	segments []held
	end      uint64        // number behind the last durable record
	grown    chan struct{} // closed when end grows
	cursors  map[string]*Cursor
	damage   damage
	id       [16]byte // never changes

	// Only Run touches these.
	active     File
	activeSeg  segment
	activeEnd  int64
	nextNumber uint64
}

// held is a segment on the disk.
type held struct {
	segment
	path string
	end  int64 // offset behind its last durable block
	gone bool  // somebody removed it
}

// group is the lines that one write makes durable.
type group struct {
	buf   []byte // with room for the block's header in front
	count int
	taken chan struct{} // closed when the write begins
	done  chan struct{} // closed when it ended
	err   error         // valid after done, as is
	end   uint64        // the number behind its last line
}

func newGroup(buf []byte) *group {
	return &group{buf: append(buf[:0], make([]byte, blockHeader)...), taken: make(chan struct{}), done: make(chan struct{})}
}

// Batch is lines of one sender, on their way to Append.
type Batch struct {
	buf   []byte
	count int
}

// Add puts a line behind the others. Its data is copied, and cut at MaxData.
func (b *Batch) Add(r Record) {
	r.Data = r.Data[:min(len(r.Data), MaxData)]
	b.buf = appendRecord(b.buf, r)
	b.count++
}

// Len is how many lines there are, Size how many bytes they take.
func (b *Batch) Len() int  { return b.count }
func (b *Batch) Size() int { return len(b.buf) }

// Bytes is the lines as BlockOf reads them, valid until the batch changes.
func (b *Batch) Bytes() []byte { return b.buf }

// Join puts another batch's lines behind this one's.
func (b *Batch) Join(other *Batch) {
	b.buf = append(b.buf, other.buf...)
	b.count += other.count
}

// Reset empties the batch and keeps its memory, unless that grew large.
func (b *Batch) Reset() {
	if b.buf, b.count = b.buf[:0], 0; cap(b.buf) > 1<<20 {
		b.buf = nil
	}
}

// Commit is the promise of an Append.
type Commit struct{ group *group }

// Wait blocks until the lines are durable, or are known not to be, or ctx
// ends. Only nil allows to acknowledge them.
func (c Commit) Wait(ctx context.Context) error {
	if c.group == nil {
		return nil // no lines
	}
	select {
	case <-c.group.done:
		return c.group.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// End is the number behind the lines, or a greater one: who has all before it
// has them. It is valid after a Wait that returned nil; 0 if there are no lines.
func (c Commit) End() uint64 {
	if c.group == nil {
		return 0
	}
	return c.group.end
}

const suffix = ".journal"

// Open recovers a journal: it finds what was durable, and cuts off what a
// crash left of the last write. The error is a disk that can't be read.
func Open(config Config) (*Journal, error) {
	if config.Segment == 0 {
		config.Segment = 64 << 20
	}
	if config.Pending == 0 {
		config.Pending = 4 << 20
	}
	config.Pending = min(config.Pending, MaxBlock)
	j := &Journal{
		config: config, kick: make(chan struct{}, 1), group: newGroup(nil),
		grown: make(chan struct{}), cursors: map[string]*Cursor{},
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := errors.Join(j.recover(), j.identify()); err != nil {
		return nil, err
	}
	return j, nil
}

// End is the number that the next durable record gets at least.
func (j *Journal) End() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.end
}

// Bytes is what the journal takes on the disk.
func (j *Journal) Bytes() (sum int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments {
		sum += s.end
	}
	return sum
}

// Append queues the batch's lines. It blocks while more bytes wait for the
// disk than may, until ctx ends. The batch may be used again at once.
func (j *Journal) Append(ctx context.Context, b *Batch) (Commit, error) {
	if b.count == 0 {
		return Commit{}, nil
	}
	if len(b.buf) > MaxBlock {
		return Commit{}, fmt.Errorf("journal: a batch of %d bytes, want at most %d", len(b.buf), MaxBlock)
	}
	for {
		j.mu.Lock()
		g := j.group
		if g.count == 0 || len(g.buf)-blockHeader+len(b.buf) <= j.config.Pending {
			g.buf = append(g.buf, b.buf...)
			g.count += b.count
			j.mu.Unlock()
			select {
			case j.kick <- struct{}{}:
			default:
			}
			return Commit{g}, nil
		}
		j.mu.Unlock()
		select {
		case <-g.taken:
		case <-ctx.Done():
			return Commit{}, ctx.Err()
		}
	}
}

// Run writes to the disk until ctx ends; what was appended by then is written.
// It returns nil: a write that fails is told to those who wait for it and to
// Committed, and the next is tried in a new segment.
func (j *Journal) Run(ctx context.Context) error {
	defer j.abandon()
	for {
		select {
		case <-ctx.Done():
			j.commit()
			return nil
		case <-j.kick:
			j.commit()
		}
	}
}

// commit makes durable what waits.
func (j *Journal) commit() {
	j.mu.Lock()
	g := j.group
	if g.count == 0 {
		j.mu.Unlock()
		return
	}
	j.group = newGroup(j.spare)
	j.spare = nil
	j.mu.Unlock()
	close(g.taken)

	began := time.Now()
	g.err = j.write(g)
	if j.config.Committed != nil {
		j.config.Committed(g.count, len(g.buf), time.Since(began), g.err)
	}
	close(g.done)
	j.mu.Lock()
	if cap(g.buf) <= 2*j.config.Pending {
		j.spare = g.buf
	}
	j.mu.Unlock()
}

func (j *Journal) write(g *group) error {
	if j.active == nil || j.activeEnd >= j.config.Segment {
		if err := j.roll(); err != nil {
			return err
		}
	}
	first := j.nextNumber
	// Used up even if this fails: a torn block must not share numbers with a good one.
	j.nextNumber += uint64(g.count)
	j.activeSeg.seal(g.buf, first, g.count)
	_, err := j.active.WriteAt(g.buf, j.activeEnd)
	if err == nil {
		err = j.active.Datasync()
	}
	if err != nil {
		// After a failed fdatasync the kernel may call pages clean that are
		// not on the disk: this segment is written no more.
		_ = j.active.Truncate(j.activeEnd)
		j.abandon()
		return fmt.Errorf("journal: write to %s: %w", j.config.Dir, err)
	}
	j.activeEnd += int64(len(g.buf))
	g.end = j.nextNumber
	j.publish(j.nextNumber)
	return nil
}

// publish lets the readers see what is durable.
func (j *Journal) publish(end uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.segments[len(j.segments)-1].end = j.activeEnd
	j.end = end
	close(j.grown)
	j.grown = make(chan struct{})
}

func (j *Journal) abandon() {
	if j.active != nil {
		_ = j.active.Close() // what was acknowledged is synced
		j.active = nil
	}
}

// roll begins a new segment, whose header and name are durable before a block is.
func (j *Journal) roll() error {
	j.abandon()
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // never fails
	seg := segment{first: j.nextNumber, salt: binary.LittleEndian.Uint64(salt[:])}
	path := filepath.Join(j.config.Dir, fmt.Sprintf("%020d%s", seg.first, suffix))
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) { // one that failed before its first block
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	var f File = osFile{file}
	if j.config.Wrap != nil {
		f = j.config.Wrap(f)
	}
	_, err = f.WriteAt(seg.header(), 0)
	if err == nil {
		err = f.Datasync()
	}
	if err == nil {
		err = durable.SyncDir(j.config.Dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("journal: begin %s: %w", path, err), f.Close(), os.Remove(path))
	}
	j.active, j.activeSeg, j.activeEnd = f, seg, segmentHeader
	j.mu.Lock()
	j.segments = slices.DeleteFunc(j.segments, func(h held) bool { return h.path == path })
	j.segments = append(j.segments, held{segment: seg, path: path, end: segmentHeader})
	j.mu.Unlock()
	return nil
}

// trim removes the segments that every cursor has passed, but for the newest
// Keep bytes of them. The caller holds mu.
func (j *Journal) trim() error {
	if len(j.cursors) == 0 {
		return nil
	}
	least := j.end
	for _, c := range j.cursors {
		least = min(least, c.next)
	}
	passed, bytes := 0, int64(0)
	for passed+1 < len(j.segments) && j.segments[passed+1].first <= least {
		bytes += j.segments[passed].end
		passed++
	}
	var err error
	gone := 0
	for ; gone < passed && bytes > j.config.Keep; gone++ {
		bytes -= j.segments[gone].end
		if failed := os.Remove(j.segments[gone].path); !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	j.segments = slices.Delete(j.segments, 0, gone)
	if err != nil {
		return fmt.Errorf("journal: remove what all outputs have: %w", err)
	}
	return nil
}

// validName tells whether a cursor may be called so: it is a part of a file's name.
func validName(name string) bool {
	return name != "" && len(name) <= 64 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}
