package logrelay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// writtenAt makes a file of a line, of that time.
func writtenAt(t *testing.T, dir, name string, at time.Time) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("x\n"), 0o600), os.Chtimes(path, at, at)); err != nil {
		t.Fatal(err)
	}
}

// TestFilesThatAreNotIdleYetDoNotStandInFront of one that is: more than are put
// away at once had a line some minutes ago. It fails where the output is given
// files before they are due.
func TestFilesThatAreNotIdleYetDoNotStandInFront(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{year}/{host}.log"}}`)
		defer x.end()
		o := beginFiles(t, x)
		for n := range retireMost + 1 {
			writtenAt(t, x.hosts, fmt.Sprintf("1999/cn%d.log", n), time.Now().Add(-retireAfter/2))
		}
		writtenAt(t, x.hosts, "1999/last.log", time.Now().Add(-retireAfter))
		if err := o.rotator.tidy(); err != nil {
			t.Fatal(err)
		}
		o.retire()
		list := filesBelow(t, x.hosts)
		if last := list[len(list)-1]; len(list) != retireMost+2 || !strings.HasPrefix(last, "1999/last.log.") {
			t.Errorf("%s is not put away, of %d files", last, len(list))
		}
	})
}

// TestAFileOfALaterTimeThanNowIsPutAway, in virtual time: a clock that was wrong
// left it, and it counts from when it was first seen. It fails where such a file
// is put away at once, or waits for its time to come; and where the disk has a clock
// of its own that is ahead, if a line does not count.
func TestAFileOfALaterTimeThanNowIsPutAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{year}/{host}.log"}}`)
		defer x.end()
		o := beginFiles(t, x)
		writtenAt(t, x.hosts, "1999/cn1.log", time.Now().AddDate(1, 0, 0))
		for _, step := range []struct {
			after      time.Duration
			line, away bool
		}{{0, false, false}, {retireAfter - time.Minute, false, false}, {time.Second, true, false}, {retireAfter - time.Minute, false, false}, {2 * time.Minute, false, true}} {
			<-time.After(step.after)
			if step.line {
				writtenAt(t, x.hosts, "1999/cn1.log", time.Now().AddDate(1, 0, 0))
			}
			if err := o.rotator.tidy(); err != nil {
				t.Fatal(err)
			}
			o.retire()
			if list := filesBelow(t, x.hosts); len(list) != 1 || (list[0] != "1999/cn1.log") != step.away {
				t.Errorf("after another %v there is %q", step.after, list)
			}
		}
		if err := o.rotator.tidy(); err != nil || len(o.rotator.ahead) != 0 {
			t.Errorf("remembered: %v, %v", o.rotator.ahead, err)
		}
	})
}

// TestFilesOfASilentHostGoInTheirTime, in virtual time: its file is put away when
// it had no line for as long as a file lasts, and removed when a host that writes
// would have no file as old. One that does keeps its own. It fails where files are
// put away by lines alone, and removed by number alone: names are invented anew
// after each restart.
func TestFilesOfASilentHostGoInTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{host}/{app}.log"}}`)
		defer x.end()
		x.s.settings.rotate.keep = 3
		r := newRun(x, plenty)
		const silent, writes = "<13>Nov 25 12:00:00 cn1 test: silent", "<13>Nov 25 12:00:00 cn2 test: writes"
		x.store(silent, writes)
		r.pass(23 * time.Hour)
		x.store(writes)
		if diff := cmp.Diff([]string{"cn1/test.log", "cn2/test.log"}, filesBelow(t, x.hosts)); diff != "" {
			t.Errorf("within a day: %s", diff)
		}
		r.pass(3 * time.Hour)
		if list := filesBelow(t, x.hosts); len(list) != 2 || !strings.HasPrefix(list[0], "cn1/test.log.") || !strings.HasSuffix(list[0], zstSuffix) || list[1] != "cn2/test.log" {
			t.Errorf("after a day: %q", list)
		}
		want := []string{"silent", "writes", "writes"}
		for _, hours := range []int{24, 24, 18} {
			x.store(writes)
			want = append(want, "writes")
			r.pass(time.Duration(hours) * time.Hour)
		}
		if diff := cmp.Diff(want, texts(t, x.hosts)); diff != "" {
			t.Errorf("before four days: %s", diff)
		}
		r.pass(8 * time.Hour)
		if diff := cmp.Diff(want[1:], texts(t, x.hosts)); diff != "" {
			t.Errorf("after four days: %s", diff)
		}
		r.end()
	})
}

// TestAgeAloneTakesNothingOfAHostThatWrites, as when a clock jumps: its file is
// there, so there will be one that pushes older ones out.
func TestAgeAloneTakesNothingOfAHostThatWrites(t *testing.T) {
	dir, now := t.TempDir(), time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	for _, name := range []string{
		"cn1.log.20260101T000000.000.zst", "cn1.log",
		"cn2.log.20260101T000000.000.zst", "cn2.log.20261124T000000.000.zst",
		"cn3.log.20260101T000000.000.zst", "cn3.log.20260102T000000.000.zst",
	} {
		writtenAt(t, dir, name, now)
	}
	r := newRotator(dir, rotateConfig{every: 24 * time.Hour, keep: 3, free: 10}, layoutOf(t), discard())
	r.now, r.space = func() time.Time { return now }, func(string) (float64, error) { return 50, nil }
	for range 2 {
		if err := r.tidy(); err != nil {
			t.Fatal(err)
		}
		now = now.Add(outlivedFor)
	}
	want := []string{"cn1.log", "cn1.log.20260101T000000.000.zst", "cn2.log.20260101T000000.000.zst", "cn2.log.20261124T000000.000.zst"}
	if diff := cmp.Diff(want, filesBelow(t, dir)); diff != "" {
		t.Error(diff)
	}
}

// TestALineBetweenTheLookAndTheOutputKeepsAFile, be it of a disk with a clock of its
// own that is ahead. It fails where a time that is still to come is taken for an
// old one.
func TestALineBetweenTheLookAndTheOutputKeepsAFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{year}/{host}.log"}}`)
		defer x.end()
		o := beginFiles(t, x)
		for _, ahead := range []time.Duration{0, time.Minute} {
			writtenAt(t, x.hosts, "1999/cn1.log", time.Now().Add(-2*retireAfter))
			if err := o.rotator.tidy(); err != nil {
				t.Fatal(err)
			}
			writtenAt(t, x.hosts, "1999/cn1.log", time.Now().Add(ahead))
			if err := o.retire(); err != nil {
				t.Fatal(err)
			}
			if list := filesBelow(t, x.hosts); !slices.Equal(list, []string{"1999/cn1.log"}) {
				t.Errorf("with a clock that is %v ahead there are %q", ahead, list)
			}
		}
	})
}

// TestAClockThatIsAheadForAWhileTakesNoFile, in virtual time: of a silent host, of
// an earlier path, and of those whose own file can't be opened. It fails where
// files go at the first look at which they are too old, or where looks between
// which they weren't are counted together.
func TestAClockThatIsAheadForAWhileTakesNoFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{"cn1.log", "cn2/sshd.log", "cn3+.log"} {
			writtenAt(t, dir, name+"."+time.Now().UTC().Format(rotatedTime)+zstSuffix, time.Now())
		}
		r := newRotator(dir, rotateConfig{every: 24 * time.Hour, keep: 3, free: 10}, layoutOf(t, defaultPath, "{host}/{app}.log"), discard())
		r.space = func(string) (float64, error) { return 50, nil }
		ahead := true
		r.now = func() time.Time {
			if ahead {
				return time.Now().AddDate(1, 0, 0)
			}
			return time.Now()
		}
		for _, step := range []struct {
			after time.Duration
			ahead bool
			want  int
		}{
			{0, true, 3}, {outlivedFor - time.Minute, true, 3}, {time.Minute / 2, false, 3},
			{time.Minute / 2, true, 3}, {outlivedFor - time.Minute, true, 3}, {time.Minute, true, 0},
		} {
			<-time.After(step.after)
			ahead = step.ahead
			if err := r.tidy(); err != nil {
				t.Fatal(err)
			}
			files := slices.DeleteFunc(filesBelow(t, dir), func(name string) bool { return strings.HasSuffix(name, "/") })
			if len(files) != step.want {
				t.Errorf("after another %v, ahead %v, there are %q", step.after, step.ahead, files)
			}
		}
	})
}

// TestWhatAClockThatWasAheadPutAwayIsTheOldest, in virtual time: it goes first where
// there are more than are kept, or too little is free, and where its host is silent
// as if it had been put away when it was first seen. One that is a moment ahead was
// put away just now. It fails where the time in a name is believed: all that come
// after such a file are then older than it, and the host's go at once.
func TestWhatAClockThatWasAheadPutAwayIsTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		away := func(host string, at time.Time) string {
			name := host + ".log." + at.UTC().Format(rotatedTime) + zstSuffix
			writtenAt(t, dir, name, time.Now())
			return name
		}
		now := time.Now()
		later := now.AddDate(1, 0, 0)
		ahead, old := away("cn1", later), away("cn1", now.Add(-time.Hour))
		young, moment := away("cn1", now), away("cn1", now.Add(time.Minute))
		silent := away("cn2", later.Add(time.Minute))
		r := newRotator(dir, rotateConfig{every: 24 * time.Hour, keep: 4, free: 10}, layoutOf(t), discard())
		free := 50.0
		r.space = func(string) (float64, error) { free += 3; return free, nil }
		tidy := func(what string, want ...string) {
			t.Helper()
			if err := r.tidy(); err != nil {
				t.Fatal(err)
			}
			slices.Sort(want)
			if diff := cmp.Diff(want, filesBelow(t, dir)); diff != "" {
				t.Errorf("%s: %s", what, diff)
			}
		}
		tidy("all are kept", ahead, old, young, moment, silent)
		r.config.keep = 3
		tidy("too many", old, young, moment, silent)
		free = 5 // the second look is enough
		tidy("too little is free", old, young, moment)
		free = 5
		tidy("once more", young, moment)
		silent = away("cn2", later)
		writtenAt(t, dir, "cn1.log", now)
		for _, step := range []struct {
			after time.Duration
			want  []string
		}{
			{0, []string{"cn1.log", young, moment, silent}},
			{3*24*time.Hour + time.Minute, []string{"cn1.log", young, moment, silent}},
			{outlivedFor - 2*time.Minute, []string{"cn1.log", young, moment, silent}},
			{2 * time.Minute, []string{"cn1.log", young, moment}},
		} {
			<-time.After(step.after)
			tidy(fmt.Sprintf("after another %v", step.after), step.want...)
		}
	})
}

// TestTheFloorTakesFilesThatAreIdle, in virtual time, when none is left that was
// put away: the one that is silent for longest, and none that had a line within an
// hour. It fails where live files are out of the floor's reach, where they go
// though there is room, and where they do before the output has written for an
// hour: after an outage of the relay all of them look idle.
func TestTheFloorTakesFilesThatAreIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer x.end()
		o := beginFiles(t, x)
		for n := range retireMost {
			writtenAt(t, x.hosts, fmt.Sprintf("cn%d.log", n), time.Now().Add(-2*retireAfter))
		}
		writtenAt(t, x.hosts, "older.log", time.Now().Add(-3*retireAfter))
		writtenAt(t, x.hosts, "young.log", time.Now().Add(-retireAfter/2))
		free := 50.0
		o.rotator.space = func(string) (float64, error) { return free, nil }
		look := func() []string {
			t.Helper()
			if err := o.rotator.tidy(); err != nil {
				t.Fatal(err)
			}
			o.retire()
			return filesBelow(t, x.hosts)
		}
		if list := look(); slices.ContainsFunc(list, func(name string) bool { return !strings.HasSuffix(name, fileSuffix) }) {
			t.Errorf("with room there are %q", list)
		}
		free = 1
		if list := look(); slices.ContainsFunc(list, func(name string) bool { return !strings.HasSuffix(name, fileSuffix) }) {
			t.Errorf("without room, when the output has just begun, there are %q", list)
		}
		<-time.After(retireAfter)
		writtenAt(t, x.hosts, "young.log", time.Now().Add(-retireAfter/2))
		list := look()
		if len(list) != retireMost+2 || !strings.HasPrefix(list[retireMost], "older.log.") || list[retireMost+1] != "young.log" {
			t.Errorf("without room there are %q", list)
		}
		look()
		if list = look(); !slices.Equal(list, []string{"young.log"}) {
			t.Errorf("at last there are %q", list)
		}
	})
}

// TestFilesOfOthersAreNotPutAway, nor removed where they are empty: those of our user
// are, and those of the one that files are given to. It fails where a file is ours
// by its name alone.
func TestFilesOfOthersAreNotPutAway(t *testing.T) {
	for _, test := range []struct {
		ours, owners bool
		want         int
	}{{false, false, 2}, {true, false, 1}, {false, true, 1}} {
		synctest.Test(t, func(t *testing.T) {
			x := newStage(t, `{}`)
			defer x.end()
			o := beginFiles(t, x)
			long := time.Now().Add(-maxEvery)
			for _, name := range []string{"mysqld.log", "empty.log"} {
				writtenAt(t, x.hosts, name, long)
			}
			empty := filepath.Join(x.hosts, "empty.log")
			if err := errors.Join(os.Truncate(empty, 0), os.Chtimes(empty, long, long)); err != nil {
				t.Fatal(err)
			}
			if !test.ours {
				o.rotator.uid++
			}
			if test.owners {
				o.rotator.owner.user = itoa(os.Geteuid())
			}
			if err := errors.Join(o.rotator.tidy(), o.retire()); err != nil {
				t.Fatal(err)
			}
			list := filesBelow(t, x.hosts)
			if len(list) != test.want || slices.Contains(list, "mysqld.log") != (test.want == 2) {
				t.Errorf("ours %v, the owner's %v: there are %q", test.ours, test.owners, list)
			}
		})
	}
}

// TestEmptyFoldersOfOthersStay, and those that were just made or emptied, in virtual
// time. It fails where a folder goes by its being empty alone.
func TestEmptyFoldersOfOthersStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, long := t.TempDir(), time.Now().Add(-emptyAfter)
		made := func(name string, at time.Time) {
			t.Helper()
			path := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(path, 0o755), os.Chtimes(path, at, at)); err != nil {
				t.Fatal(err)
			}
		}
		made("cn1", long)
		made("cn2", long.Add(2*time.Minute))
		made("cn3", time.Now().AddDate(1, 0, 0))
		made("cn4/x", long) // no file of ours could be there
		r := newRotator(dir, rotateConfig{every: maxEvery, keep: 10}, layoutOf(t, "{host}/{app}.log"), discard())
		for _, step := range []struct {
			after  time.Duration
			others bool
			want   []string
		}{
			{0, true, []string{"cn1/", "cn2/", "cn3/", "cn4/x/"}},
			{0, false, []string{"cn2/", "cn3/", "cn4/x/"}},
			{3 * time.Minute, false, []string{"cn3/", "cn4/x/"}},
			{emptyAfter, false, []string{"cn4/x/"}},
		} {
			<-time.After(step.after)
			if r.uid = os.Geteuid(); step.others {
				r.uid++
			}
			if err := r.tidy(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(step.want, filesBelow(t, dir)); diff != "" {
				t.Errorf("after another %v, others' %v: %s", step.after, step.others, diff)
			}
		}
		for err, want := range map[error]bool{syscall.EBUSY: true, syscall.ENOTEMPTY: true, syscall.ENOENT: true, syscall.EACCES: false} {
			if staysThere(&os.PathError{Op: "remove", Path: "cn1", Err: err}) != want {
				t.Errorf("%v is told of: %v", err, want)
			}
		}
	})
}
