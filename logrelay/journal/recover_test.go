package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

// badMemory is a file whose first page can't be read: that gives EIO, as a bad
// sector does.
const badMemory = "/proc/self/mem"

// segmentsOf are the files of a journal, the oldest first.
func segmentsOf(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// filled makes a journal with a line in each of five segments, and closes it.
func filled(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	j, stop := open(t, Config{Dir: dir, Segment: 40})
	for i := range 5 {
		if err := put(t, j, fmt.Sprint("line ", i)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if n := len(segmentsOf(t, dir)); n != 5 {
		t.Fatalf("%d segments", n)
	}
	return dir
}

// breakFile has a file give EIO when it is read.
func breakFile(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.Remove(path), os.Symlink(badMemory, path)); err != nil {
		t.Fatal(err)
	}
}

// TestOneBadSectorKeepsNoJournalFromOpening: in the header of a segment, an old
// one or the newest. A journal that fails at an error of the disk does not open,
// and one that counts on from an older segment gives numbers twice. What was set
// aside counts as damaged at the next start, too: one that looks at *.journal
// alone says that all is well. In virtual time, since the disk is given some.
func TestOneBadSectorKeepsNoJournalFromOpening(t *testing.T) {
	synctest.Test(t, oneBadSector)
}

func oneBadSector(t *testing.T) {
	for _, broken := range []int{0, 2, 4} {
		dir := filled(t)
		path := segmentsOf(t, dir)[broken]
		breakFile(t, path)
		j, stop := open(t, Config{Dir: dir})
		if j.Damaged() == 0 {
			t.Errorf("segment %d: nothing is said of it", broken)
		}
		if _, err := os.Lstat(path + ".damaged"); err != nil {
			t.Errorf("segment %d is not set aside: %v", broken, err)
		}
		if err := put(t, j, "line 5"); err != nil {
			t.Fatal(err)
		}
		want := []string{"line 0", "line 1", "line 2", "line 3", "line 4", "line 5"}
		if diff := cmp.Diff(slices.Delete(want, broken, broken+1), all(t, j, 0)); diff != "" {
			t.Errorf("segment %d: %s", broken, diff)
		}
		stop()
		if j, _ = open(t, Config{Dir: dir}); j.Damaged() == 0 {
			t.Errorf("segment %d: nothing is said of it at the next start", broken)
		}
	}
}

// TestADiskThatIsAwayForAMomentCostsAStartNoSegment, in virtual time: it refuses
// to open the newest segment, or to read its header, and is well after two seconds. A journal that sets aside, or counts as lost, what was refused
// once never gives these lines to anybody.
func TestADiskThatIsAwayForAMomentCostsAStartNoSegment(t *testing.T) {
	for _, away := range []func(*testing.T) string{lockedTerminal, func(*testing.T) string { return badMemory }} {
		synctest.Test(t, func(t *testing.T) {
			dir := filled(t)
			newest := segmentsOf(t, dir)[4]
			aside := filepath.Join(dir, "aside")
			if err := errors.Join(os.Rename(newest, aside), os.Symlink(away(t), newest)); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(2*time.Second, func() {
				if err := os.Rename(aside, newest); err != nil {
					t.Error(err)
				}
			})
			j, _ := open(t, Config{Dir: dir})
			if j.Damaged() != 0 || j.End() != 5 {
				t.Errorf("%d bytes are damaged, the end is %d", j.Damaged(), j.End())
			}
			if got := strings.Join(all(t, j, 0), ", "); got != "line 0, line 1, line 2, line 3, line 4" {
				t.Errorf("read: %s", got)
			}
		})
	}
}

// TestAStartThatIsToldToEndGivesNothingUp, in virtual time, and does not wait for a
// disk that refuses to read. It fails where the end waits for the five seconds, and
// where the segment is set aside for it: then the next start lacks its lines.
func TestAStartThatIsToldToEndGivesNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filled(t)
		newest := segmentsOf(t, dir)[4]
		aside := filepath.Join(dir, "aside")
		if err := errors.Join(os.Rename(newest, aside), os.Symlink(badMemory, newest)); err != nil {
			t.Fatal(err)
		}
		for _, after := range []time.Duration{0, time.Second} {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			began := time.Now()
			_, err := OpenContext(ctx, Config{Dir: dir})
			cancel()
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != after {
				t.Errorf("told to end after %v: %v after %v", after, err, took)
			}
		}
		if err := os.Rename(aside, newest); err != nil {
			t.Fatal(err)
		}
		j, _ := open(t, Config{Dir: dir})
		if got := all(t, j, 0); len(got) != 5 || j.Damaged() != 0 {
			t.Errorf("the next start has %q, and %d bytes are damaged", got, j.Damaged())
		}
	})
}

// TestTheNumbersOfASegmentThatIsLostAreUsedByNoOther: it had room for so many
// records at most.
func TestTheNumbersOfASegmentThatIsLostAreUsedByNoOther(t *testing.T) {
	dir := filled(t)
	newest := segmentsOf(t, dir)[4]
	if err := os.WriteFile(newest, make([]byte, 10*leastRecord+1), 0o600); err != nil {
		t.Fatal(err)
	}
	j, _ := open(t, Config{Dir: dir})
	if err := put(t, j, "next"); err != nil {
		t.Fatal(err)
	}
	if j.End() < 4+10+1 {
		t.Errorf("the line has number %d, which one of the lost segment may have had", j.End()-1)
	}
}

// TestNoNumberIsUsedTwiceAfterASegmentThatCantBeOpened: the disk gives EIO when
// the newest is opened, so that nobody knows how much it had. It is kept aside,
// and what comes next has numbers behind all that it can have had: the other node
// and cursors may have seen those. A journal that counts on from the segment's
// first record gives them once more. In virtual time, since the disk is given some.
func TestNoNumberIsUsedTwiceAfterASegmentThatCantBeOpened(t *testing.T) {
	synctest.Test(t, segmentThatCantBeOpened)
}

func segmentThatCantBeOpened(t *testing.T) {
	dir := filled(t)
	newest := segmentsOf(t, dir)[4]
	first := uint64(4)
	if err := errors.Join(os.Remove(newest), os.Symlink(lockedTerminal(t), newest)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.OpenFile(newest, os.O_RDWR|syscall.O_NOCTTY, 0); !errors.Is(err, syscall.EIO) {
		t.Fatalf("%v: not the disk's error", err)
	}
	j, _ := open(t, Config{Dir: dir})
	if j.Damaged() == 0 {
		t.Error("nothing is said of it")
	}
	if _, err := os.Lstat(newest + ".damaged"); err != nil {
		t.Errorf("it is not set aside: %v", err)
	}
	if end := j.End(); end != first {
		t.Errorf("the journal ends at %d, but has nothing from %d on", end, first)
	}
	if err := put(t, j, "next"); err != nil {
		t.Fatal(err)
	}
	if had := first + (64<<20)/leastRecord; j.End()-1 < had {
		t.Errorf("the line has number %d, which one of the lost segment may have had: want %d at least", j.End()-1, had)
	}
	if got := strings.Join(all(t, j, 0), ", "); got != "line 0, line 1, line 2, line 3, next" {
		t.Errorf("read: %s", got)
	}
}

// lockedTerminal is a file that gives EIO when it is opened: a terminal whose
// other end has not unlocked it.
func lockedTerminal(t *testing.T) string {
	t.Helper()
	end, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("a file that can't be opened takes a /dev/pts: %v", err)
	}
	t.Cleanup(func() { _ = end.Close() })
	raw, err := end.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number uint32
	var failed syscall.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, failed = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGPTN, uintptr(unsafe.Pointer(&number)))
	}); err != nil || failed != 0 {
		t.Fatal(err, failed)
	}
	return fmt.Sprint("/dev/pts/", number)
}

// refusing is a segment in memory with bytes that can't be read.
type refusing struct {
	*bytes.Reader
	from, to int64
}

func (r refusing) ReadAt(b []byte, at int64) (int, error) {
	if at < r.to && at+int64(len(b)) > r.from {
		return 0, syscall.EIO
	}
	return r.Reader.ReadAt(b, at)
}

var _ io.ReaderAt = refusing{}

// TestBlocksAroundABadSectorAreFound: those before and behind it, and nothing is
// taken for a torn write that can't be read.
func TestBlocksAroundABadSectorAreFound(t *testing.T) {
	seg, data, ends := sample(200)
	bad := int64(ends[100]+20) / 4096 * 4096
	e, err := seg.scan(refusing{bytes.NewReader(data), bad, bad + 4096}, int64(len(data)))
	if err != nil || e.end != int64(len(data)) || e.unreadable || !e.refused || len(e.gaps) != 1 {
		t.Fatalf("a page amid: %+v, %v", e, err)
	}
	if gap := e.gaps[0]; gap[0] > bad || gap[1] < bad+4096 || gap[1]-gap[0] > 40<<10 {
		t.Errorf("passed over: %v, for a page at %d", gap, bad)
	}
	e, err = seg.scan(refusing{bytes.NewReader(data), int64(len(data)) - 10, int64(len(data))}, int64(len(data)))
	if err != nil || !e.unreadable || !e.refused || e.end < int64(len(data)-20<<10) {
		t.Errorf("the end: %+v, %v", e, err)
	}
}

// TestOnlyTheNewestSegmentIsReadWhenAJournalOpens: damage in an old one is found,
// and counted once, when somebody reads it. A journal that reads all of itself
// finds it at once.
func TestOnlyTheNewestSegmentIsReadWhenAJournalOpens(t *testing.T) {
	dir := filled(t)
	path := segmentsOf(t, dir)[1]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	j, _ := open(t, Config{Dir: dir})
	if j.Damaged() != 0 || j.End() != 5 {
		t.Errorf("before anybody read: %d bytes are damaged, the end is %d", j.Damaged(), j.End())
	}
	for range 2 {
		if got := strings.Join(all(t, j, 0), ", "); got != "line 0, line 2, line 3, line 4" {
			t.Errorf("read: %s", got)
		}
	}
	if want := int64(len(b) - segmentHeader); j.Damaged() != want {
		t.Errorf("%d bytes are damaged, want %d", j.Damaged(), want)
	}
}

// TestWhatTheDiskRefusesIsPassedOverWhenItHasRefusedForLong: a disk may be away
// for a moment, and then no output may leave a line out. Who only looks goes on.
func TestWhatTheDiskRefusesIsPassedOverWhenItHasRefusedForLong(t *testing.T) {
	dir := filled(t)
	j, _ := open(t, Config{Dir: dir})
	j.damage.patience = time.Hour
	path := segmentsOf(t, dir)[1]
	breakFile(t, path)
	r := j.Reader(1)
	defer r.Close()
	for range 3 {
		if _, ok, err := r.TryNext(); ok || !errors.Is(err, syscall.EIO) {
			t.Fatalf("%v, %v: not the disk's error", ok, err)
		}
	}
	if j.Damaged() != 0 {
		t.Errorf("%d bytes are given up after a moment", j.Damaged())
	}
	look := j.Glance(1)
	defer look.Close()
	if b, ok, err := look.TryNext(); !ok || b.First != 2 {
		t.Errorf("who looks: block at %d, %v, %v", b.First, ok, err)
	}
	j.damage.patience = time.Nanosecond
	if b, ok, err := r.TryNext(); !ok || b.First != 2 {
		t.Errorf("after all that time: block at %d, %v, %v", b.First, ok, err)
	}
	if j.Damaged() == 0 {
		t.Error("nothing is said of it")
	}
}

// TestASegmentRemovedByHandIsPassedOver, an old one and the one that is written:
// readers don't wait for it, its loss is counted, and no line is acknowledged in
// a file that nobody can open.
func TestASegmentRemovedByHandIsPassedOver(t *testing.T) {
	dir := filled(t)
	j, stop := open(t, Config{Dir: dir})
	if err := put(t, j, "line 5"); err != nil {
		t.Fatal(err)
	}
	list := segmentsOf(t, dir)
	if err := errors.Join(os.Remove(list[1]), os.Remove(list[5])); err != nil {
		t.Fatal(err)
	}
	if err := put(t, j, "refused"); err == nil || !strings.Contains(err.Error(), "removed") {
		t.Errorf("a line in a removed file: %v", err)
	}
	if err := put(t, j, "line 6"); err != nil {
		t.Fatal(err)
	}
	want := []string{"line 0", "line 2", "line 3", "line 4", "line 6"}
	read := make(chan []string, 1)
	go func() { read <- all(t, j, 0) }()
	select {
	case got := <-read:
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	case <-time.After(time.Minute):
		t.Fatal("a reader does not get past a segment that is gone")
	}
	if j.Damaged() == 0 {
		t.Error("nothing is said of it")
	}
	c, err := j.Cursor("files", true)
	if err == nil {
		err = c.Commit(j.End())
	}
	if err != nil {
		t.Errorf("what is gone already can't be trimmed: %v", err)
	}
	stop()
	j, _ = open(t, Config{Dir: dir})
	if got := strings.Join(all(t, j, 0), ", "); got != "line 6" {
		t.Errorf("after a reopen: %s", got)
	}
}

// TestWhatACrashLeftOfReplacedFilesIsRemoved, and nothing else.
func TestWhatACrashLeftOfReplacedFilesIsRemoved(t *testing.T) {
	dir := filled(t)
	stay := []string{".hidden", "undo-12", ".name.text", "notes.123"}
	gone := []string{".cursor-files.2733121", ".replicas.json.1", ".identity.99"}
	for _, name := range slices.Concat(stay, gone) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open(t, Config{Dir: dir})
	for _, name := range stay {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range gone {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
