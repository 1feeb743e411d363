// Package journal keeps lines on this node's disk, in order, until every
// output has them. A line is acknowledged after fdatasync returned for it, and
// never before; one write makes durable all lines that waited meanwhile.
package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
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

	// naming is held while a cursor is made or removed, and removing while segments
	// are. They are locked in this order and before mu, and a disk that stands still
	// may keep them for ever.
	naming, removing sync.Mutex
	unlink           func(path string) error // os.Remove, but in tests

	mu       sync.Mutex // all below; never held over what waits for the disk
	passed   []string   // paths of segments that are to be removed, the oldest first
	group    *group     // what the next write takes
	spare    []byte
	segments []held
	end      uint64        // number behind the last durable record
	grown    chan struct{} // closed when end grows, or a write that had begun fails
	writing  *writing      // what is on its way to the disk; nil: nothing
	begun    chan struct{} // closed when a write begins
	failed   uint64        // writes that had begun
	busy     time.Time     // when the one under way did; zero: none is
	lasted   time.Duration // the last that ended, well or not
	ended    time.Time     // when it did
	cursors  map[string]*Cursor
	damage   damage
	id       [16]byte // never changes

	giveUp time.Time // when Open tries no more what the disk refuses; zero: it refused nothing

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

// writing is a block on its way to the disk.
type writing struct {
	*group
	first uint64
	path  string // of its segment
	at    int64  // its offset there
}

// group is the lines that one write makes durable.
type group struct {
	buf   []byte // with room for the block's header in front
	count int
	taken chan struct{} // closed when the write begins
	done  chan struct{} // closed when it ended
	err   error         // guarded by the journal's mu; valid after done, as is
	end   uint64        // the number behind its last line
	then  []func()      // called once they are durable
	// Guarded by mu. follows: some lines are to be durable only if those of the
	// write before are, which was under way when they came. settled: how this
	// one went is known.
	follows, settled bool
}

func newGroup(buf []byte) *group {
	return &group{buf: append(buf[:0], make([]byte, blockHeader)...), taken: make(chan struct{}), done: make(chan struct{})}
}

// Batch is lines of one sender, on their way to Append.
type Batch struct {
	// Urgent lines have room beyond Config.Pending, of Reserve bytes: who brings
	// them can be held back for a moment only, however many others wait.
	Urgent bool

	buf   []byte
	count int
}

// Reserve is how many bytes more may wait for the disk with urgent lines.
const Reserve = 256 << 10

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

// Together tells whether one write makes both durable.
func (c Commit) Together(other Commit) bool { return c.group == other.group }

// End is the number behind the lines, or a greater one: who has all before it
// has them. It is valid after a Wait that returned nil; 0 if there are no lines.
func (c Commit) End() uint64 {
	if c.group == nil {
		return 0
	}
	return c.group.end
}

const (
	suffix         = ".journal"
	defaultSegment = 64 << 20 // bytes
)

// Open is OpenContext for who waits as long as it takes.
func Open(config Config) (*Journal, error) { return OpenContext(context.Background(), config) }

// OpenContext recovers a journal: it finds what was durable, and cuts off what a
// crash left of the last write. It blocks for five seconds at most, and as long as
// one more look takes, where the disk refuses to read; what it still refuses then
// counts as lost. The error is a directory that can't be read or written, or that
// ctx ended while the disk refused: then nothing more is given up.
func OpenContext(ctx context.Context, config Config) (*Journal, error) {
	if config.Segment == 0 {
		config.Segment = defaultSegment
	}
	if config.Pending == 0 {
		config.Pending = 4 << 20
	}
	config.Pending = min(config.Pending, MaxBlock)
	j := &Journal{
		config: config, kick: make(chan struct{}, 1), group: newGroup(nil), unlink: os.Remove,
		grown: make(chan struct{}), begun: make(chan struct{}), cursors: map[string]*Cursor{},
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := j.recover(ctx); err != nil {
		return nil, err
	}
	if err := j.identify(); err != nil {
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
	return j.AppendAfter(ctx, Commit{}, b, nil)
}

// AppendAfter is Append for lines that may be durable only if those of another
// Append are, which need not be waited for. Its error is ctx's end, or that
// those are known not to be. Once the lines are durable and before End, and
// before a Wait for them returns, then is called, in the order of the appends: by
// what writes to the disk, which waits for it. It may be nil.
func (j *Journal) AppendAfter(ctx context.Context, after Commit, b *Batch, then func()) (Commit, error) {
	if b.count == 0 {
		return Commit{}, nil
	}
	if len(b.buf) > MaxBlock {
		return Commit{}, fmt.Errorf("journal: a batch of %d bytes, want at most %d", len(b.buf), MaxBlock)
	}
	for {
		g, joined, err := j.join(after, b, then)
		switch {
		case err != nil:
			return Commit{}, err
		case joined:
			j.wake()
			return Commit{g}, nil
		}
		select {
		case <-g.taken:
		case <-ctx.Done():
			return Commit{}, ctx.Err()
		}
	}
}

// TryAppend is Append that does not wait; false: there is no room. The batch has
// MaxBlock bytes at most.
func (j *Journal) TryAppend(b *Batch) (Commit, bool) {
	if b.count == 0 {
		return Commit{}, true
	}
	g, joined, _ := j.join(Commit{}, b, nil) // it follows nothing that could have failed
	if !joined {
		return Commit{}, false
	}
	j.wake()
	return Commit{g}, true
}

// wake has Run write. It is called without mu, which Run takes at once.
func (j *Journal) wake() {
	select {
	case j.kick <- struct{}{}:
	default:
	}
}

// join puts a batch's lines among those that the next write takes, if these have
// room for them; else there is some once g is taken.
func (j *Journal) join(after Commit, b *Batch, then func()) (g *group, joined bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if after.group != nil && after.group.err != nil {
		return nil, false, after.group.err
	}
	g = j.group
	most := j.config.Pending
	if b.Urgent {
		most = min(most+Reserve, MaxBlock)
	}
	if g.count > 0 && len(g.buf)-blockHeader+len(b.buf) > most {
		return g, false, nil
	}
	g.buf = append(g.buf, b.buf...)
	g.count += b.count
	g.follows = g.follows || after.group != nil && after.group != g && !after.group.settled
	if then != nil {
		g.then = append(g.then, then)
	}
	return g, true, nil
}

// Busy is when the write began that is under way; zero: none is. A disk that
// neither takes a write nor refuses it keeps all waiting.
func (j *Journal) Busy() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.busy
}

// LastWrite is how long the last write took that has ended, well or not, and when it
// did; zero: none has.
func (j *Journal) LastWrite() (took time.Duration, ended time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lasted, j.ended
}

// trim takes out the segments that every cursor has passed, but for the newest
// Keep bytes of them: see removePassed. The caller holds mu.
func (j *Journal) trim() {
	if len(j.cursors) == 0 {
		return
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
	gone := 0
	for ; gone < passed && bytes > j.config.Keep; gone++ {
		bytes -= j.segments[gone].end
		j.passed = append(j.passed, j.segments[gone].path)
	}
	j.segments = slices.Delete(j.segments, 0, gone)
}

// removePassed removes the files of what trim took out. That may last, on a disk
// that stands still for ever, so mu is not held: nobody else waits for it. The oldest
// go first, whoever removes them: a crash leaves no gap. None of these names is used
// again, since the newest segment is never trimmed.
func (j *Journal) removePassed() error {
	j.mu.Lock()
	none := len(j.passed) == 0
	j.mu.Unlock()
	if none {
		return nil
	}
	j.removing.Lock()
	defer j.removing.Unlock()
	j.mu.Lock()
	list := j.passed
	j.passed = nil
	j.mu.Unlock()
	var err error
	for _, path := range list {
		if failed := j.unlink(path); !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	if err != nil {
		return fmt.Errorf("journal: remove what all outputs have: %w", err)
	}
	return nil
}

// validName tells whether a cursor may be called so: it is a part of a file's name.
func validName(name string) bool {
	return name != "" && len(name) <= 64 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}
