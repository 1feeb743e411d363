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

// claim writes into the data directory whose it is, and keeps others out for
// as long as release is not called. The directory of another node is refused:
// the Raft ID and the log in it are that node's, and of a disk image that was
// given to two nodes both would vote as one.
func claim(dataDir, node string) (release func(), err error) {
	path := filepath.Join(dataDir, "node-name")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := claimFile(file, node); err != nil {
		file.Close()
		return nil, fmt.Errorf("data directory %s: %w", dataDir, err)
	}
	return func() { file.Close() }, nil
}

func claimFile(file *os.File, node string) error {
	err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.New("another agent runs on it")
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	text, err := io.ReadAll(io.LimitReader(file, 1<<10))
	if err != nil {
		return err
	}
	owner, whole := strings.CutSuffix(string(text), "\n")
	switch {
	case whole && strings.EqualFold(owner, node):
		return nil
	case whole:
		return fmt.Errorf("it belongs to node %q and this is %s: empty it, and the node is taken in anew; if the node was renamed, remove %s",
			owner, node, file.Name())
	}
	// New, or cut short by a crash.
	if _, err := file.WriteAt([]byte(node+"\n"), 0); err != nil {
		return err
	}
	return errors.Join(file.Truncate(int64(len(node)+1)), file.Sync())
}
