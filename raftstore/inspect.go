package raftstore

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"holdfast/internal/state"
)

// Inspection is what a server's data directory holds, read without changing it.
type Inspection struct {
	Dir     string `json:"dir"`
	NodeID  string `json:"node_id"`
	StoreID string `json:"store_id"` // "" none was formed or joined

	Term       uint64            `json:"term"`        // current
	FirstIndex uint64            `json:"first_index"` // of the log; 0: it is empty
	LastIndex  uint64            `json:"last_index"`  // of the log or, if that is later, of the newest snapshot
	LastTerm   uint64            `json:"last_term"`   // of that entry
	Entries    map[string]uint64 `json:"entries,omitempty"`
	Tail       []InspectedEntry  `json:"tail,omitempty"` // the last entries, oldest first

	Servers   []state.RaftServer  `json:"servers"` // the latest configuration, committed or not
	Snapshots []InspectedSnapshot `json:"snapshots"`
	// Damage says what does not check out; "" all does.
	Damage string `json:"damage,omitempty"`
}

// InspectedEntry is an entry of the log.
type InspectedEntry struct {
	Index   uint64 `json:"index"`
	Term    uint64 `json:"term"`
	Type    string `json:"type"`              // as Raft calls it
	Command string `json:"command,omitempty"` // what kind of command, when it is one
	Bytes   int    `json:"bytes"`
}

// InspectedSnapshot is one of Raft's snapshots.
type InspectedSnapshot struct {
	ID      string `json:"id"`
	Index   uint64 `json:"index"`
	Term    uint64 `json:"term"`
	Bytes   int64  `json:"bytes"`
	Problem string `json:"problem,omitempty"` // "" its content checks out
}

// maxTail is how many entries Inspect lists at most.
const maxTail = 1000

// Inspect reads the data directory of a server that is down: all of the log
// and the snapshots, with their checksums, and lists the last tail entries. It
// changes nothing. What is damaged is told in the Inspection; an error is that
// the directory can't be read, or that an agent has it open.
func Inspect(dataDir string, tail int) (Inspection, error) {
	in := Inspection{Dir: dataDir, Entries: map[string]uint64{}}
	data, err := os.ReadFile(filepath.Join(dataDir, recordName))
	if err != nil {
		return in, fmt.Errorf("inspect %s: it is no server's data directory, or lost its record: %w", dataDir, err)
	}
	r, err := decodeRecord(data)
	if err != nil {
		in.Damage = err.Error()
	}
	in.NodeID, in.StoreID = r.NodeID, r.ClusterID
	latest, err := in.readSnapshots(filepath.Join(dataDir, "raft", "snapshots"))
	if err != nil {
		return in, fmt.Errorf("inspect %s: %w", dataDir, err)
	}
	err = in.readLog(filepath.Join(dataDir, "raft", logName), min(tail, maxTail), &latest)
	if errors.Is(err, ErrDamaged) || errors.Is(err, syscall.EIO) { // what the disk can't read, nobody will take up
		in.Damage = strings.TrimPrefix(in.Damage+"; "+err.Error(), "; ")
		err = nil
	}
	if err != nil {
		return in, fmt.Errorf("inspect %s: %w", dataDir, err)
	}
	in.setServers(latest)
	return in, nil
}

func (in *Inspection) setServers(c raft.Configuration) {
	in.Servers = []state.RaftServer{}
	for _, s := range c.Servers {
		in.Servers = append(in.Servers, state.RaftServer{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
}

// readSnapshots reads hashicorp/raft's directories, newest first, and gives the
// configuration of the newest that checks out.
func (in *Inspection) readSnapshots(dir string) (latest raft.Configuration, err error) {
	names, _, err := snapshotNames(dir)
	if err != nil {
		return latest, err
	}
	type described struct {
		InspectedSnapshot
		configuration raft.Configuration
	}
	var all []described
	for _, name := range names {
		s := described{InspectedSnapshot: InspectedSnapshot{ID: name}}
		if meta, err := readSnapshotMeta(filepath.Join(dir, name)); err != nil {
			s.Problem = err.Error()
		} else {
			s.Index, s.Term, s.Bytes, s.configuration = meta.Index, meta.Term, meta.Size, meta.Configuration
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b described) int { return cmp.Compare(b.Index, a.Index) })
	for _, s := range all {
		in.Snapshots = append(in.Snapshots, s.InspectedSnapshot)
		if s.Problem != "" {
			in.Damage = strings.TrimPrefix(in.Damage+"; snapshot "+s.ID+": "+s.Problem, "; ")
		} else if s.Index > in.LastIndex {
			in.LastIndex, in.LastTerm, latest = s.Index, s.Term, s.configuration
		}
	}
	return latest, nil
}

// readSnapshotMeta reads what describes a snapshot, and verifies its content.
func readSnapshotMeta(dir string) (meta raft.SnapshotMeta, err error) {
	described, err := checkSnapshotMeta(dir)
	if err != nil {
		return described.SnapshotMeta, err
	}
	f, err := os.Open(filepath.Join(dir, snapshotState))
	if err != nil {
		return described.SnapshotMeta, err
	}
	defer f.Close()
	if err := described.sameContent(f); err != nil {
		return described.SnapshotMeta, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return described.SnapshotMeta, err
	}
	_, err = state.Inspect(f)
	return described.SnapshotMeta, err
}

// readLog reads the log, and takes over the configuration that it has last.
func (in *Inspection) readLog(path string, tail int, latest *raft.Configuration) error {
	if _, err := os.Stat(path); err != nil { // bolt would make a new log
		return err
	}
	bolt, err := openBoltWith(path, &bbolt.Options{Timeout: time.Second, ReadOnly: true}, once)
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return errors.New("an agent has it open: ask that (holdfast raft list-peers), or stop it first")
	}
	if err != nil {
		return err
	}
	defer bolt.Close()
	log, stable := &checkedLog{LogStore: bolt}, checkedStable{bolt}
	if format, err := readFormat(bolt); errors.Is(err, ErrDamaged) {
		return err
	} else if err == nil && format >= formatFronted {
		if log.LogStore, err = readFront(filepath.Dir(path), bolt); err != nil {
			return err
		}
	}
	return soundly(func() error {
		in.Term, err = stable.GetUint64([]byte(keyTerm))
		if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return err
		}
		if err := in.readEntries(log, tail, latest); err != nil {
			return err
		}
		newest := in.newestSnapshot()
		return examineLog(log, stable, newest.Index, newest.Term)
	})
}

// newestSnapshot is the newest that checks out; a zero one: there is none.
func (in *Inspection) newestSnapshot() InspectedSnapshot {
	for _, s := range in.Snapshots {
		if s.Problem == "" {
			return s
		}
	}
	return InspectedSnapshot{}
}

func (in *Inspection) readEntries(log *checkedLog, tail int, latest *raft.Configuration) error {
	first, err := log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	in.FirstIndex = first
	for i := first; i <= last && last > 0; i++ {
		var entry raft.Log
		err := log.read(i, &entry)
		if errors.Is(err, raft.ErrLogNotFound) && i <= in.newestSnapshot().Index {
			continue
		}
		if errors.Is(err, raft.ErrLogNotFound) {
			return nil // examineLog names the gap; the last index can be any number
		}
		if err != nil {
			return err
		}
		in.Entries[entry.Type.String()]++
		if i+uint64(tail) > last {
			in.Tail = append(in.Tail, InspectedEntry{entry.Index, entry.Term, entry.Type.String(), commandName(entry), len(entry.Data)})
		}
		if entry.Type == raft.LogConfiguration && entry.Index > in.newestSnapshot().Index {
			*latest = raft.DecodeConfiguration(entry.Data)
		}
		if i >= in.LastIndex {
			in.LastIndex, in.LastTerm = entry.Index, entry.Term
		}
	}
	return nil
}

// commandName names what a command does, such as "KV".
func commandName(entry raft.Log) string {
	if entry.Type != raft.LogCommand {
		return ""
	}
	cmd, err := state.Decode(entry.Data)
	if err != nil {
		return "unknown"
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", cmd), "state.")
}
