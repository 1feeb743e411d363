package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

const testSectors = 32

// disk is a file that forgets, at a power cut, any of the sectors that were
// written since the last sync.
type disk struct {
	durable []byte
	waiting map[int][]byte // by sector
	fail    error          // of the next Sync, after which all is as before it
}

func newDisk(i int) *disk {
	content := appendBlank(head{generation: uint32(i + 1), live: 1}.encode(), testSectors-1)
	return &disk{durable: content, waiting: map[int][]byte{}}
}

func (d *disk) WriteAt(b []byte, at int64) (int, error) {
	if at%sectorSize != 0 || len(b)%sectorSize != 0 || int(at)+len(b) > len(d.durable) {
		return 0, fmt.Errorf("%d bytes at %d", len(b), at)
	}
	for i := 0; i < len(b); i += sectorSize {
		d.waiting[(int(at)+i)/sectorSize] = bytes.Clone(b[i : i+sectorSize])
	}
	return len(b), nil
}

func (d *disk) Sync() error {
	if err := d.fail; err != nil {
		d.fail = nil
		return err
	}
	for sector, content := range d.waiting {
		copy(d.durable[sector*sectorSize:], content)
	}
	clear(d.waiting)
	return nil
}

func (d *disk) Close() error { return nil }

// cut gives what a power cut now could leave.
func (d *disk) cut(r *rand.Rand) []byte {
	left := bytes.Clone(d.durable)
	for sector := range testSectors {
		if content, ok := d.waiting[sector]; ok && r.IntN(2) == 0 {
			copy(left[sector*sectorSize:], content)
		}
	}
	return left
}

var errTest = errors.New("the disk errs")

// newTestJournal takes up what two disks have.
func newTestJournal(t *testing.T, disks [2]*disk) *Journal {
	t.Helper()
	heads, _, err := decode([2][]byte{disks[0].durable, disks[1].durable})
	if err != nil {
		t.Fatal(err)
	}
	j := &Journal{broken: errNotReset, newest: max(heads[0].generation, heads[1].generation), sectors: testSectors}
	for i, d := range disks {
		j.files[i].file = d
	}
	if err := j.Reset(); err != nil {
		t.Fatal(err)
	}
	return j
}

// cutting calls before each sync, so that a power cut can fall between a write
// and its sync.
type cutting struct {
	*disk
	before func()
}

func (c cutting) Sync() error {
	c.before()
	return c.disk.Sync()
}

// play appends, releases, resets and fails at random, and calls check with every
// state that a power cut could leave, with what must be there, oldest first, and
// what may follow.
func play(t *testing.T, seed uint64, check func(files [2][]byte, safe uint64, acked, underway [][]byte)) {
	r := rand.New(rand.NewPCG(seed, 7))
	disks := [2]*disk{newDisk(0), newDisk(1)}
	j := newTestJournal(t, disks)
	var all [][]byte // acknowledged; record n goes up to n+1
	var safe uint64
	var underway []byte
	look := func() {
		maybe := [][]byte{}
		if underway != nil {
			maybe = append(maybe, underway)
		}
		check([2][]byte{disks[0].cut(r), disks[1].cut(r)}, safe, all, maybe)
	}
	for i := range j.files {
		j.files[i].file = cutting{disks[i], look}
	}
	for n := range 60 {
		switch r.IntN(12) {
		case 0:
			safe = uint64(len(all))
			for {
				err := j.Reset()
				if err == nil {
					break
				}
				if !errors.Is(err, errTest) {
					t.Fatal(err)
				}
			}
		case 1, 2, 3:
			safe = max(safe, uint64(r.IntN(len(all)+1)))
			if err := j.Release(safe); err != nil && !errors.Is(err, errTest) {
				t.Fatal(err)
			}
		case 4:
			disks[r.IntN(2)].fail = errTest
		}
		underway = bytes.Repeat([]byte{byte(n + 1)}, r.IntN(4*room))
		err := j.Append(uint64(len(all)+1), underway)
		switch {
		case err == nil:
			all, underway = append(all, underway), nil
		case errors.Is(err, ErrFull):
			underway = nil
		default: // it may be there until the reset
			look()
			safe = uint64(len(all))
			for _, d := range disks {
				d.fail = nil
			}
			if err := j.Reset(); err != nil {
				t.Fatal(err)
			}
			underway = nil
		}
		look()
	}
}

// Whatever sectors a power cut loses of what was not synced: each record that was
// acknowledged and is not safe elsewhere is there, in order, and at most the one
// that was under way follows.
func TestPowerCutLeavesEveryAcknowledgedRecord(t *testing.T) {
	looks := 0
	for seed := range uint64(60) {
		play(t, seed, func(files [2][]byte, safe uint64, acked, underway [][]byte) {
			looks++
			_, got, err := decode(files)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			// What is safe may be there still, whole records of it.
			for from := range safe + 1 {
				for more := range len(underway) + 1 {
					want := append(acked[from:len(acked):len(acked)], underway[:more]...)
					if equal(got, want) {
						return
					}
				}
			}
			t.Fatalf("seed %d: %d records are left; %d were acknowledged, %d are safe elsewhere, %d under way", seed, len(got), len(acked), safe, len(underway))
		})
	}
	if looks < 3000 {
		t.Errorf("only %d power cuts", looks)
	}
}

func equal(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// A bit that flips, a sector that is zeroed and a file that is cut are found, or
// are where nothing is kept.
func TestDamageIsFoundOrChangesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	found, harmless := 0, 0
	for seed := range uint64(20) {
		looks := 0
		play(t, seed, func(files [2][]byte, _ uint64, _, underway [][]byte) {
			if looks++; looks%5 != 0 || len(underway) > 0 {
				return // what is under way may be lost
			}
			_, want, err := decode(files)
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				bad := [2][]byte{bytes.Clone(files[0]), bytes.Clone(files[1])}
				i := r.IntN(2)
				at := r.IntN(len(bad[i]))
				what := fmt.Sprintf("bit flipped in byte %d of file %d", at, i)
				switch r.IntN(8) {
				case 0:
					at &^= sectorSize - 1
					clear(bad[i][at : at+sectorSize])
					what = fmt.Sprintf("sector at %d of file %d zeroed", at, i)
				case 1:
					bad[i] = bad[i][:at]
					what = fmt.Sprintf("file %d cut at %d", i, at)
				default:
					bad[i][at] ^= 1 << r.IntN(8)
				}
				_, got, err := decode(bad)
				switch {
				case errors.Is(err, ErrDamaged):
					found++
				case err != nil:
					t.Fatalf("seed %d: %s: %v, which does not say that it is damaged", seed, what, err)
				case !equal(got, want):
					t.Fatalf("seed %d: %s went unnoticed: %d records instead of %d", seed, what, len(got), len(want))
				default:
					harmless++
				}
			}
		})
	}
	if found < 1000 {
		t.Errorf("only %d damages were found", found)
	}
	t.Logf("%d found, %d harmless", found, harmless)
}

func TestNothingIsAppendedAfterAFailureBeforeAReset(t *testing.T) {
	disks := [2]*disk{newDisk(0), newDisk(1)}
	j := newTestJournal(t, disks)
	disks[0].fail, disks[1].fail = errors.New("it fails"), errors.New("it fails")
	if err := j.Append(1, []byte("a")); err == nil {
		t.Fatal("acknowledged, and not on the disk")
	}
	if err := j.Append(2, []byte("b")); err == nil || j.Broken() == nil || j.Empty() {
		t.Fatalf("appended behind what may be there in part: %v", err)
	}
	disks[0].fail, disks[1].fail = nil, nil
	if err := j.Reset(); err != nil || !j.Empty() {
		t.Fatal(err)
	}
	if err := j.Append(3, []byte("c")); err != nil {
		t.Fatal(err)
	}
	if _, got, err := decode([2][]byte{disks[0].durable, disks[1].durable}); err != nil || len(got) != 1 || string(got[0]) != "c" {
		t.Errorf("%q, %v", got, err)
	}
}

// A write that the disk said it had done and never did leaves what was there
// before: like one that was never acknowledged, but that others follow it.
func TestLostWriteBeforeOthersIsDamage(t *testing.T) {
	disks := [2]*disk{newDisk(0), newDisk(1)}
	j := newTestJournal(t, disks)
	for n := range uint64(3) {
		if err := j.Append(n+1, make([]byte, room)); err != nil { // two sectors each
			t.Fatal(err)
		}
	}
	for sector := firstSector; sector < firstSector+4; sector++ {
		files := [2][]byte{bytes.Clone(disks[0].durable), bytes.Clone(disks[1].durable)}
		copy(files[j.active][sector*sectorSize:], appendBlank(nil, 1))
		if _, got, err := decode(files); !errors.Is(err, ErrDamaged) {
			t.Errorf("sector %d: %d records, %v", sector, len(got), err)
		}
	}
}

// A file is not written to again before what it has is safe.
func TestFullJournalWaitsForARelease(t *testing.T) {
	disks := [2]*disk{newDisk(0), newDisk(1)}
	j := newTestJournal(t, disks)
	n := uint64(0)
	for {
		err := j.Append(n+1, make([]byte, room))
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if want := uint64(2 * ((testSectors - firstSector) / 2)); n != want {
		t.Fatalf("full after %d records, want %d", n, want)
	}
	if err := errors.Join(j.Release(n/2-1), j.Append(n+1, nil)); err != nil && !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if err := j.Release(n / 2); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(n+1, make([]byte, room)); err != nil {
		t.Errorf("after half of it is safe: %v", err)
	}
	if err := j.Append(n+2, make([]byte, j.Largest()+1)); err == nil || errors.Is(err, ErrFull) {
		t.Errorf("a record that never fits: %v", err)
	}
}

func TestFilesAreTakenUp(t *testing.T) {
	dir := t.TempDir()
	paths := [2]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	if _, _, err := Open(paths); !errors.Is(err, ErrDamaged) {
		t.Errorf("files that are gone: %v", err)
	}
	if err := Create(paths, 64<<10); err != nil {
		t.Fatal(err)
	}
	var want []string
	for round := range 3 {
		j, got, err := Open(paths)
		if err != nil || fmt.Sprintf("%s", got) != fmt.Sprintf("%s", want) {
			t.Fatalf("round %d: %q, %v; want %q", round, got, err, want)
		}
		if err := j.Append(1, nil); err == nil {
			t.Fatal("appended before a reset")
		}
		if err := j.Reset(); err != nil {
			t.Fatal(err)
		}
		want = nil
		for i := range 150 { // of 120 sectors in a file: it turns
			want = append(want, fmt.Sprint(round, i))
			if err := j.Append(uint64(i+1), []byte(want[i])); err != nil {
				t.Fatal(err)
			}
		}
		if read, err := Read(paths); err != nil || fmt.Sprintf("%s", read) != fmt.Sprintf("%s", want) {
			t.Fatalf("round %d: %q, %v", round, read, err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(paths[1], 32<<10); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(paths); !errors.Is(err, ErrDamaged) {
		t.Errorf("a file that was cut: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	var t testing.T
	looks := 0
	play(&t, 5, func(files [2][]byte, _ uint64, _, _ [][]byte) {
		if looks++; looks%20 == 0 {
			f.Add(files[0], files[1], uint32(r.Uint32()), byte(looks))
		}
	})
	f.Add(head{1, 1}.encode(), head{2, 1}.encode(), uint32(0), byte(0))
	f.Fuzz(func(t *testing.T, a, b []byte, at uint32, with byte) {
		if len(a) > 0 {
			a = bytes.Clone(a)
			a[int(at)%len(a)] ^= with
		}
		_, all, err := decode([2][]byte{a, b})
		size := 0
		for _, one := range all {
			size += len(one)
		}
		if err != nil && len(all) > 0 || size > len(a)+len(b) {
			t.Errorf("%d bytes of records from %d, %v", size, len(a)+len(b), err)
		}
	})
}

// What a record looks like is what disks have; and to make one allocates no more
// than the checksums do, however long it is.
func TestEncodedRecordIsTheSameAsEver(t *testing.T) {
	for _, length := range []int{0, 1, room - recordHead - 1, room - recordHead, room - recordHead + 1, 2*room - recordHead, 5000} {
		data := bytes.Repeat([]byte{7, 0, 9}, length)[:length]
		dirty := bytes.Repeat([]byte{0xff}, 3+len(data)*2+2*sectorSize)[:3]
		got := encodeRecord(dirty, 5, 77, data)
		want := plainRecord(dirty[:3:3], 5, 77, data)
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes: the record is another", length)
		}
	}
	buffer, data := make([]byte, 0, 64<<10), make([]byte, 32<<10)
	if n := testing.AllocsPerRun(100, func() { buffer = encodeRecord(buffer[:0], 1, 2, data) }); n > 4 {
		t.Errorf("%v allocations", n)
	}
}

// plainRecord is encodeRecord as its format reads: the text, then its checksum,
// then a tag before each part.
func plainRecord(to []byte, generation uint32, number uint64, data []byte) []byte {
	text := make([]byte, sectorsOf(len(data))*room)
	binary.LittleEndian.PutUint32(text, uint32(len(data)))
	binary.LittleEndian.PutUint64(text[8:], number)
	copy(text[recordHead:], data)
	binary.LittleEndian.PutUint32(text[4:], recordSum(generation, number, text[recordHead:])^uint32(len(data)))
	for at := 0; at < len(text); at += room {
		var tag [tagSize]byte
		putTag(tag[:], generation)
		to = append(append(to, tag[:]...), text[at:at+room]...)
	}
	return to
}
