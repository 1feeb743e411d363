package logrelay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"

	"holdfast/internal/durable"
)

// renumbered knows which numbers of this node's lines may have been given twice,
// to lines that a power cut took from its disk, and to others since. Of those,
// another node may have the first, and say that it has them. That must outlive the
// process: the next one finds the second ones on its disk, and they are sound. It
// belongs to one goroutine.
type renumbered struct {
	keptNumbers
	path    string
	log     *slog.Logger
	replace func(path string, data []byte, mode fs.FileMode) error
	dirty   bool // the file is not as this is
	told    bool // likewise, and the log says so
}

// keptNumbers is what a renumbered has in its file.
type keptNumbers struct {
	// Base is the first of these numbers for a node that is not in Nodes: the
	// least end that the journal had at a start, and 0 where that isn't known.
	Base uint64 `json:"base"`
	// Nodes have stored lines once. Base is counted anew for each since it last
	// did; the greatest number: there was no start since.
	Nodes map[string]uint64 `json:"nodes"`
}

const renumberedFile = "renumbered.json"

func newRenumbered(dir string, log *slog.Logger) *renumbered {
	return &renumbered{path: filepath.Join(dir, renumberedFile), log: log, replace: durable.Replace}
}

// open is for a start at which the journal has all before end. Without a file
// another node is believed nothing, and gets what the cursor keeps once more. If the
// file can't be written, on a full disk, that is logged, the relay starts, and save
// tries it again.
func (r *renumbered) open(end uint64) {
	b, err := os.ReadFile(r.path)
	if err == nil {
		err = json.Unmarshal(b, &r.keptNumbers)
	}
	if err != nil {
		r.keptNumbers = keptNumbers{}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("which lines another node has can't be read, so that it may get some once more", "file", r.path, "error", err)
	}
	r.starts(end)
	r.dirty = true
	r.save()
}

// keepRenumbered is for a start at which no other node is to have this one's lines,
// and at which the journal has all before end. Numbers that are given twice then are
// noted as ever, or another node that is to have the lines later would get the whole
// journal once more. It fails where the file can be neither written nor removed.
func keepRenumbered(dir string, log *slog.Logger, end uint64) error {
	r := newRenumbered(dir, log)
	if _, err := os.Lstat(r.path); errors.Is(err, fs.ErrNotExist) {
		return nil // there has been no other node yet
	}
	if r.open(end); !r.dirty {
		return nil
	}
	if _, err := os.Lstat(r.path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("logrelay: %s says too much of what other nodes have, and can be neither written nor removed: remove it", r.path)
	}
	return nil
}

// starts says that the process is a new one, whose journal has all before end.
func (k *keptNumbers) starts(end uint64) {
	k.Base = min(k.Base, end)
	for node, from := range k.Nodes {
		k.Nodes[node] = min(from, end)
	}
}

// before is up to where a node is believed to have this one's lines.
func (k *keptNumbers) before(node string) uint64 {
	if from, ok := k.Nodes[node]; ok {
		return from
	}
	return k.Base
}

// begins is the first line to send to a node which says that it has all before next.
func (k *keptNumbers) begins(node string, next uint64) uint64 {
	return min(next, k.before(node))
}

// agree notes that a node has no lines but as they are numbered now. It returns
// whether that is news.
func (k *keptNumbers) agree(node string) bool {
	if k.Nodes[node] == math.MaxUint64 {
		return false
	}
	if k.Nodes == nil {
		k.Nodes = map[string]uint64{}
	}
	k.Nodes[node] = math.MaxUint64
	return true
}

// agrees is agree, and on the disk.
func (r *renumbered) agrees(node string) {
	if r.agree(node) {
		r.dirty = true
		r.save()
	}
}

// save blocks until the file is as this is, or can't be. Then it is removed, since
// it may say too much: that needs no space, and a start without it is safe.
func (r *renumbered) save() {
	if !r.dirty {
		return
	}
	b, err := json.Marshal(r.keptNumbers)
	if err == nil {
		err = r.replace(r.path, b, 0o600)
	}
	if err == nil {
		r.dirty, r.told = false, false
		return
	}
	if gone := os.Remove(r.path); gone == nil {
		err = errors.Join(err, durable.SyncDir(filepath.Dir(r.path)))
	} else if !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	if r.told {
		return // it is tried every second, while no other node takes lines
	}
	r.told = true
	r.log.Error("up to where other nodes have this one's lines is not written down", "error", fmt.Errorf("logrelay: %w", err))
}
