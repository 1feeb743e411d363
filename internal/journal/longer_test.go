package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// The length of the last record leads, when a bit of it flips, into sectors that
// were never written in this generation, as in a record that was written in part.
// It was acknowledged, and must not be left out.
func TestFlippedLengthOfTheLastRecordIsFound(t *testing.T) {
	for _, length := range []int{0, 1, 300, 3 * room, 5000} {
		disks := [2]*disk{newDisk(0), newDisk(1)}
		j := newTestJournal(t, disks)
		data := make([]byte, length)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		if err := errors.Join(j.Append(1, []byte("first")), j.Append(2, data)); err != nil {
			t.Fatal(err)
		}
		active, other := disks[j.active].durable, disks[1-j.active].durable
		at := (j.files[j.active].end-sectorsOf(length))*sectorSize + tagSize
		for bit := range 32 {
			bad := bytes.Clone(active)
			bad[at+bit/8] ^= 1 << (bit % 8)
			files := [2][]byte{bad, other}
			if j.active == 1 {
				files = [2][]byte{other, bad}
			}
			if _, all, err := decode(files); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d bytes, bit %d of the length: %d records, %v", length, bit, len(all), err)
			}
		}
	}
}

// What was written in part is no damage, whatever it holds.
func TestRecordWrittenInPartIsLeftOut(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 9))
	for range 200 {
		disks := [2]*disk{newDisk(0), newDisk(1)}
		j := newTestJournal(t, disks)
		data := make([]byte, room*(2+r.IntN(6)))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		before := bytes.Clone(disks[j.active].durable)
		if err := j.Append(1, data); err != nil {
			t.Fatal(err)
		}
		// Of its sectors the first few got to the disk.
		kept := (firstSector + 1 + r.IntN(sectorsOf(len(data))-1)) * sectorSize
		torn := append(bytes.Clone(disks[j.active].durable[:kept]), before[kept:]...)
		files := [2][]byte{torn, disks[1-j.active].durable}
		if j.active == 1 {
			files = [2][]byte{disks[1-j.active].durable, torn}
		}
		if _, all, err := decode(files); err != nil || len(all) != 0 {
			t.Fatalf("%d of %d sectors: %d records, %v", kept/sectorSize-firstSector, sectorsOf(len(data)), len(all), err)
		}
	}
}
