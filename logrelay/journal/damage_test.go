package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
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

// TestTheMinuteOfADiskThatRefusesIsThatInWhichItWasTried, in virtual time: three
// tries it takes at least, half a minute apart or more; and no more than the minute
// where somebody tries all the time. Tries that lie further apart don't add up: an
// output whose target was away comes back an hour after the first refusal, and the
// disk may have been well in between. A journal that counts from the first refusal
// passes the lines over at the second, and one that adds such tries up at the third.
func TestTheMinuteOfADiskThatRefusesIsThatInWhichItWasTried(t *testing.T) {
	const never = 100
	for pause, want := range map[time.Duration]int{time.Hour: never, apart + time.Second: never, apart: 3, 30 * time.Second: 3, 20 * time.Second: 4, time.Second: 61} {
		synctest.Test(t, func(t *testing.T) {
			dir := filled(t)
			j, _ := open(t, Config{Dir: dir})
			breakFile(t, segmentsOf(t, dir)[1])
			r := j.Reader(1)
			defer r.Close()
			tries := 1
			for ; tries < never; tries++ {
				if _, ok, err := r.TryNext(); ok {
					break
				} else if !errors.Is(err, syscall.EIO) {
					t.Fatalf("%v: not the disk's error", err)
				}
				if j.Damaged() != 0 {
					t.Errorf("%d bytes are given up at try %d", j.Damaged(), tries)
				}
				<-time.After(pause)
			}
			if tries != want {
				t.Errorf("with %v between two tries it is passed over at the %d., want the %d.", pause, tries, want)
			}
		})
	}
}

// TestWhoComesLongAfterOthersGaveUpHasTriesOfItsOwn, in virtual time: a second
// output an hour later needs three, as the first did. A journal that keeps the
// account when it was used up passes lines over at the second one's first try,
// though the disk was well meanwhile for all that anybody knows.
func TestWhoComesLongAfterOthersGaveUpHasTriesOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filled(t)
		j, _ := open(t, Config{Dir: dir})
		breakFile(t, segmentsOf(t, dir)[1])
		for _, output := range []string{"first", "second"} {
			r := j.Reader(1)
			defer r.Close()
			tries := 1
			for ; tries < 10; tries++ {
				if _, ok, err := r.TryNext(); ok {
					break
				} else if !errors.Is(err, syscall.EIO) {
					t.Fatalf("%v: not the disk's error", err)
				}
				<-time.After(30 * time.Second)
			}
			if tries != 3 {
				t.Errorf("the %s output goes on at its %d. try, want the 3.", output, tries)
			}
			<-time.After(time.Hour)
		}
	})
}

// TestADiskThatIsSlowToRefuseIsGivenUp: where each refusal takes two minutes, tries
// begin half a minute after the one before. A journal that looks at when they ended
// takes each for the first, and no output ever gets past the spot.
func TestADiskThatIsSlowToRefuseIsGivenUp(t *testing.T) {
	j, now := &Journal{}, time.Unix(0, 0)
	for try := 1; ; try++ {
		began := now
		now = now.Add(2 * time.Minute)
		if j.givenUp("a segment", 0, began, now) {
			if try != 3 {
				t.Errorf("it is given up at try %d, want 3", try)
			}
			break
		}
		if try > 3 {
			t.Fatal("it is not given up")
		}
		now = now.Add(30 * time.Second)
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
	for where := range j.damage.refused { // it was tried for long
		j.damage.refused[where] = refusal{last: time.Now(), sum: time.Hour}
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

// TestASegmentThatCantBeOpenedIsPassedOverAfterItsMinute, in virtual time, an old
// one and the one that was written last: the outputs try as long as for a bad
// sector, then go on, so that the journal is trimmed behind them; who looks goes on
// at once. A reader that never gives up keeps the journal growing until the disk is
// full, and one that gives up at once leaves lines out that are there.
func TestASegmentThatCantBeOpenedIsPassedOverAfterItsMinute(t *testing.T) {
	for _, broken := range []uint64{1, 4} {
		synctest.Test(t, func(t *testing.T) {
			dir := filled(t)
			j, _ := open(t, Config{Dir: dir})
			path := segmentsOf(t, dir)[broken]
			if err := errors.Join(os.Remove(path), os.Symlink(lockedTerminal(t), path), put(t, j, "line 5")); err != nil {
				t.Fatal(err)
			}
			look := j.Glance(broken)
			defer look.Close()
			if b, ok, err := look.TryNext(); !ok || b.First != broken+1 {
				t.Errorf("who looks: block at %d, %v, %v", b.First, ok, err)
			}
			for tries := 1; ; tries++ {
				r := j.Reader(broken) // an output makes one for each try
				b, ok, err := r.TryNext()
				r.Close()
				if ok {
					if tries != 3 || b.First != broken+1 {
						t.Errorf("at try %d the reader goes on at %d, want try 3 and %d", tries, b.First, broken+1)
					}
					break
				}
				if !errors.Is(err, syscall.EIO) || tries > 3 {
					t.Fatalf("try %d: %v: not the disk's error", tries, err)
				}
				<-time.After(30 * time.Second)
			}
			if j.Damaged() == 0 {
				t.Error("nothing is said of it")
			}
			c, err := j.Cursor("files", false)
			if err == nil {
				err = c.Commit(j.End())
			}
			if left := segmentsOf(t, dir); err != nil || len(left) != 1 {
				t.Errorf("behind the output there are %q, %v", left, err)
			}
		})
	}
}

// TestTheSegmentThatIsWrittenIsNotPassedOver, however long it can't be opened: it
// has more when the disk is well again. A reader that passes it over as any other
// lacks what was written since.
func TestTheSegmentThatIsWrittenIsNotPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		j, _ := open(t, Config{Dir: dir})
		if err := put(t, j, "first"); err != nil {
			t.Fatal(err)
		}
		path := segmentsOf(t, dir)[0]
		if err := errors.Join(os.Rename(path, path+".away"), os.Symlink(lockedTerminal(t), path)); err != nil {
			t.Fatal(err)
		}
		r := j.Reader(0)
		defer r.Close()
		for range 5 {
			if b, ok, err := r.TryNext(); !errors.Is(err, syscall.EIO) {
				t.Fatalf("block at %d, %v, %v: not the disk's error", b.First, ok, err)
			}
			<-time.After(30 * time.Second)
		}
		if err := errors.Join(os.Remove(path), os.Rename(path+".away", path), put(t, j, "second")); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"first", "second"} {
			b, ok, err := r.TryNext()
			if !ok || err != nil {
				t.Fatalf("%s: %v, %v", want, ok, err)
			}
			if err := b.Each(func(_ uint64, record Record) bool {
				if got := string(record.Data); got != want {
					t.Errorf("%s, want %s", got, want)
				}
				return true
			}); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestTheNumbersOfALostSegmentStayUsedThoughNothingWasWritten: a start sets the
// newest aside, and ends before its first line; so does the next; then there is a
// line. A journal that keeps the numbers in memory, or looks at *.journal alone,
// gives them to other lines at the third start.
func TestTheNumbersOfALostSegmentStayUsedThoughNothingWasWritten(t *testing.T) {
	dir := filled(t)
	if err := os.WriteFile(segmentsOf(t, dir)[4], make([]byte, 1000*leastRecord), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, stop := open(t, Config{Dir: dir})
		stop()
	}
	j, _ := open(t, Config{Dir: dir})
	if err := put(t, j, "next"); err != nil {
		t.Fatal(err)
	}
	if got := j.End() - 1; got != 1004 {
		t.Errorf("the line has number %d, want 1004, behind all that the lost segment can have had", got)
	}
	if j.Damaged() != 1000*leastRecord {
		t.Errorf("%d bytes are damaged, want %d", j.Damaged(), 1000*leastRecord)
	}
}

// TestWhatWasSetAsideIsNotReplaced: a second segment of the same name is set aside
// beside the first. A rename to the same name would remove that one.
func TestWhatWasSetAsideIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	name := fmt.Sprintf("%s/%020d", dir, 7)
	for i := range 3 {
		if err := os.WriteFile(name+suffix, make([]byte, 100+i), 0o600); err != nil {
			t.Fatal(err)
		}
		j, stop := open(t, Config{Dir: dir})
		stop()
		if want := int64(100*(i+1) + i*(i+1)/2); j.Damaged() != want {
			t.Errorf("after %d: %d bytes are damaged, want %d", i+1, j.Damaged(), want)
		}
	}
	for i, end := range []string{"", ".1", ".2"} {
		if info, err := os.Stat(name + damagedSuffix + end); err != nil || info.Size() != int64(100+i) {
			t.Errorf("the %d. one: %v", i+1, err)
		}
	}
}

// TestNumbersThatNoRecordHasAreNoLines: of a lost segment whose length nobody
// knows, and of writes that failed one after the other; also at the next start, and
// when what was set aside was taken away. A journal that subtracts cursors from its
// end counts millions of lines that never were.
func TestNumbersThatNoRecordHasAreNoLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, state := filled(t), &diskState{}
		path := segmentsOf(t, dir)[4]
		if err := errors.Join(os.Remove(path), os.Symlink(lockedTerminal(t), path)); err != nil {
			t.Fatal(err)
		}
		j, stop := open(t, Config{Dir: dir, Wrap: func(f File) File { return disk{f, state} }})
		if got := j.Lines(0, 1<<40); got != 4 {
			t.Errorf("before there is a line there are %d, want 4", got)
		}
		if err := put(t, j, "one", "two"); err != nil {
			t.Fatal(err)
		}
		amid := j.End() / 2
		if amid < 1_000_000 {
			t.Fatalf("the journal ends at %d", j.End())
		}
		state.set(func() { state.syncErr = syscall.EIO })
		if err := put(t, j, "refused", "too"); err == nil {
			t.Fatal("acknowledged")
		}
		state.set(func() { state.syncErr = nil })
		refused := j.End()
		if err := put(t, j, "three"); err != nil {
			t.Fatal(err)
		}
		if j.End() != refused+3 {
			t.Fatalf("from %d the end came to %d", refused, j.End())
		}
		for start := range 3 {
			for _, test := range []struct{ from, to, want uint64 }{
				{0, j.End(), 7}, {3, j.End(), 4}, {amid, j.End(), 3}, {0, amid, 4}, {amid, amid + 9, 0},
				{refused, j.End(), 1}, {refused + 1, j.End(), 1}, {refused - 1, refused + 1, 1}, {j.End(), j.End() + 9, 0}, {9, 3, 0},
			} {
				if got := j.Lines(test.from, test.to); got != test.want {
					t.Errorf("start %d: of [%d, %d) there are %d lines, want %d", start, test.from, test.to, got, test.want)
				}
			}
			stop()
			if err := os.RemoveAll(path + ".damaged"); err != nil {
				t.Fatal(err)
			}
			j, stop = open(t, Config{Dir: dir})
		}
	})
}

// TestNumbersInFrontOfASegmentWithoutABlockCountOnce: it is left where a write
// failed, and the next one begins behind it with all that no record has in front.
func TestNumbersInFrontOfASegmentWithoutABlockCountOnce(t *testing.T) {
	j := &Journal{end: 12}
	for _, s := range []segment{{first: 0}, {first: 6, unused: 2}, {first: 8, unused: 4}, {first: 11, unused: 1}} {
		j.segments = append(j.segments, held{segment: s})
	}
	if got := j.Lines(0, 12); got != 4+2+1 {
		t.Errorf("%d lines, want 7: up to 4, 8 and 9, and 11", got)
	}
	if got := j.Lines(5, 9); got != 1 {
		t.Errorf("of [5, 9) there are %d lines, want 1", got)
	}
}

// TestALostSegmentWhoseLengthIsKnownUsesNoMoreNumbers than it had room for, though
// it could not be opened.
func TestALostSegmentWhoseLengthIsKnownUsesNoMoreNumbers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "segment")
	if err := os.WriteFile(path, make([]byte, 1234), 0o600); err != nil {
		t.Fatal(err)
	}
	j := &Journal{}
	if size, room := j.sizeOf(path); size != 1234 || room != 1234 {
		t.Errorf("a file of 1234 bytes has %d, and %d at most", size, room)
	}
	if size, room := j.sizeOf(path + "."); size != 0 || room < defaultSegment {
		t.Errorf("a file that can't be looked at has %d bytes, and %d at most", size, room)
	}
}
