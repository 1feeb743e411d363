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
	path string
	log  *slog.Logger
	kept keptNumbers
}

// keptNumbers is a renumbered in its file.
type keptNumbers struct {
	// Base is the first of these numbers for a node that is not in Nodes: the
	// least end that the journal had at a start.
	Base uint64 `json:"base"`
	// Nodes have stored lines once. Base is counted anew for each since it last
	// did; the greatest number: there was no start since.
	Nodes map[string]uint64 `json:"nodes"`
}

const renumberedFile = "renumbered.json"

// openRenumbered is for a start at which the journal has all before end. If the file
// can't be written, on a full disk, that is logged and the relay starts: it does harm
// only if this node then starts once more before another one has stored lines.
func openRenumbered(dir string, end uint64, log *slog.Logger) *renumbered {
	r := &renumbered{path: filepath.Join(dir, renumberedFile), log: log}
	b, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		r.kept.Base = end
	} else if err == nil {
		err = json.Unmarshal(b, &r.kept)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("which lines another node has can't be read, so that it may get some once more", "file", r.path, "error", err)
		r.kept.Base, r.kept.Nodes = 0, nil
	}
	r.kept.Base = min(r.kept.Base, end)
	for node, from := range r.kept.Nodes {
		r.kept.Nodes[node] = min(from, end)
	}
	r.save()
	return r
}

// before is up to where a node is believed to have this one's lines.
func (r *renumbered) before(node string) uint64 {
	if from, ok := r.kept.Nodes[node]; ok {
		return from
	}
	return r.kept.Base
}

// agrees says that a node has no lines but as they are numbered now.
func (r *renumbered) agrees(node string) {
	if r.kept.Nodes[node] == math.MaxUint64 {
		return
	}
	if r.kept.Nodes == nil {
		r.kept.Nodes = map[string]uint64{}
	}
	r.kept.Nodes[node] = math.MaxUint64
	r.save()
}

func (r *renumbered) save() {
	b, err := json.Marshal(r.kept)
	if err == nil {
		err = durable.Replace(r.path, b, 0o600)
	}
	if err != nil {
		r.log.Error("up to where other nodes have this one's lines is not written down", "error", fmt.Errorf("logrelay: %w", err))
	}
}
