package filesystem_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/kernel/filesystem"
)

// It fails where the error of a file that is closed, or its name, is lost.
func TestSync(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := filesystem.Sync(folder); err != nil {
		t.Error(err)
	}
	if err := folder.Close(); err != nil {
		t.Fatal(err)
	}
	var at *fs.PathError
	if err := filesystem.Sync(folder); !errors.As(err, &at) || at.Path != dir {
		t.Errorf("of a folder that is closed: %v", err)
	}
}

// It fails where the time of the last write, which can be set, is taken.
func TestBirth(t *testing.T) {
	before := time.Now().Add(-time.Second) // the kernel's clock ticks
	file, err := os.Create(filepath.Join(t.TempDir(), "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := os.Chtimes(file.Name(), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	at, ok := filesystem.Birth(file)
	if !ok {
		if os.Getenv("CI") != "" {
			t.Fatal("the file system of the test's folder keeps no time of birth: set TMPDIR to a directory on ext4, xfs or btrfs")
		}
		t.Skip("the file system of the test's folder keeps no time of birth")
	}
	if at.Before(before) || at.After(time.Now()) {
		t.Errorf("made at %v, by the file system", at)
	}
}
