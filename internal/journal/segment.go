package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

// The format. A file is a row of sectors of 512 bytes, the least that a disk
// writes whole. Each begins with a tag of 8 bytes: the generation in which it was
// written (4 bytes) and a checksum of that. The first sector is the file's head:
// its own generation is that of the records that count. They begin with the
// second block of 4096 bytes, since blocks are what a file system writes. A record
// begins on a sector of its own, with its length, a checksum and its number, and
// goes on as long as it has to. All numbers are little-endian.
//
// So the end of the records is told from a damage: a sector that was never
// written has the tag of an earlier generation, and one that flipped a bit or
// was lost has none.
const (
	sectorSize = 512
	tagSize    = 8
	room       = sectorSize - tagSize
	recordHead = 16 // length (4), checksum (4), number (8)

	blockSectors = 8
	firstSector  = blockSectors // of the records

	headMagic   = "holdfast journal"
	headVersion = 1
	headUsed    = len(headMagic) + 8 // magic, version, live
)

// ErrDamaged: the disk gave back something else than was written.
var ErrDamaged = errors.New("the journal is damaged")

func damage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func tagSum(generation uint32) uint32 {
	b := append(make([]byte, 0, len(headMagic)+4), headMagic...)
	return crc32.Checksum(binary.LittleEndian.AppendUint32(b, generation), castagnoli())
}

func putTag(sector []byte, generation uint32) {
	binary.LittleEndian.PutUint32(sector, generation)
	binary.LittleEndian.PutUint32(sector[4:], tagSum(generation))
}

// generationOf reads a tag.
func generationOf(sector []byte) (uint32, bool) {
	generation := binary.LittleEndian.Uint32(sector)
	return generation, binary.LittleEndian.Uint32(sector[4:]) == tagSum(generation)
}

// head is the first sector of a file.
type head struct {
	generation uint32
	// live is the first generation that counts, in either file, when this head is
	// the newer one.
	live uint32
}

func (h head) encode() []byte {
	b := make([]byte, sectorSize)
	putTag(b, h.generation)
	copy(b[tagSize:], headMagic)
	binary.LittleEndian.PutUint32(b[tagSize+len(headMagic):], headVersion)
	binary.LittleEndian.PutUint32(b[tagSize+len(headMagic)+4:], h.live)
	binary.LittleEndian.PutUint32(b[sectorSize-4:], crc32.Checksum(b[:sectorSize-4], castagnoli()))
	return b
}

func decodeHead(b []byte) (head, error) {
	generation, ok := generationOf(b)
	switch {
	case !ok || binary.LittleEndian.Uint32(b[sectorSize-4:]) != crc32.Checksum(b[:sectorSize-4], castagnoli()):
		return head{}, damage("the head's checksum is another")
	case string(b[tagSize:tagSize+len(headMagic)]) != headMagic:
		return head{}, damage("it is none")
	}
	if v := binary.LittleEndian.Uint32(b[tagSize+len(headMagic):]); v != headVersion {
		return head{}, fmt.Errorf("its version is %d, and this program reads %d: install the version that wrote it", v, headVersion)
	}
	return head{generation, binary.LittleEndian.Uint32(b[tagSize+len(headMagic)+4:])}, nil
}

// appendBlank appends sectors that hold nothing.
func appendBlank(to []byte, sectors int) []byte {
	var blank [sectorSize]byte
	putTag(blank[:], 0)
	for range sectors {
		to = append(to, blank[:]...)
	}
	return to
}

// sectorsOf is how many sectors a record of so many bytes takes.
func sectorsOf(length int) int { return (recordHead + length + room - 1) / room }

func recordSum(generation uint32, number uint64, text []byte) uint32 {
	return crc32.Update(recordSumBegun(generation, number), castagnoli(), text)
}

// recordSumBegun is the checksum of what goes before a record's text.
func recordSumBegun(generation uint32, number uint64) uint32 {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 12), generation)
	return crc32.Checksum(binary.LittleEndian.AppendUint64(b, number), castagnoli())
}

// encodeRecord appends a record as it stands on the disk.
func encodeRecord(to []byte, generation uint32, number uint64, data []byte) []byte {
	begun, length := len(to), len(data)
	to = slices.Grow(to, sectorsOf(length)*sectorSize)[:begun+sectorsOf(length)*sectorSize]
	sum := recordSumBegun(generation, number)
	putTag(to[begun:], generation)
	for at := begun; at < len(to); at += sectorSize {
		sector := to[at : at+sectorSize]
		copy(sector, to[begun:begun+tagSize])
		text := sector[tagSize:]
		if at == begun {
			text = text[recordHead:]
		}
		n := copy(text, data)
		data = data[n:]
		clear(text[n:])
		sum = crc32.Update(sum, castagnoli(), text)
	}
	head := to[begun+tagSize:]
	binary.LittleEndian.PutUint32(head, uint32(length))
	binary.LittleEndian.PutUint32(head[4:], sum^uint32(length))
	binary.LittleEndian.PutUint64(head[8:], number)
	return to
}

// errTorn: a sector of the record was never written, so nobody was told that the
// record is there.
var errTorn = errors.New("written in part")

// decodeRecord reads the record that begins with a sector of the generation.
func decodeRecord(file []byte, sector int, generation uint32) (number uint64, data []byte, sectors int, err error) {
	first := file[sector*sectorSize:]
	length := int64(binary.LittleEndian.Uint32(first[tagSize:]))
	sum := binary.LittleEndian.Uint32(first[tagSize+4:])
	number = binary.LittleEndian.Uint64(first[tagSize+8:])
	if length > int64(len(first)) || sectorsOf(int(length)) > len(first)/sectorSize {
		return 0, nil, 0, damage("sector %d: a record of %d bytes", sector, length)
	}
	sectors = sectorsOf(int(length))
	text := make([]byte, 0, sectors*room)
	for i := range sectors {
		one := first[i*sectorSize : (i+1)*sectorSize]
		if g, ok := generationOf(one); !ok {
			return 0, nil, 0, damage("sector %d: its tag is none", sector+i)
		} else if g != generation {
			return 0, nil, 0, tornOrLonger(sector, generation, number, sum, text)
		}
		text = append(text, one[tagSize:]...)
	}
	if got := recordSum(generation, number, text[recordHead:]) ^ uint32(length); got != sum {
		return 0, nil, 0, damage("sector %d: the checksum of record %d is %08x and was %08x", sector, number, got, sum)
	}
	return number, text[recordHead : recordHead+length], sectors, nil
}

// records are what a file holds of its own generation.
type records struct {
	data  [][]byte
	first uint64 // number of the first; 0: there is none
	torn  bool   // another was written in part
}

func (r records) last() uint64 { return r.first + uint64(len(r.data)) - 1 }

// readRecords reads a file's records. Each was on the disk before the next was
// written, so only the last can be there in part.
func readRecords(file []byte, generation uint32) (r records, err error) {
	count := len(file) / sectorSize
	of := func(sector int) []byte { return file[sector*sectorSize : (sector+1)*sectorSize] }
	for i := 1; i < count; i++ {
		if g, ok := generationOf(of(i)); !ok || g > generation {
			return r, damage("sector %d: its tag is none", i)
		}
	}
	at := firstSector
	for at < count {
		if g, _ := generationOf(of(at)); g != generation {
			break
		}
		number, data, sectors, err := decodeRecord(file, at, generation)
		if errors.Is(err, errTorn) {
			break
		}
		if err != nil {
			return r, err
		}
		if r.first == 0 {
			r.first = number
		}
		if number == 0 || number != r.first+uint64(len(r.data)) {
			return r, damage("sector %d: record %d, after record %d", at, number, r.last())
		}
		r.data = append(r.data, data)
		at += sectors
	}
	for i := at; i < count; i++ { // behind the end
		if g, _ := generationOf(of(i)); g != generation {
			continue
		}
		r.torn = true
		if number, _, _, err := decodeRecord(file, i, generation); err == nil {
			return r, damage("sector %d: record %d is there, and what was written before it, at sector %d, is not", i, number, at)
		}
	}
	return r, nil
}
