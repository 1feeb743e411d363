// Package durable replaces files so that a power cut at any moment leaves
// either the old content or the new, never a part of one.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Replace puts data in the place of path's content, or makes the file. It
// blocks until the data, and the file's name, are on the disk. On an error
// the old content is there, and nothing else is left behind.
func Replace(path string, data []byte, mode fs.FileMode) error {
	return ReplaceFunc(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// ReplaceFunc is Replace with the content that write writes. An error of
// write is returned as it is.
func ReplaceFunc(path string, mode fs.FileMode, write func(io.Writer) error) error {
	dir := filepath.Dir(path)
	// A name that nobody can foresee, opened with O_EXCL and mode 0600.
	file, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	if err := fill(file, mode, write); err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return SyncDir(dir)
}

func fill(file *os.File, mode fs.FileMode, write func(io.Writer) error) error {
	err := write(file)
	if err == nil {
		err = file.Chmod(mode)
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// SyncDir makes the names in a directory durable: files that were made,
// renamed or removed in it.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
