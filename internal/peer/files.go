package peer

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"holdfast/internal/durable"
)

// The files of a directory made by Init (all but the node's two) or Issue
// (all but ca.key).
const (
	fileCA        = "ca.crt"
	fileCAKey     = "ca.key"
	fileNextKey   = "next.key" // of the authority's directory, while it is changed
	fileNode      = "node.crt"
	fileNodeKey   = "node.key"
	fileGossipKey = "gossip.key"
)

const (
	modePublic fs.FileMode = 0o644
	modeSecret fs.FileMode = 0o600
	maxFile                = 64 << 10 // bytes; a certificate has about one thousand
)

// file is one that is about to be written.
type file struct {
	name string
	mode fs.FileMode
	data []byte
}

// writeAll puts files into dir: first all of them beside their final names,
// safe on the disk, then one rename each. When writing fails, nothing in dir
// has changed. A crash between two renames can leave a new certificate beside
// an old key, which Load reports as such.
func writeAll(dir string, files []file) (err error) {
	var temps []string
	defer func() {
		for _, t := range temps {
			if rmErr := os.Remove(t); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
				err = errors.Join(err, rmErr)
			}
		}
	}()
	for _, f := range files {
		temp, err := writeTemp(dir, f)
		if temp != "" {
			temps = append(temps, temp)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", filepath.Join(dir, f.name), err)
		}
	}
	for i, f := range files {
		if err := os.Rename(temps[i], filepath.Join(dir, f.name)); err != nil {
			return fmt.Errorf("write %s: %w", filepath.Join(dir, f.name), err)
		}
	}
	return durable.SyncDir(dir)
}

// writeTemp writes f under a name nobody can foresee (os.CreateTemp: O_EXCL,
// 0600) and returns the name, also with an error when the file exists by then.
func writeTemp(dir string, f file) (string, error) {
	t, err := os.CreateTemp(dir, "."+f.name+".*")
	if err != nil {
		return "", err
	}
	_, err = t.Write(f.data)
	if err == nil {
		err = t.Chmod(f.mode)
	}
	if err == nil {
		err = t.Sync()
	}
	return t.Name(), errors.Join(err, t.Close())
}

// readFile reads one of a directory's files, with advice when it is not there.
func readFile(dir, name, advice string) ([]byte, error) {
	path := filepath.Join(dir, name)
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s is missing: %s: %w", path, advice, fs.ErrNotExist)
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case st.Size() > maxFile:
		return nil, fmt.Errorf("%s has %d bytes, more than the %d that are possible", path, st.Size(), maxFile)
	}
	return os.ReadFile(path)
}

// readSecret is readFile for what only its owner (and group) may read.
func readSecret(dir, name, advice string) ([]byte, error) {
	data, err := readFile(dir, name, advice)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name)
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s can be read by everybody (mode %04o): chmod 0600 it, and issue it again if others had access to this machine", path, st.Mode().Perm())
	}
	return data, nil
}

// onePEM returns the only block of a PEM file. The error never quotes content.
func onePEM(data []byte, typ string) ([]byte, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != typ {
		return nil, fmt.Errorf("does not hold a PEM block %q", typ)
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, fmt.Errorf("holds more than one PEM block")
	}
	return block.Bytes, nil
}
