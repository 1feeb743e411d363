package lab

import (
	"os"
	"path/filepath"
	"testing"
)

// TestALabThatIsKeptMeanwhileStays: its owner may end it after another has opened its
// lock file and before that one locks it. It fails if the lock alone makes the
// directory one to remove.
func TestALabThatIsKeptMeanwhileStays(t *testing.T) {
	for name, end := range map[string]struct {
		ended     func(*labDir) error
		abandoned bool
	}{
		"it lives":    {func(*labDir) error { return nil }, false},
		"it is kept":  {func(d *labDir) error { d.keep = true; return d.close() }, false},
		"it is over":  {(*labDir).close, false},
		"it has died": {func(d *labDir) error { return d.lock.Close() }, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := makeLabDir(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer dir.lock.Close() // once more, where it has ended
			lock, err := os.Open(filepath.Join(dir.path, lockName))
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Close()
			if err := end.ended(dir); err != nil {
				t.Fatal(err)
			}
			if abandoned, err := takeOver(lock); abandoned != end.abandoned || err != nil {
				t.Errorf("is nobody's: %v, %v; want %v", abandoned, err, end.abandoned)
			}
		})
	}
}
