package logrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/kernel/filesystem"
)

// beginFiles makes the files' output of a stage, begun.
func beginFiles(t *testing.T, x *stage) *files {
	t.Helper()
	o, err := x.s.newFiles(x.j)
	if err != nil {
		t.Fatal(err)
	}
	o.well = func() {}
	o.rotator.space = func(string) (float64, error) { return 50, nil } // however full this machine's disk is
	if err := o.begin(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.end() })
	return o
}

// fileOf opens the file of a host's line.
func fileOf(o *files, host string) (*hostFile, error) {
	return o.fileOf(&line{host: host, received: o.now()})
}

// TestABusyFileStaysOpenWhenThereAreMoreThanMayBe: the others take turns, and no
// line is lost or doubled by it. An output that closes all of them syncs and
// opens every busy file again.
func TestABusyFileStaysOpenWhenThereAreMoreThanMayBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer x.end()
		o := beginFiles(t, x)
		o.most = 32
		reader := x.j.Reader(o.next)
		defer reader.Close()
		var busy *hostFile
		for round := range 3 {
			var lines []string
			for n := range 100 {
				lines = append(lines, fmt.Sprintf("<13>Nov 25 12:00:00 busy test: seq=%d.", round*100+n), fmt.Sprintf("<13>Nov 25 12:00:00 cn%d test: seq=%d.", n, round))
			}
			x.store(lines...)
			block, ok, err := reader.TryNext()
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			if err := o.take(block); err != nil {
				t.Fatal(err)
			}
			if f := o.open["busy.log"]; f == nil || busy != nil && f != busy {
				t.Fatal("the busy file was closed")
			}
			if busy = o.open["busy.log"]; len(o.open) > o.most {
				t.Fatalf("%d files are open", len(o.open))
			}
		}
		if err := o.checkpoint(); err != nil {
			t.Fatal(err)
		}
		for n := range 100 {
			if got := x.file(fmt.Sprint("cn", n)); len(got) != 3 || !strings.Contains(got[2], "seq=2.") {
				t.Errorf("cn%d: %q", n, got)
			}
		}
		if got := x.file("busy"); len(got) != 300 || !strings.Contains(got[299], "seq=299.") {
			t.Errorf("busy: %d lines", len(got))
		}
	})
}

// TestAFileThatIsOpenedAgainIsAsOldAsItIs: by when it was made, not by its last
// line, so that it is put away in its time however often lines come. Its folder
// is not read. One that is of a later time than now is new.
func TestAFileThatIsOpenedAgainIsAsOldAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cn1.log")
	if err := os.WriteFile(path, []byte("x\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	made, last := info.ModTime(), info.ModTime().Add(23*time.Hour)
	if err = os.Chtimes(path, last, last); err == nil {
		info, err = file.Stat()
	}
	if err != nil {
		t.Fatal(err)
	}
	want := made
	if _, ok := filesystem.Birth(file); !ok {
		t.Log("the file system does not say when files were made")
		want = last
	}
	if born := bornAt(file, info, made.Add(24*time.Hour)); born.Sub(want).Abs() > time.Minute {
		t.Errorf("born %v, want %v", born, want)
	}
	if early := made.Add(-time.Hour); !bornAt(file, info, early).Equal(early) {
		t.Errorf("born %v, want %v", bornAt(file, info, early), early)
	}
}

// TestFilesAreWrittenInTimeUnderASteadyLoad, in virtual time: a line every 40 ms
// for two seconds. A pause that begins anew with each line never ends.
func TestFilesAreWrittenInTimeUnderASteadyLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer x.end()
		o, err := x.s.newFiles(x.j)
		if err != nil {
			t.Fatal(err)
		}
		x.group.Go(func() { _ = o.run(x.ctx, func() {}) })
		for n := range 50 {
			x.store(fmt.Sprintf("<13>Nov 25 12:00:00 cn1 test: seq=%d.", n))
			if got := len(x.file("cn1")); n-got > int((flushLatest+flushEvery)/(40*time.Millisecond))+1 {
				t.Fatalf("%d lines are stored, and %d in the file", n+1, got)
			}
			<-time.After(40 * time.Millisecond)
		}
	})
}

// TestFilesEndInTimeThoughTheJournalHasMore: with a checkpoint, and the rest at
// the next start. Each look at the clock takes a second here.
func TestFilesEndInTimeThoughTheJournalHasMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer x.end()
		for n := range 100 {
			x.store(fmt.Sprintf("<13>Nov 25 12:00:00 cn1 test: seq=%d.", n))
		}
		o, err := x.s.newFiles(x.j)
		if err != nil {
			t.Fatal(err)
		}
		looks := 0
		o.catchUp = 0
		o.now = func() time.Time {
			looks++
			return time.Now().Add(time.Duration(looks) * time.Second)
		}
		ended, end := context.WithCancel(t.Context())
		end()
		if err := o.run(ended, func() {}); err != nil {
			t.Fatal(err)
		}
		next := o.cursor.Next()
		if next == 0 || next >= 100 {
			t.Fatalf("the cursor stands at %d of 100", next)
		}
		if got := len(x.file("cn1")); got != int(next) {
			t.Errorf("%d lines are in the file, and the cursor is at %d", got, next)
		}
		o.now = time.Now
		if err := o.run(ended, func() {}); err != nil {
			t.Fatal(err)
		}
		if got := len(x.file("cn1")); got != 100 || o.cursor.Next() != 100 {
			t.Errorf("after the next start: %d lines, cursor at %d", got, o.cursor.Next())
		}
	})
}

// TestAnUndoBehindATornOneIsRead: the disk was full, then again. What was written
// behind the torn entry is cut off, too.
func TestAnUndoBehindATornOneIsRead(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"a.log", "b.log", "c.log"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("kept, and more"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	note := func(u *undo, names ...string) {
		t.Helper()
		for _, name := range names {
			u.note(name, 4)
		}
		if err := errors.Join(u.sync(), u.close()); err != nil {
			t.Fatal(err)
		}
	}
	u, err := openUndo(dir, dir, 7)
	if err != nil {
		t.Fatal(err)
	}
	note(u, "a.log", "b.log")
	info, err := os.Stat(u.path())
	if err == nil {
		err = os.Truncate(u.path(), info.Size()-3)
	}
	if err != nil {
		t.Fatal(err)
	}
	if u, err = openUndo(dir, dir, 7); err != nil {
		t.Fatal(err)
	}
	note(u, "c.log")
	if u, err = openUndo(dir, dir, 7); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{"a.log": 4, "c.log": 4}, u.sizes); diff != "" {
		t.Errorf("to be undone: %s", diff)
	}
	if err := u.apply(root); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "c.log")); err != nil || string(b) != "kept" {
		t.Errorf("what was written behind the torn entry stays: %q, %v", b, err)
	}
}

// TestWhatACrashLeftOfCompressedFilesIsRemoved, when the rotator begins, and
// nothing else.
func TestWhatACrashLeftOfCompressedFilesIsRemoved(t *testing.T) {
	dir := putAway(t)
	left := []string{".cn1.log.20261124T000000.000.zst.123456", ".cn2.log.20261122T000000.000.zst.9"}
	stay := []string{".notes.zst.1", ".cn1.log.20261124T000000.000.zst.save"}
	for _, name := range slices.Concat(left, stay) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := newRotator(dir, rotateConfig{keep: 10, free: 10}, layoutOf(t), slog.New(slog.DiscardHandler))
	r.space = func(string) (float64, error) { return 50, nil }
	ctx, end := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { r.run(ctx) })
	defer group.Wait()
	defer end()
	eventually(t, time.Minute, "what a crash left", func() error {
		for _, name := range left {
			if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
	for _, name := range stay {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
