package discovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/durable"
)

const (
	updatesFile    = "ttl-updates.json"
	updatesVersion = 1
	maxUpdates     = 16 << 20 // bytes of the file
	// updatesPause is between two writes of the file.
	updatesPause = time.Second
)

// updates remembers when the owners of TTL checks last spoke, so that time in
// which the agent did not run counts, too. Its methods may be called from any
// goroutine.
type updates struct {
	path string
	poke chan struct{} // has an element when the file is older than last

	mu   sync.Mutex
	last map[string]time.Time // by check ID
}

// storedUpdates is the form on the disk.
type storedUpdates struct {
	Version int                  `json:"version"`
	Last    map[string]time.Time `json:"last"`
}

// loadUpdates reads the file of the data directory. With an error it knows of
// no updates, and can be used all the same.
func loadUpdates(dataDir string) (*updates, error) {
	u := &updates{path: filepath.Join(dataDir, updatesFile), poke: make(chan struct{}, 1), last: map[string]time.Time{}}
	data, err := os.ReadFile(u.path)
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	}
	if err != nil {
		return u, err
	}
	last, err := decodeUpdates(data)
	if err != nil {
		return u, fmt.Errorf("read %s: %w", u.path, err)
	}
	u.last = last
	return u, nil
}

func decodeUpdates(data []byte) (map[string]time.Time, error) {
	if len(data) > maxUpdates {
		return nil, fmt.Errorf("%d bytes, more than %d", len(data), maxUpdates)
	}
	var stored storedUpdates
	if err := json.Unmarshal(data, &stored); err != nil {
		return nil, err
	}
	if stored.Version != updatesVersion {
		return nil, fmt.Errorf("version %d; this program reads version %d", stored.Version, updatesVersion)
	}
	if stored.Last == nil {
		stored.Last = map[string]time.Time{}
	}
	return stored.Last, nil
}

// of is when the check's owner last spoke, as far as is known; else zero.
func (u *updates) of(id string) time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last[id]
}

// note takes an update of a check whose TTL is long enough to outlive a start.
func (u *updates) note(d check.Definition, at time.Time) {
	if d.TTL <= check.ResumeGrace {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last[d.ID] = at.UTC().Round(0)
	poke(u.poke)
}

// write puts what is known of the checks that exist on the disk.
func (u *updates) write(exists func(id string) bool) error {
	u.mu.Lock()
	maps.DeleteFunc(u.last, func(id string, _ time.Time) bool { return !exists(id) })
	data, err := json.MarshalIndent(storedUpdates{Version: updatesVersion, Last: u.last}, "", "  ")
	u.mu.Unlock()
	if err != nil {
		return err
	}
	return durable.Replace(u.path, data, 0o600)
}

// keepUpdates writes updates down soon after they come, and before it ends.
func (a *Agent) keepUpdates(ctx context.Context, _ *gossip) {
	exists := func(id string) bool { _, ok := a.local.definition(id); return ok }
	for more := true; more; {
		select {
		case <-a.updates.poke:
		case <-ctx.Done():
			select {
			case <-a.updates.poke:
			default:
				return
			}
		}
		if err := a.updates.write(exists); err != nil {
			a.log.Warn("the time of TTL checks' updates was not kept; after a restart they may count as older than they are", "error", err)
		}
		more = sleep(ctx, updatesPause) || len(a.updates.poke) > 0
	}
}
