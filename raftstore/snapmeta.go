package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"holdfast/internal/durable"
)

// hashicorp/raft keeps a checksum of a snapshot's content and none of what
// describes it: up to which entry it goes, and who votes. A digit that flipped
// there would have this server leave out entries that it never had, and, leading,
// reset all others to an older state. So the description has a checksum of its
// own, in a file beside it, and is compared with the snapshot's name. Snapshots
// of versions before have only the name.

const (
	snapshotsDir   = "snapshots" // as hashicorp/raft calls them
	snapshotTemp   = ".tmp"
	snapshotMeta   = "meta.json"
	snapshotState  = "state.bin"
	snapshotSum    = "meta.sum"
	snapshotSumLen = 8 // hex digits
)

// snapshotStore keeps the checksums, and makes the index of a snapshot known to
// Restore, which Raft gives only the bytes.
type snapshotStore struct {
	raft.SnapshotStore
	dir string // of the snapshots
}

// Create implements raft.SnapshotStore.
func (s snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, err
	}
	meta := raft.SnapshotMeta{Version: version, Index: index, Term: term, Configuration: configuration, ConfigurationIndex: configurationIndex}
	path := filepath.Join(s.dir, sink.ID()+snapshotTemp, snapshotSum) // it gets its name with all else
	if err := durable.Replace(path, []byte(metaSum(meta)), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("write the checksum of snapshot %s: %w", sink.ID(), err), sink.Cancel())
	}
	return sink, nil
}

// covers is the last entry that the newest snapshot has; 0 without one. It reads
// the disk.
func (s snapshotStore) covers() (uint64, error) {
	list, err := s.List()
	if err != nil {
		return 0, fmt.Errorf("list the snapshots: %w", err)
	}
	if len(list) == 0 {
		return 0, nil
	}
	return list[0].Index, nil
}

// Open implements raft.SnapshotStore. ErrDamaged: something of the snapshot is
// not what was written.
func (s snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if _, err := checkSnapshotMeta(filepath.Join(s.dir, id)); err != nil {
		return nil, nil, err
	}
	meta, r, err := s.SnapshotStore.Open(id) // compares the checksum of the content
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot %s: %w", id, asDamage(err))
	}
	return meta, &indexedReader{r, meta.Index}, nil
}

// metaSum is the checksum, in hex, of what describes a snapshot, but for what its
// content shows.
func metaSum(meta raft.SnapshotMeta) string {
	text, _ := json.Marshal(struct { // numbers and texts alone: it can't fail
		Version            raft.SnapshotVersion
		Index, Term        uint64
		Configuration      raft.Configuration
		ConfigurationIndex uint64
	}{meta.Version, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex})
	return fmt.Sprintf("%0*x", snapshotSumLen, crc32.Checksum(text, castagnoli()))
}

// describedSnapshot is hashicorp/raft's meta.json.
type describedSnapshot struct {
	raft.SnapshotMeta
	CRC []byte // CRC-64 of the content, by the polynomial of ECMA-182
}

// checkSnapshotMeta reads what describes the snapshot in dir. ErrDamaged: it is
// not what was written. The content is looked at for its length alone.
func checkSnapshotMeta(dir string) (meta describedSnapshot, err error) {
	id := filepath.Base(dir)
	defer func() {
		if err != nil {
			err = fmt.Errorf("snapshot %s: %w", id, asDamage(err))
		}
	}()
	text, err := os.ReadFile(filepath.Join(dir, snapshotMeta))
	if err != nil {
		return meta, err
	}
	if err := json.Unmarshal(text, &meta); err != nil {
		return meta, fmt.Errorf("%s: %w", snapshotMeta, err)
	}
	named, err := parseSnapshotName(id)
	if err != nil {
		return meta, fmt.Errorf("its name is not TERM-INDEX-TIME: %w", err)
	}
	if meta.ID != id || meta.Term != named[0] || meta.Index != named[1] {
		return meta, fmt.Errorf("%s speaks of snapshot %s, up to entry %d of term %d", snapshotMeta, meta.ID, meta.Index, meta.Term)
	}
	sum, err := os.ReadFile(filepath.Join(dir, snapshotSum))
	switch got := metaSum(meta.SnapshotMeta); {
	case errors.Is(err, fs.ErrNotExist): // of a version before
	case err != nil:
		return meta, err
	case string(sum) != got:
		return meta, fmt.Errorf("the checksum of %s is %s and was %.*s", snapshotMeta, got, snapshotSumLen, sum)
	}
	st, err := os.Stat(filepath.Join(dir, snapshotState))
	if err == nil && st.Size() != meta.Size {
		err = fmt.Errorf("%s has %d bytes, and had %d", snapshotState, st.Size(), meta.Size)
	}
	return meta, err
}

// sameContent compares the checksum of a snapshot's content.
func (d describedSnapshot) sameContent(content io.Reader) error {
	sum := crc64.New(crc64.MakeTable(crc64.ECMA))
	if _, err := io.Copy(sum, content); err != nil {
		return err
	}
	if got := sum.Sum(nil); string(got) != string(d.CRC) {
		return fmt.Errorf("the checksum of %s is %x and was %x", snapshotState, got, d.CRC)
	}
	return nil
}

// snapshotNames lists the snapshots in dir that were finished, oldest first; none
// when there is no such directory. partial are those of which a crash left
// something while they were removed: some file of theirs is gone, and a newer one
// is there.
func snapshotNames(dir string) (names, partial []string, err error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	for _, d := range list {
		if !d.IsDir() || strings.HasSuffix(d.Name(), snapshotTemp) {
			continue
		}
		_, noMeta := os.Stat(filepath.Join(dir, d.Name(), snapshotMeta))
		if _, foreign := parseSnapshotName(d.Name()); foreign != nil && errors.Is(noMeta, fs.ErrNotExist) {
			continue // somebody's own, which hashicorp/raft does not see either
		}
		names = append(names, d.Name())
	}
	slices.SortFunc(names, func(a, b string) int {
		x, _ := parseSnapshotName(a) // what has no such name is found when it is looked at
		y, _ := parseSnapshotName(b)
		return slices.Compare(x[:], y[:])
	})
	whole := names[:0:0]
	for i, name := range names {
		_, noMeta := os.Stat(filepath.Join(dir, name, snapshotMeta))
		_, noState := os.Stat(filepath.Join(dir, name, snapshotState))
		if i+1 < len(names) && (errors.Is(noMeta, fs.ErrNotExist) || errors.Is(noState, fs.ErrNotExist)) {
			partial = append(partial, name)
			continue
		}
		whole = append(whole, name)
	}
	return whole, partial, err
}

// parseSnapshotName takes the name of a snapshot apart: its last entry's term and
// index, and when it was made in milliseconds since 1970.
func parseSnapshotName(name string) (parts [3]uint64, err error) {
	_, err = fmt.Sscanf(name, "%d-%d-%d", &parts[0], &parts[1], &parts[2])
	if err == nil && name != fmt.Sprintf("%d-%d-%d", parts[0], parts[1], parts[2]) {
		err = errors.New("something is behind it")
	}
	return parts, err
}

// examineSnapshots reads what describes all snapshots in dir, each of which can
// count as the newest if it is wrong, and the content of the newest. It returns
// the last entry that this has, and its term: 0 without a snapshot.
func examineSnapshots(dir string, store raft.SnapshotStore) (covered, term uint64, err error) {
	names, _, err := snapshotNames(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("list the snapshots: %w", err)
	}
	for _, name := range names {
		if _, err := checkSnapshotMeta(filepath.Join(dir, name)); err != nil {
			return 0, 0, err
		}
	}
	list, err := store.List()
	if err != nil {
		return 0, 0, fmt.Errorf("list the snapshots: %w", err)
	}
	if len(list) == 0 && len(names) > 0 {
		return 0, 0, fmt.Errorf("snapshot %s: %w: none of %d can be read", names[len(names)-1], ErrDamaged, len(names))
	}
	if len(list) == 0 {
		return 0, 0, nil
	}
	meta, r, err := store.Open(list[0].ID)
	if err != nil {
		return 0, 0, err
	}
	_, err = io.Copy(io.Discard, r)
	if err := errors.Join(err, r.Close()); err != nil {
		return 0, 0, fmt.Errorf("snapshot %s: %w", list[0].ID, asDamage(err))
	}
	return meta.Index, meta.Term, nil
}
