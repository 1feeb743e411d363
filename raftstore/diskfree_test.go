package raftstore

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/health"
)

// A disk that hangs is not one that is full.
func TestDiskThatHangsKeepsTheFreeSpaceThatItTold(t *testing.T) {
	metrics, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{
		store: &Store{metrics: metrics, log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now, nil, nil)},
		disk:  &diskHealth{},
	}
	e.tellDisk(diskFit, diskFit, look{Free: 700 << 20, Size: 1 << 30})
	e.disk.hangs(true)
	e.tellDisk(diskFit, diskSick, look{Trouble: "a write did not end"})
	if got := testutil.ToFloat64(metrics.diskFree); got != 700<<20 {
		t.Errorf("while it hangs %v bytes are free", got)
	}
	e.tellDisk(diskSick, diskSick, look{Free: 0, Size: 1 << 30})
	if got := testutil.ToFloat64(metrics.diskFree); got != 0 {
		t.Errorf("when it is full %v bytes are free", got)
	}
}
