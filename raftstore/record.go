package raftstore

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"holdfast/internal/durable"
)

// record is what this server must never forget beside Raft's own log: whose
// data directory this is, the store it belongs to, and what it promised while
// one was being formed.
type record struct {
	NodeID    string   `json:"node_id"`
	ClusterID string   `json:"cluster_id,omitempty"` // "" until a store was formed or joined
	HasLog    bool     `json:"has_log,omitempty"`    // there is a file of Raft's log: without it this server must not vote
	Forming   acceptor `json:"forming"`
}

const (
	// The record lies beside the node's ID and not in the directory of the log:
	// who empties that one, and leaves the ID, takes the votes that were given
	// under the ID, which must not go unnoticed.
	recordName   = "store-identity"
	recordHeader = "holdfast-store 1 " // then the SHA-256 of the rest in hex, and a newline
	maxRecord    = 1 << 20             // bytes
)

var errRecord = errors.New("the record of this server's store is damaged")

// encode gives the bytes of the file.
func (r record) encode() ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return fmt.Appendf(nil, "%s%s\n%s", recordHeader, hex.EncodeToString(sum[:]), body), nil
}

// decodeRecord is encode's inverse. A damaged record is never guessed at: a
// forgotten promise could let two stores be formed.
func decodeRecord(data []byte) (record, error) {
	if len(data) > maxRecord {
		return record{}, fmt.Errorf("%w: %d bytes", errRecord, len(data))
	}
	head, body, ok := bytes.Cut(data, []byte("\n"))
	sumText, known := bytes.CutPrefix(head, []byte(recordHeader))
	if !ok || !known {
		return record{}, fmt.Errorf("%w: it does not begin with %q", errRecord, recordHeader)
	}
	sum := sha256.Sum256(body)
	if hex.EncodeToString(sum[:]) != string(sumText) {
		return record{}, fmt.Errorf("%w: its checksum does not match", errRecord)
	}
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		return record{}, fmt.Errorf("%w: %w", errRecord, err)
	}
	return r, r.validate()
}

func (r record) validate() error {
	if r.ClusterID != "" && !validUUID(r.ClusterID) {
		return fmt.Errorf("%w: cluster ID %q is not a UUID", errRecord, r.ClusterID)
	}
	for _, d := range []*decree{r.Forming.Accepted, r.Forming.Decided} {
		if d == nil {
			continue
		}
		if err := d.validate(); err != nil {
			return fmt.Errorf("%w: %w", errRecord, err)
		}
	}
	if d := r.Forming.Decided; d != nil && r.ClusterID != "" && d.ClusterID != r.ClusterID {
		return fmt.Errorf("%w: it was decided to form %s but belongs to %s", errRecord, d.ClusterID, r.ClusterID)
	}
	return nil
}

// recordFile keeps the record on disk. Its methods may be called from any
// goroutine.
type recordFile struct {
	path string
	mu   sync.Mutex
	now  record
}

// openRecord reads the record in dir, or begins one for a server that never
// ran.
func openRecord(dir, nodeID string) (*recordFile, error) {
	f := &recordFile{path: filepath.Join(dir, recordName), now: record{NodeID: nodeID}}
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of this server's store: %w", err)
	}
	if f.now, err = decodeRecord(data); err != nil {
		return nil, fmt.Errorf("%s: %w; restore it, or wipe the data directory of this server: the others will take it back", f.path, err)
	}
	if f.now.NodeID != nodeID {
		return nil, fmt.Errorf("%s belongs to node ID %s, this node's is now %s: wipe the data directory, or put the ID back", f.path, f.now.NodeID, nodeID)
	}
	return f, nil
}

// get is the record as it is on disk.
func (f *recordFile) get() record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// update lets change work on a copy and, when it says so, makes the copy safe
// on disk before it counts.
func (f *recordFile) update(change func(*record) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.now
	if !change(&next) {
		return nil
	}
	if err := next.validate(); err != nil {
		return err
	}
	data, err := next.encode()
	if err != nil {
		return err
	}
	if err := durable.Replace(f.path, data, 0o600); err != nil {
		return fmt.Errorf("keep the record of this server's store: %w", err)
	}
	f.now = next
	return nil
}

// setClusterID makes this server belong to a store, for good.
func (f *recordFile) setClusterID(id string) error {
	if !validUUID(id) {
		return fmt.Errorf("cluster ID %q is not a UUID", id)
	}
	var conflict error
	err := f.update(func(r *record) bool {
		if r.ClusterID != "" && r.ClusterID != id {
			conflict = fmt.Errorf("this server belongs to store %s and cannot join %s", r.ClusterID, id)
		}
		if d := r.Forming.Decided; d != nil && d.ClusterID != id {
			conflict = fmt.Errorf("this server helped to form store %s and cannot join %s", d.ClusterID, id)
		}
		if conflict != nil || r.ClusterID == id {
			return false
		}
		r.ClusterID = id
		return true
	})
	return errors.Join(conflict, err)
}

// newUUID makes a random UUID (RFC 9562 §5.4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails since Go 1.24
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// validUUID checks the form of a UUID, lower case.
func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
			continue
		}
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
