package logrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// filesBelow lists the files and empty folders below a folder.
func filesBelow(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if !e.IsDir() {
			list = append(list, name)
		} else if entries, failed := os.ReadDir(path); failed != nil || len(entries) == 0 {
			list = append(list, name+"/")
			err = errors.Join(err, failed)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// texts are what all files below a folder have together, without the times in
// front, sorted.
func texts(t *testing.T, dir string) (lines []string) {
	t.Helper()
	for _, name := range filesBelow(t, dir) {
		if strings.HasSuffix(name, "/") {
			continue
		}
		file, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		in := io.Reader(file)
		if strings.HasSuffix(name, zstSuffix) {
			z, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			defer z.Close()
			in = z
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			lines = append(lines, text)
		}
	}
	slices.Sort(lines)
	return lines
}

// output runs the files of a stage, with its rotator, until end. The disk says
// when files were last written in its own time: what was written in this one is
// told the output's.
type outputRun struct {
	x     *stage
	o     *files
	end   func()
	ended chan error
}

// newRun begins one, with what is free on the disk in percent.
func newRun(x *stage, free func() float64) *outputRun {
	x.t.Helper()
	o, err := x.s.newFiles(x.j)
	if err != nil {
		x.t.Fatal(err)
	}
	o.rotator.space = func(string) (float64, error) { return free(), nil }
	ctx, cancel := context.WithCancel(x.ctx)
	r := &outputRun{x: x, o: o, ended: make(chan error, 2)}
	go func() { r.ended <- o.run(ctx, func() {}) }()
	go func() {
		o.rotator.run(ctx)
		r.ended <- nil
	}()
	synctest.Wait()
	r.end = func() {
		x.t.Helper()
		cancel()
		if err := errors.Join(<-r.ended, <-r.ended); err != nil {
			x.t.Error(err)
		}
	}
	return r
}

// pass lets time pass. What was stored is written within the first minute.
func (r *outputRun) pass(d time.Duration) {
	r.x.t.Helper()
	for _, step := range []time.Duration{min(d, time.Minute), max(0, d-time.Minute)} {
		<-time.After(step)
		synctest.Wait()
		r.aged()
	}
}

// aged tells files that were written just now the time of here.
func (r *outputRun) aged() {
	r.x.t.Helper()
	for _, name := range filesBelow(r.x.t, r.x.hosts) {
		path := filepath.Join(r.x.hosts, name)
		if info, err := os.Stat(path); err != nil || info.ModTime().Year() > 2020 {
			if err = errors.Join(err, os.Chtimes(path, time.Now(), time.Now())); err != nil {
				r.x.t.Fatal(err)
			}
		}
	}
}

func plenty() float64 { return 50 }

// TestYesterdaysFilesArePutAwayKeptAndRemoved, in virtual time, with the output
// begun anew on the third day: each day's files go into folders of their own,
// are put away and compressed an hour or two after their last line, as many as
// are kept stay, and so do no empty folders. Nothing else in the folder is
// touched. It fails where a host's days are not counted together, where files of
// a day that is over are looked for among those that are open alone, and where
// folders stay.
func TestYesterdaysFilesArePutAwayKeptAndRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{year}/{month}/{day}/{host}.log"}}`)
		defer x.end()
		x.s.settings.rotate.keep = 3
		foreign := []string{"notes.log", "2000/01/notes.log", "2000/01/01/x.txt", "other/01/01/cn1.log", "old/cn1.log.20000101T000000.000"}
		for _, name := range foreign {
			path := filepath.Join(x.hosts, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		r := newRun(x, plenty)
		var want []string
		for day := range 6 {
			if day == 2 {
				r.end() // while yesterday's is open
			}
			x.store(fmt.Sprintf("<13>Nov 25 12:00:00 cn1 test: day=%d", day), fmt.Sprintf("<13>Nov 25 12:00:00 cn2 test: day=%d", day))
			if day == 2 {
				r = newRun(x, plenty)
			}
			r.pass(time.Minute)
			today := time.Now().UTC().Format("2006/01/02/")
			list := filesBelow(t, x.hosts)
			if !slices.Contains(list, today+"cn1.log") || !slices.Contains(list, today+"cn2.log") {
				t.Fatalf("on day %d there are %q", day, list)
			}
			r.pass(24*time.Hour - time.Minute)
		}
		r.pass(2 * time.Hour)
		r.pass(emptyAfter + time.Hour)
		for day := 3; day < 6; day++ { // the last three, of each host
			want = append(want, fmt.Sprintf("day=%d", day), fmt.Sprintf("day=%d", day))
		}
		if diff := cmp.Diff(want, texts(t, x.hosts)); diff != "" {
			t.Error(diff)
		}
		ours := slices.DeleteFunc(filesBelow(t, x.hosts), func(name string) bool { return slices.Contains(foreign, name) })
		if len(ours) != 6 {
			t.Errorf("there are %q", ours)
		}
		for _, name := range ours {
			if file, _, away := cutRotated(filepath.Base(name)); !away || !strings.HasSuffix(name, zstSuffix) || file != "cn1.log" && file != "cn2.log" {
				t.Errorf("%s is not put away", name)
			}
		}
		for _, name := range foreign {
			if _, err := os.Stat(filepath.Join(x.hosts, name)); err != nil {
				t.Error(err)
			}
		}
		r.end()
	})
}

// TestALateLineOfYesterdayIsInYesterdaysFile, and its coming keeps that file
// from being put away each minute, which would push older ones out. It fails if
// files are put away as soon as their day is over.
func TestALateLineOfYesterdayIsInYesterdaysFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{year}/{month}/{day}/{host}.log"}}`)
		defer x.end()
		x.store("<13>Nov 25 12:00:00 cn1 test: first")
		yesterday := time.Now().UTC().Format("2006/01/02/")
		<-time.After(24 * time.Hour)
		r := newRun(x, plenty)
		r.pass(50 * time.Minute)
		if diff := cmp.Diff([]string{yesterday + "cn1.log"}, filesBelow(t, x.hosts)); diff != "" {
			t.Errorf("within an hour: %s", diff)
		}
		x.store("<13>Nov 25 12:00:00 cn1 test: today")
		r.pass(2 * time.Hour)
		list := filesBelow(t, x.hosts)
		if len(list) != 2 || !strings.HasPrefix(list[0], yesterday+"cn1.log.") || !strings.HasSuffix(list[1], "/cn1.log") {
			t.Errorf("later on: %q", list)
		}
		r.end()
	})
}

// TestTheFloorRemovesTheOldestOfAllFolders: whatever folder they are in.
func TestTheFloorRemovesTheOldestOfAllFolders(t *testing.T) {
	dir := t.TempDir()
	names := []string{
		"cn1/sshd.log.20261121T000000.000.zst", "cn2/sshd.log.20261122T000000.000.zst", "cn1/slurmd.log.20261123T000000.000.zst", "cn1/slurmd.log",
		"cn3/x.log.20261120T000000.000.zst", "cn3/UPPER.log.20261120T000000.000.zst", "cn4/deep/x.log.20261119T000000.000.zst",
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	outside := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(outside, "x.log.20261101T000000.000"), nil, 0o600), os.Symlink(outside, filepath.Join(dir, "cn5"))); err != nil {
		t.Fatal(err)
	}
	r := newRotator(dir, rotateConfig{every: 24 * time.Hour, keep: 10, free: 10}, layoutOf(t, "{host}/{app}.log"), discard())
	r.now = func() time.Time { return time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC) }
	free := 1.0
	r.space = func(string) (float64, error) { free += 3; return free, nil } // the third look is enough
	if err := errors.Join(r.tidy(), r.tidy()); err != nil {
		t.Fatal(err)
	}
	want := []string{"cn1/slurmd.log", "cn1/slurmd.log.20261123T000000.000.zst", "cn2/sshd.log.20261122T000000.000.zst", "cn3/UPPER.log.20261120T000000.000.zst", "cn4/deep/x.log.20261119T000000.000.zst", "cn5"}
	if diff := cmp.Diff(want, filesBelow(t, dir)); diff != "" {
		t.Error(diff)
	}
	if list := filesBelow(t, outside); len(list) != 1 || strings.HasSuffix(list[0], zstSuffix) {
		t.Errorf("behind a link: %q", list)
	}
}

// TestAFolderThatWasRemovedIsMadeAnew: the rotator takes empty ones away.
func TestAFolderThatWasRemovedIsMadeAnew(t *testing.T) {
	x := newStage(t, `{files: {path: "{host}/{app}.log"}}`)
	defer x.end()
	o := beginFiles(t, x)
	for round := range 2 {
		f, err := o.fileOf(named("cn1", "sshd", time.Now()))
		if err != nil {
			t.Fatal(round, err)
		}
		if err := o.syncFolders(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.file.Close(), os.Remove(filepath.Join(x.hosts, f.name))); err != nil {
			t.Fatal(err)
		}
		delete(o.open, f.name)
		long := time.Now().Add(-emptyAfter)
		if err := errors.Join(os.Chtimes(filepath.Dir(filepath.Join(x.hosts, f.name)), long, long), o.rotator.tidy()); err != nil {
			t.Fatal(err)
		}
		if list := filesBelow(t, x.hosts); !slices.Equal(list, []string{"./"}) {
			t.Fatalf("there are %q", list)
		}
	}
}

// TestACrashBeforeAChangeOfThePathDoublesNothing: what was written since the
// last checkpoint is cut off where it was, and written where it is to be now.
// It fails if an undo is of hosts, or of the path of now.
func TestACrashBeforeAChangeOfThePathDoublesNothing(t *testing.T) {
	for _, paths := range [][2]string{
		{defaultPath, "{host}/{app}.log"}, {"{host}/{app}.log", defaultPath}, {"{year}/{host}/{app}.log", "{year}/{host}.log"}, {"{host}/{app}.log", "{host}/{app}.log"},
	} {
		t.Run(paths[0]+" to "+paths[1], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newStage(t, `{files: {path: "`+paths[0]+`"}}`)
				defer x.end()
				var want []string
				begin := func(lines int) *files {
					t.Helper()
					for range lines {
						text := fmt.Sprintf("seq=%03d", len(want))
						want = append(want, text)
						x.store(fmt.Sprintf("<13>Nov 25 12:00:00 cn%d app%d: %s", len(want)%3, len(want)%2, text))
					}
					o, err := x.s.newFiles(x.j)
					if err == nil {
						o.well = func() {}
						err = o.begin()
					}
					if err != nil {
						t.Fatal(err)
					}
					takeAll(t, x, o)
					return o
				}
				o := begin(20)
				if err := o.checkpoint(); err != nil {
					t.Fatal(err)
				}
				o.end()
				o = begin(20)
				if err := o.flush(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, texts(t, x.hosts)); diff != "" {
					t.Fatalf("before the crash: %s", diff)
				}
				o.end() // no checkpoint: as a crash
				x.s.settings.path = settingsOf(t, `{files: {path: "`+paths[1]+`"}}`).path
				o = begin(20)
				if err := o.checkpoint(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, texts(t, x.hosts)); diff != "" {
					t.Error(diff)
				}
				o.end()
			})
		})
	}
}

// TestAFileThatCanBeUndoneKeepsItsName: else a later one of the same name would
// be cut off in its place.
func TestAFileThatCanBeUndoneKeepsItsName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{year}/{host}.log"}}`)
		defer x.end()
		o := beginFiles(t, x)
		path := filepath.Join(x.hosts, "1999", "cn1.log")
		long := time.Now().Add(-2 * retireAfter)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("x\n"), 0o600), os.Chtimes(path, long, long)); err != nil {
			t.Fatal(err)
		}
		retire := func() []string {
			t.Helper()
			if err := errors.Join(o.rotator.tidy(), o.retire()); err != nil {
				t.Fatal(err)
			}
			return filesBelow(t, x.hosts)
		}
		o.undo.note("1999/cn1.log", 0)
		if got := retire(); !slices.Equal(got, []string{"1999/cn1.log"}) {
			t.Errorf("%q", got)
		}
		if err := o.undo.moved(o.next); err != nil {
			t.Fatal(err)
		}
		if got := retire(); len(got) != 1 || !strings.HasPrefix(got[0], "1999/cn1.log.") {
			t.Errorf("when it can no more: %q", got)
		}
	})
}

// TestWhatAnEarlierPathLeftGoesInItsTime, in virtual time: it is put away,
// compressed, and removed after as long as files are kept of a host that logs
// each day. It fails if the paths that were are forgotten.
func TestWhatAnEarlierPathLeftGoesInItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer x.end()
		x.s.settings.rotate.keep = 3
		r := newRun(x, plenty)
		x.store("<13>Nov 25 12:00:00 cn1 test: old")
		r.pass(5 * time.Hour)
		if diff := cmp.Diff([]string{"cn1.log"}, filesBelow(t, x.hosts)); diff != "" {
			t.Fatal(diff)
		}
		r.end()
		x.s.settings.path = settingsOf(t, `{files: {path: "{host}/{app}.log"}}`).path
		r = newRun(x, plenty)
		x.store("<13>Nov 25 12:00:00 cn1 test: new")
		r.pass(2 * time.Hour)
		list := filesBelow(t, x.hosts)
		if len(list) != 2 || !strings.HasPrefix(list[0], "cn1.log.") || !strings.HasSuffix(list[0], zstSuffix) || list[1] != "cn1/test.log" {
			t.Errorf("after two hours: %q", list)
		}
		r.pass(3*24*time.Hour - 3*time.Hour)
		if diff := cmp.Diff([]string{"new", "old"}, texts(t, x.hosts)); diff != "" {
			t.Errorf("before three days: %s", diff)
		}
		r.pass(4 * time.Hour)
		if diff := cmp.Diff([]string{"new"}, texts(t, x.hosts)); diff != "" {
			t.Errorf("after three days: %s", diff)
		}
		r.end()
	})
}

// TestWhatACrashLeftInFoldersIsRemoved, of files that were being compressed.
func TestWhatACrashLeftInFoldersIsRemoved(t *testing.T) {
	dir := t.TempDir()
	names := []string{"cn1/.sshd.log.20261124T000000.000.zst.1", "cn1/.sshd.log.20261124T000000.000.zst.x", ".cn1.log.20261124T000000.000.zst.1", "cn1/x/.y.log.20261124T000000.000.zst.1"}
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	r := newRotator(dir, rotateConfig{}, layoutOf(t, "{host}/{app}.log"), discard())
	if err := r.tidy(); err != nil {
		t.Fatal(err)
	}
	want := slices.Sorted(slices.Values(names[1:]))
	if diff := cmp.Diff(want, filesBelow(t, dir)); diff != "" {
		t.Error(diff)
	}
}
