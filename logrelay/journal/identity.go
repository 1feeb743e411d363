package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"holdfast/internal/durable"
)

const identityFile = "identity"

// ID tells this journal from all others, and from the one that was here before
// the disk was wiped: a record's number means something beside it alone.
func (j *Journal) ID() [16]byte { return j.id }

func (j *Journal) identify() error {
	path := filepath.Join(j.config.Dir, identityFile)
	b, err := os.ReadFile(path)
	if err == nil && len(b) == len(j.id) {
		copy(j.id[:], b)
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("journal: %w", err)
	}
	_, _ = rand.Read(j.id[:]) // never fails
	if err := durable.Replace(path, j.id[:], 0o600); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}
