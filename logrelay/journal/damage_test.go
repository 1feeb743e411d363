package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDamageBeforeTheNumberWantedCostsNoSoundLine: a replay begins amid a
// segment, and amid a block of it. A reader that looks behind damage for the
// number it wants, and not for the next sound block, counts all before that as
// lost, and leaves out the block that the number is in.
func TestDamageBeforeTheNumberWantedCostsNoSoundLine(t *testing.T) {
	for broken := range 2 { // the block that is damaged; the number wanted is in the third
		dir := t.TempDir()
		j, _ := open(t, Config{Dir: dir})
		for i := 0; i < 12; i += 3 {
			if err := put(t, j, fmt.Sprint(i), fmt.Sprint(i+1), fmt.Sprint(i+2)); err != nil {
				t.Fatal(err)
			}
		}
		size := damageBlock(t, segmentsOf(t, dir)[0], broken)
		if got := strings.Join(all(t, j, 7), " "); got != "7 8 9 10 11" {
			t.Errorf("block %d is damaged: from 7 on there is: %s", broken, got)
		}
		if j.Damaged() != size {
			t.Errorf("block %d is damaged: %d bytes count as lost, want its %d", broken, j.Damaged(), size)
		}
	}
}

// damageBlock flips a bit of the last byte of a segment's block, and returns how
// many bytes that has.
func damageBlock(t *testing.T, path string, number int) (size int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := segmentHeader
	for range number + 1 {
		at += int(size)
		size = blockHeader + int64(binary.LittleEndian.Uint32(b[at+8:]))
	}
	b[at+int(size)-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return size
}

// TestAnOldSegmentThatIsLostMovesNoNumber: the younger ones begin behind all
// that it had. A journal that counts on from what it had room for leaves a gap
// as long as the segment, which others take for lines that are lost.
func TestAnOldSegmentThatIsLostMovesNoNumber(t *testing.T) {
	dir := filled(t)
	if err := os.WriteFile(segmentsOf(t, dir)[2], make([]byte, 1000*leastRecord), 0o600); err != nil {
		t.Fatal(err)
	}
	j, _ := open(t, Config{Dir: dir})
	if err := put(t, j, "line 5"); err != nil {
		t.Fatal(err)
	}
	if j.End() != 6 {
		t.Errorf("the line has number %d, want 5", j.End()-1)
	}
	if j.Damaged() == 0 {
		t.Error("nothing is said of it")
	}
}

// TestADiskThatWasWellAgainIsGivenItsTimeOnceMore: a journal that remembers an
// old refusal passes lines over at the first error of years later.
func TestADiskThatWasWellAgainIsGivenItsTimeOnceMore(t *testing.T) {
	dir := filled(t)
	j, _ := open(t, Config{Dir: dir})
	path := segmentsOf(t, dir)[1]
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func() (Block, error) {
		r := j.Reader(1)
		defer r.Close()
		b, _, err := r.TryNext()
		return b, err
	}
	breakFile(t, path)
	if _, err := read(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("%v: not the disk's error", err)
	}
	for where := range j.damage.refused { // that was long ago
		j.damage.refused[where] = time.Now().Add(-time.Hour)
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, sound, 0o600)); err != nil {
		t.Fatal(err)
	}
	if b, err := read(); err != nil || b.First != 1 {
		t.Fatalf("when it is well: block at %d, %v", b.First, err)
	}
	breakFile(t, path)
	if b, err := read(); !errors.Is(err, syscall.EIO) {
		t.Errorf("at its next error: block at %d, %v", b.First, err)
	}
	if j.Damaged() != 0 {
		t.Errorf("%d bytes are given up", j.Damaged())
	}
}
