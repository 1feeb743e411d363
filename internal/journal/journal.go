// Package journal keeps records on the disk until they are safe elsewhere. A
// record is there after one write and one sync of blocks that the file has
// already, so that the file system has nothing to write but the data.
//
// There are two files. One is written to; the other holds what was written
// before, and is used again when that is no longer needed. What a power cut left
// in part was never acknowledged and is left out; any other difference is found
// and named, and nothing of it is given out.
package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"holdfast/internal/durable"
)

// ErrFull: both files are in use; see Release.
var ErrFull = errors.New("the journal is full")

// File is what a Journal is written to.
type File interface {
	io.WriterAt
	Sync() error // blocks until what was written is on the disk
	Close() error
}

// dataFile syncs data alone: the file's size never changes.
type dataFile struct{ *os.File }

func (f dataFile) Sync() error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// forgetCached has the kernel forget what it read of the file, in pages that may
// be large: what is written from now on is in small ones. It is no harm if it
// does not.
func forgetCached(f *os.File) {
	const dontNeed = 4 // POSIX_FADV_DONTNEED
	_, _, _ = syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0)
}

// Journal appends for one goroutine at a time; Release may be called by another.
type Journal struct {
	sectors int // of each file
	buffer  []byte
	begun   []byte // what the block has that the next record begins in

	mu     sync.Mutex // guards what follows; not held while the disk is waited for
	files  [2]segment
	active int
	spare  bool   // the other file is ready to be written to
	newest uint32 // generation
	number uint64 // of the last record since the last Reset
	broken error  // why a record may be there in part; nil: none is
}

// segment is one of the files.
type segment struct {
	file       File
	generation uint32
	end        int    // sectors that are used
	last       uint64 // what the last record in it goes up to
}

// Create makes the two files, each of size bytes, a multiple of 4096; what was
// there is replaced.
func Create(paths [2]string, size int) error {
	for i, path := range paths {
		h := head{generation: uint32(i + 1), live: 1}
		err := durable.ReplaceFunc(path, 0o600, func(w io.Writer) error {
			block := appendBlank(h.encode(), blockSectors-1)
			for range size / len(block) {
				// Block by block: of more at a time the kernel makes a page of its
				// cache as large, and has all of it to look through at each sync.
				if _, err := w.Write(block); err != nil {
					return err
				}
				block = appendBlank(block[:0], blockSectors)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Read gives the records of a journal that is not in use, oldest first.
func Read(paths [2]string) ([][]byte, error) {
	_, all, err := read(paths)
	return all, err
}

func read(paths [2]string) (heads [2]head, all [][]byte, err error) {
	var files [2][]byte
	for i, path := range paths {
		if files[i], err = os.ReadFile(path); errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err != nil {
			return heads, nil, err
		}
	}
	return decode(files)
}

// decode finds what counts in the two files.
func decode(files [2][]byte) (heads [2]head, all [][]byte, err error) {
	if len(files[0]) != len(files[1]) || len(files[0])%(blockSectors*sectorSize) != 0 || len(files[0]) == 0 {
		return heads, nil, damage("its files have %d and %d bytes: one was cut", len(files[0]), len(files[1]))
	}
	var found [2]records
	for i, file := range files {
		if heads[i], err = decodeHead(file); err == nil {
			found[i], err = readRecords(file, heads[i].generation)
		}
		if err != nil {
			return heads, nil, fmt.Errorf("file %d: %w", i, err)
		}
	}
	older, newer := 0, 1
	if heads[older].generation > heads[newer].generation {
		older, newer = newer, older
	}
	switch {
	case heads[0].generation == heads[1].generation:
		return heads, nil, damage("both files are of generation %d", heads[0].generation)
	case heads[older].generation < heads[newer].live:
		return heads, found[newer].data, nil
	case found[newer].first == 0 && !found[newer].torn:
		return heads, found[older].data, nil
	case found[older].torn || found[older].first == 0:
		return heads, nil, damage("file %d ends too early: file %d goes on", older, newer)
	case found[newer].first != 0 && found[newer].first != found[older].last()+1:
		return heads, nil, damage("file %d begins with record %d, and file %d ends with %d", newer, found[newer].first, older, found[older].last())
	}
	return heads, append(found[older].data, found[newer].data...), nil
}

// Open takes a journal up and gives its records, oldest first. Nothing can be
// appended until Reset was called, when they are safe elsewhere.
func Open(paths [2]string) (*Journal, [][]byte, error) {
	heads, all, err := read(paths)
	if err != nil {
		return nil, nil, err
	}
	j := &Journal{broken: errNotReset, newest: max(heads[0].generation, heads[1].generation)}
	for i, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, nil, errors.Join(err, j.Close())
		}
		j.files[i].file = dataFile{f}
		forgetCached(f)
		st, err := f.Stat()
		if err != nil {
			return nil, nil, errors.Join(err, j.Close())
		}
		j.sectors = int(st.Size()) / sectorSize
	}
	return j, all, nil
}

// Largest is how many bytes a record can have.
func (j *Journal) Largest() int { return (j.sectors-firstSector)*room - recordHead }

// Broken tells why nothing can be appended before a Reset; nil: it can.
func (j *Journal) Broken() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.broken
}

// Empty tells whether nothing was appended since the last Reset.
func (j *Journal) Empty() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.broken == nil && j.number == 0
}

// Append writes a record, which goes up to last, and returns when it is on the
// disk. ErrFull: nothing has happened, and Release makes room. After any other
// error the record may be there or not, and nothing can be appended before a
// Reset.
func (j *Journal) Append(last uint64, data []byte) error {
	if len(data) > j.Largest() {
		return fmt.Errorf("a record of %d bytes; at most %d fit", len(data), j.Largest())
	}
	n := sectorsOf(len(data))
	to, number, err := j.place(n)
	if err != nil {
		return err
	}
	// Whole blocks, or the kernel would have to read what it no longer has in its
	// cache. What stands in the first already is written again as it is.
	from := to.end / blockSectors * blockSectors
	j.begun = j.begun[:(to.end-from)*sectorSize]
	j.buffer = encodeRecord(append(j.buffer[:0], j.begun...), to.generation, number, data)
	kept := len(j.buffer) % (blockSectors * sectorSize)
	j.begun = append(j.begun[:0], j.buffer[len(j.buffer)-kept:]...)
	if kept > 0 {
		j.buffer = appendBlank(j.buffer, blockSectors-kept/sectorSize)
	}
	_, err = to.file.WriteAt(j.buffer, int64(from)*sectorSize)
	if err == nil {
		err = to.file.Sync()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.broken = err
		return fmt.Errorf("write the journal: %w", err)
	}
	j.number = number
	j.files[j.active].end += n
	j.files[j.active].last = last
	return nil
}

// place finds room for a record, in the other file if need be.
func (j *Journal) place(sectors int) (to segment, number uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.broken != nil:
		return to, 0, fmt.Errorf("the journal takes nothing: %w", j.broken)
	case j.files[j.active].end+sectors <= j.sectors:
	case !j.spare:
		return to, 0, ErrFull
	default:
		j.active, j.spare = 1-j.active, false
	}
	return j.files[j.active], j.number + 1, nil
}

// Release says that everything up to safe is safe elsewhere. When that is all
// that the file has that is not written to, it blocks until that can be used
// again, while Append may go on.
func (j *Journal) Release(safe uint64) error {
	j.mu.Lock()
	other := 1 - j.active
	needed, live := j.broken != nil || j.spare || j.files[other].last > safe, j.files[j.active].generation
	j.mu.Unlock()
	if needed {
		return nil
	}
	return j.begin(other, live)
}

// begin makes a file ready to be written to. The records that count are then
// those from the generation live on; 0: those that will be in this file.
func (j *Journal) begin(i int, live uint32) error {
	j.mu.Lock()
	j.newest++
	h, file := head{j.newest, live}, j.files[i].file
	j.mu.Unlock()
	if h.live == 0 {
		h.live = h.generation
	}
	_, err := file.WriteAt(appendBlank(h.encode(), blockSectors-1), 0)
	if err == nil {
		err = file.Sync()
	}
	if err != nil {
		return fmt.Errorf("begin a file of the journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.files[i] = segment{file: file, generation: h.generation, end: firstSector}
	j.spare = i != j.active
	return nil
}

// Reset says that everything is safe elsewhere, and blocks until the disk knows
// it. Neither Append nor Release may run.
func (j *Journal) Reset() error {
	j.mu.Lock()
	j.broken = errNotReset
	next := 1 - j.active
	j.mu.Unlock()
	if err := j.begin(next, 0); err != nil {
		return err
	}
	j.mu.Lock()
	j.active, j.spare, j.number = next, false, 0
	live := j.files[next].generation
	j.mu.Unlock()
	if err := j.begin(1-next, live); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.broken = nil
	return nil
}

var errNotReset = errors.New("it was not reset")

// Close closes the files.
func (j *Journal) Close() error {
	var err error
	for _, s := range j.files {
		if s.file != nil {
			err = errors.Join(err, s.file.Close())
		}
	}
	return err
}
