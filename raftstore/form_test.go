package raftstore

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// A ballot goes to the others only when this server's own promise is on its disk:
// else the next start would use its number for another decree.
func TestBallotIsOwnPromisedBeforeOthersHearOfIt(t *testing.T) {
	for name, c := range map[string]struct {
		missing bool // the directory of the record
		hear    bool
	}{
		"the disk takes the promise": {false, true},
		"the disk does not":          {true, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := &Store{
				config: Config{Node: "fb1", NodeID: newUUID(), Servers: []string{"fb1", "fb2", "fb3"}, Voters: 3, DataDir: dir},
				times:  Config{Timing: 1}.timings(), log: slog.New(slog.DiscardHandler),
			}
			e := &engine{store: s, tracker: newTracker()}
			var err error
			if e.record, err = openRecord(dir, s.config.NodeID); err != nil {
				t.Fatal(err)
			}
			if c.missing {
				e.record.path = filepath.Join(dir, "missing", recordName)
			}
			s.engine.Store(e)
			var heard atomic.Int32
			promised := true
			e.client = newRPCClient(func(context.Context, string) (net.Conn, error) {
				heard.Add(1)
				if e.record.get().Forming.Promised.Round != 1 {
					promised = false
				}
				return nil, errors.New("there is no network")
			}, s.times)
			defer e.client.stop()
			seen := []founder{{"fb1", s.config.NodeID, "127.0.0.1:1"}, {"fb2", newUUID(), "127.0.0.1:2"}}
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			if _, err := e.attempt(ctx, seen, 0); err != nil {
				t.Error(err)
			}
			if (heard.Load() > 0) != c.hear || !promised {
				t.Errorf("others heard of it %d times; promised before: %v", heard.Load(), promised)
			}
			if c.missing && e.objection.Load() == nil {
				t.Error("nobody is told why no store is formed")
			}
		})
	}
}
