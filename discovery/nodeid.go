package discovery

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"holdfast/internal/durable"
)

const nodeIDFile = "node-id"

// NodeIDFile is the name of the file with the node's UUID, in the data directory.
const NodeIDFile = nodeIDFile

// NodeID reads the node's UUID from its data directory, and makes both when
// they are not there. It names the directory rather than the machine: after a
// disk was wiped the node is another one, under the same name. The UUID is on
// the disk when NodeID returns. A damaged file is an error: with another ID
// the Raft log beside it would not be ours.
func NodeID(dataDir string) (string, error) {
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return "", fmt.Errorf("discovery: make the data directory: %w", err)
	}
	path := filepath.Join(dataDir, nodeIDFile)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		id := newUUID()
		if err := durable.Replace(path, []byte(id+"\n"), 0o600); err != nil {
			return "", fmt.Errorf("discovery: keep the node's ID: %w", err)
		}
		return id, nil
	case err != nil:
		return "", fmt.Errorf("discovery: read the node's ID: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if !validUUID(id) {
		return "", fmt.Errorf("discovery: %s holds %.40q, not a UUID; restore it, or wipe %s to come back as a new node", path, id, dataDir)
	}
	return id, nil
}

// newUUID makes a random UUID (RFC 9562 §5.4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (r == '-') || !dash && !strings.ContainsRune("0123456789abcdefABCDEF", r) {
			return false
		}
	}
	return true
}
