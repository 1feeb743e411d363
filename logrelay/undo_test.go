package logrelay

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// TestACrashBeforeAChangeOfTheFolderCutsNoFileOfThere: what was written since the
// last checkpoint is cut off in the folder where it is, twice in a row, and the
// other folder's file of the same name keeps what it has. It fails if an undo is
// applied in the folder of now.
func TestACrashBeforeAChangeOfTheFolderCutsNoFileOfThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer x.end()
		first, second := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
		if err := errors.Join(os.Mkdir(first, 0o755), os.WriteFile(filepath.Join(first, "cn1.log"), []byte("x: precious\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		begin := func(dir string) *files {
			t.Helper()
			x.s.settings.dir = dir
			o := beginFiles(t, x)
			takeAll(t, x, o)
			if err := o.flush(); err != nil {
				t.Fatal(err)
			}
			return o
		}
		x.store("<13>Nov 25 12:00:00 cn1 test: one")
		for _, step := range []struct {
			now           string
			first, second []string
		}{
			{second, []string{"precious"}, []string{"one"}},
			{first, []string{"one", "precious"}, []string{}},
			{second, []string{"precious"}, []string{"one"}},
		} {
			o := begin(step.now)
			for dir, want := range map[string][]string{first: step.first, second: step.second} {
				if diff := cmp.Diff(append([]string{}, want...), append([]string{}, texts(t, dir)...)); diff != "" {
					t.Errorf("with files in %s, %s has: %s", step.now, dir, diff)
				}
			}
			o.end() // no checkpoint: as a crash
		}
		if err := os.RemoveAll(second); err != nil { // a folder that went with its disk stops nobody
			t.Fatal(err)
		}
		o := begin(first)
		if err := o.checkpoint(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"one", "precious"}, texts(t, first)); diff != "" {
			t.Error(diff)
		}
	})
}

// TestAFileThatIsRemovedOrCutHasNoLineTwice, through crashes: by hand, while it is
// written, or while the relay is down and what it wrote is to be undone. It fails
// if the length that a file had outlives it, or if what is written is not looked
// at: what comes after is then not cut off.
func TestAFileThatIsRemovedOrCutHasNoLineTwice(t *testing.T) {
	empty := func(path string) error { return os.Truncate(path, 0) }
	for name, hand := range map[string]struct{ running, down func(path string) error }{
		"removed while down": {down: os.Remove}, "cut while down": {down: empty}, "cut while it runs": {running: empty},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newStage(t, `{}`)
				defer x.end()
				path := filepath.Join(x.hosts, "cn1.log")
				x.store("<13>Nov 25 12:00:00 cn1 test: 1")
				o := beginFiles(t, x)
				takeAll(t, x, o)
				if err := o.checkpoint(); err != nil {
					t.Fatal(err)
				}
				if hand.running != nil {
					if err := hand.running(path); err != nil {
						t.Fatal(err)
					}
				}
				x.store("<13>Nov 25 12:00:00 cn1 test: 2")
				for crash := range 2 {
					takeAll(t, x, o)
					if err := o.flush(); err != nil {
						t.Fatal(err)
					}
					o.end() // no checkpoint: as a crash
					if crash == 0 && hand.down != nil {
						if err := hand.down(path); err != nil {
							t.Fatal(err)
						}
					}
					o = beginFiles(t, x)
				}
				takeAll(t, x, o)
				if err := o.checkpoint(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]string{"2"}, texts(t, x.hosts)); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestWhatIsReadOfAnUndoIsWrittenAnew, of both folders: a run may have ended since
// its entries were refused by the disk, and then they are in memory alone. It fails
// where the file that was read is gone on with.
func TestWhatIsReadOfAnUndoIsWrittenAnew(t *testing.T) {
	dir, before, now := t.TempDir(), t.TempDir(), t.TempDir()
	for _, folder := range []string{before, now} {
		if err := os.WriteFile(filepath.Join(folder, "cn1.log"), []byte("kept, and more"), 0o600); err != nil {
			t.Fatal(err)
		}
		u, err := openUndo(dir, folder, 7)
		if err != nil {
			t.Fatal(err)
		}
		u.note("cn1.log", 4)
		if err := errors.Join(u.sync(), u.close()); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(now)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	u, err := openUndo(dir, now, 7)
	if err != nil {
		t.Fatal(err)
	}
	was, err := os.Stat(u.path())
	if err == nil {
		err = u.apply(root)
	}
	if err != nil {
		t.Fatal(err)
	}
	u.note("cn2.log", 5)
	if err := errors.Join(u.sync(), u.close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(u.path())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]int64{before: {"cn1.log": 4}, now: {"cn1.log": 4, "cn2.log": 5}}
	got, sound := parseUndo(b, now)
	if is, err := os.Stat(u.path()); err != nil || os.SameFile(was, is) || sound != len(b) {
		t.Errorf("the same file as before, %d bytes of %d are sound, %v", sound, len(b), err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
