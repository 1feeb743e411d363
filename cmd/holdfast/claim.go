package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// claimed is a data directory that no other agent runs on.
type claimed struct {
	file *os.File
	node string
}

// claim keeps others out of the data directory until release. The directory of
// another node is refused: the Raft ID and the log in it are that node's, and
// of a disk image that was given to two nodes both would vote as one. Nothing
// is written before keep: a start that failed leaves the directory nobody's.
func claim(dataDir, node string) (*claimed, error) {
	path := filepath.Join(dataDir, "node-name")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	c := &claimed{file, node}
	if _, err := c.owned(); err != nil {
		file.Close()
		return nil, fmt.Errorf("data directory %s: %w", dataDir, err)
	}
	return c, nil
}

func (c *claimed) release() { c.file.Close() }

// owned locks the directory and tells whether it is the node's already.
func (c *claimed) owned() (bool, error) {
	err := syscall.Flock(int(c.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, errors.New("another agent runs on it")
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", c.file.Name(), err)
	}
	text, err := io.ReadAll(io.NewSectionReader(c.file, 0, 1<<10))
	if err != nil {
		return false, err
	}
	owner, whole := strings.CutSuffix(string(text), "\n")
	if whole && !strings.EqualFold(owner, c.node) {
		return false, fmt.Errorf("it belongs to node %q and this is %s: empty it, and the node is taken in anew; if the node was renamed, remove %s",
			owner, c.node, c.file.Name())
	}
	return whole, nil // otherwise new, or cut short by a crash
}

// keep writes into the directory whose it is.
func (c *claimed) keep() error {
	owned, err := c.owned()
	if owned || err != nil {
		return err
	}
	if _, err := c.file.WriteAt([]byte(c.node+"\n"), 0); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return errors.Join(c.file.Truncate(int64(len(c.node)+1)), c.file.Sync())
}
