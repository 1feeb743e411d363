package filesystem_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

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
