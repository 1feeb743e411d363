package logrelay

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
)

// TestFailuresOfManyFilesAreFewLines: what is said of 100,000 files has a bound,
// and is found with errors.Is. It fails if each error is joined to all before it.
func TestFailuresOfManyFilesAreFewLines(t *testing.T) {
	var f failures
	f.add(nil)
	if err := f.err(); err != nil {
		t.Errorf("nothing failed: %v", err)
	}
	for range 100_000 {
		f.add(&fs.PathError{Op: "remove", Path: "cn1.log", Err: fs.ErrPermission})
	}
	said := f.err()
	if lines := strings.Split(said.Error(), "\n"); len(lines) != firstFailures+1 || lines[firstFailures] != "and 99995 more" || !errors.Is(said, fs.ErrPermission) {
		t.Errorf("%q", lines)
	}
	if f.err().Error() != said.Error() {
		t.Error("it says something else the second time")
	}
}
