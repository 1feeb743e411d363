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
