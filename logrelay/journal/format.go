package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
)

// A segment is a header and blocks. A block is what one fdatasync made
// durable; the next is written after that only, so what is torn is the last.
//
//	segment: magic[8] first[8] salt[8] crc[4] unused[4]
//	block:   magic[4] crc[4] length[4] count[4] first[8] payload[length]
//	record:  length(uvarint) time[8] input[1] address length[1] address data
//
// unused is how many numbers in front of first no record has. Lines are counted by
// it, for people, and nothing else: the checksum does not cover it, as in segments
// of before, where it is 0.
//
// Numbers are little-endian. A block's checksum (CRC-32C) begins with the
// segment's random salt: who sends lines can't put a block into one of them.
const (
	segmentMagic  = "HOLDLOG1"
	segmentHeader = 32
	blockHeader   = 24
	// MaxBlock is the greatest payload of a block in bytes.
	MaxBlock = 16 << 20
	// MaxData is the greatest line in bytes.
	MaxData = 4 << 20
)

var blockMagic = [4]byte{0xB1, 'H', 'L', 0x0A}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Record is one line as it came in.
type Record struct {
	Time   int64      // when it was received, in nanoseconds since 1970
	Source netip.Addr // who sent it; not valid: this node itself
	Input  uint8      // by which way; the caller's to number
	Data   []byte
}

// appendRecord encodes r behind dst.
func appendRecord(dst []byte, r Record) []byte {
	var raw [16]byte
	address := raw[:0]
	if source := r.Source.Unmap(); source.Is4() {
		four := source.As4()
		address = append(address, four[:]...)
	} else if source.IsValid() {
		raw = source.As16()
		address = raw[:]
	}
	dst = binary.AppendUvarint(dst, uint64(10+len(address)+len(r.Data)))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.Time))
	dst = append(dst, r.Input, byte(len(address)))
	dst = append(dst, address...)
	return append(dst, r.Data...)
}

var errRecord = errors.New("a record that is none")

// nextRecord decodes the first record of payload and returns what follows it.
// The record's data is part of payload.
func nextRecord(payload []byte) (r Record, rest []byte, err error) {
	length, n := binary.Uvarint(payload)
	if n <= 0 || length < 10 || length > uint64(len(payload)-n) {
		return Record{}, nil, errRecord
	}
	body, rest := payload[n:n+int(length)], payload[n+int(length):]
	r.Time, r.Input = int64(binary.LittleEndian.Uint64(body)), body[8]
	size := int(body[9])
	body = body[10:]
	if size > len(body) {
		return Record{}, nil, errRecord
	}
	switch size {
	case 0:
	case 4, 16:
		r.Source, _ = netip.AddrFromSlice(body[:size])
	default:
		return Record{}, nil, errRecord
	}
	r.Data = body[size:]
	return r, rest, nil
}

// segment is what the header of a segment says.
type segment struct {
	first  uint64 // number of its first record
	salt   uint64
	unused uint32 // numbers in front of first that no record has
}

func (s segment) header() []byte {
	h := make([]byte, 0, segmentHeader)
	h = append(h, segmentMagic...)
	h = binary.LittleEndian.AppendUint64(h, s.first)
	h = binary.LittleEndian.AppendUint64(h, s.salt)
	h = binary.LittleEndian.AppendUint32(h, crc32.Checksum(h, castagnoli))
	return binary.LittleEndian.AppendUint32(h, s.unused)
}

func parseSegment(h []byte) (segment, error) {
	if len(h) < segmentHeader || string(h[:8]) != segmentMagic {
		return segment{}, errors.New("no segment of a journal")
	}
	if crc32.Checksum(h[:24], castagnoli) != binary.LittleEndian.Uint32(h[24:]) {
		return segment{}, errors.New("the segment's header is damaged")
	}
	return segment{
		first: binary.LittleEndian.Uint64(h[8:]), salt: binary.LittleEndian.Uint64(h[16:]),
		unused: binary.LittleEndian.Uint32(h[28:]),
	}, nil
}

// seal fills the header of a block whose payload follows it in b.
func (s segment) seal(b []byte, first uint64, count int) {
	copy(b, blockMagic[:])
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-blockHeader))
	binary.LittleEndian.PutUint32(b[12:], uint32(count))
	binary.LittleEndian.PutUint64(b[16:], first)
	binary.LittleEndian.PutUint32(b[4:], s.sum(b))
}

// sum is the checksum of a block.
func (s segment) sum(b []byte) uint32 {
	var salt [8]byte
	binary.LittleEndian.PutUint64(salt[:], s.salt)
	return crc32.Update(crc32.Checksum(salt[:], castagnoli), castagnoli, b[8:])
}

// block is what the header of a block says.
type block struct {
	first  uint64
	count  int
	length int // of the payload
}

func (b block) end() uint64 { return b.first + uint64(b.count) }
func (b block) size() int64 { return blockHeader + int64(b.length) }

var errBlock = errors.New("no block")

// parseBlock reads a header, whose checksum can't be looked at without the payload.
func parseBlock(h []byte) (block, error) {
	if !bytes.Equal(h[:4], blockMagic[:]) {
		return block{}, errBlock
	}
	b := block{first: binary.LittleEndian.Uint64(h[16:])}
	length, count := binary.LittleEndian.Uint32(h[8:]), binary.LittleEndian.Uint32(h[12:])
	// A record has 11 bytes at least.
	if length > MaxBlock || count == 0 || uint64(count)*11 > uint64(length) || b.first+uint64(count) < b.first {
		return block{}, errBlock
	}
	b.length, b.count = int(length), int(count)
	return b, nil
}

// readBlock reads the block at an offset of a segment into buf, which grows as
// it must, and returns it whole: header and payload. errBlock means that there
// is none, or a damaged one.
func (s segment) readBlock(file io.ReaderAt, at int64, buf []byte) (block, []byte, error) {
	if cap(buf) < blockHeader {
		buf = make([]byte, blockHeader, 64<<10)
	}
	buf = buf[:blockHeader]
	if _, err := file.ReadAt(buf, at); err != nil {
		return block{}, buf, unlessEOF(err)
	}
	b, err := parseBlock(buf)
	if err != nil {
		return block{}, buf, err
	}
	if int64(cap(buf)) < b.size() {
		buf = append(make([]byte, 0, b.size()), buf...)
	}
	buf = buf[:b.size()]
	if _, err := file.ReadAt(buf[blockHeader:], at+blockHeader); err != nil {
		return block{}, buf, unlessEOF(err)
	}
	if s.sum(buf) != binary.LittleEndian.Uint32(buf[4:]) {
		return block{}, buf, errBlock
	}
	return b, buf, nil
}

// unlessEOF makes the end of the file "no block", and leaves errors of the disk.
func unlessEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errBlock
	}
	return fmt.Errorf("journal: read: %w", err)
}

// resync looks for the next sound block behind a damaged one, from offset at
// on, with records not before first. bad: some of what was looked at could not be
// read.
func (s segment) resync(file io.ReaderAt, at, size int64, first uint64) (offset int64, found, bad bool, err error) {
	const step = 1 << 20
	window := make([]byte, min(step, max(0, size-at))+int64(len(blockMagic))-1)
	var buf []byte
	for ; at < size; at += step {
		n, holes, err := readAround(file, window, at)
		if err != nil {
			return 0, false, bad, err
		}
		bad = bad || holes
		for from := 0; ; {
			i := bytes.Index(window[from:n], blockMagic[:])
			if i < 0 || from+i >= step {
				break
			}
			offset := at + int64(from+i)
			b, whole, err := s.readBlock(file, offset, buf)
			buf = whole
			if err == nil && b.first >= first {
				return offset, true, bad, nil
			}
			bad = bad || unreadable(err)
			if err != nil && !errors.Is(err, errBlock) && !unreadable(err) {
				return 0, false, bad, err
			}
			from += i + 1
		}
	}
	return 0, false, bad, nil
}

// readAround is ReadAt that has zeros where the disk refuses to read, in steps
// of a page. The end of the file is no error.
func readAround(file io.ReaderAt, b []byte, at int64) (n int, holes bool, err error) {
	n, err = file.ReadAt(b, at)
	if err == nil || errors.Is(err, io.EOF) {
		return n, false, nil
	}
	const page = 4096
	for n = 0; n < len(b) && unreadable(err); {
		// To the next boundary: of a page in which one byte is bad, all are.
		part := b[n:min(len(b), n+page-int((at+int64(n))%page))]
		got, failed := file.ReadAt(part, at+int64(n))
		switch {
		case errors.Is(failed, io.EOF):
			return n + got, true, nil
		case unreadable(failed):
			clear(part)
		case failed != nil:
			err = failed
			continue
		}
		n += len(part)
	}
	if !unreadable(err) {
		return n, true, fmt.Errorf("journal: read: %w", err)
	}
	return n, true, nil
}

// extent is what a segment holds.
type extent struct {
	end        int64      // offset behind the last sound block
	next       uint64     // number behind its last record
	gaps       [][2]int64 // passed over between sound blocks: from, to
	unreadable bool       // some of what follows the end can't be read
	refused    bool       // that, or some of what is in the gaps
}

// scan finds where the sound blocks of a segment end. What follows the end was
// never acknowledged: it is what a crash left of the last write; but if the disk
// can't read it, nobody knows.
func (s segment) scan(file io.ReaderAt, size int64) (extent, error) {
	e := extent{end: segmentHeader, next: s.first}
	var buf []byte
	for {
		b, whole, err := s.readBlock(file, e.end, buf)
		buf = whole
		if err == nil && b.first >= e.next {
			e.end, e.next = e.end+b.size(), b.end()
			continue
		}
		refused := unreadable(err)
		if err != nil && !errors.Is(err, errBlock) && !refused {
			return e, err
		}
		offset, found, bad, err := s.resync(file, e.end, size, e.next)
		e.refused = e.refused || refused || bad
		if err != nil || !found {
			e.unreadable = refused || bad
			return e, err
		}
		e.gaps = append(e.gaps, [2]int64{e.end, offset})
		e.end = offset
	}
}
