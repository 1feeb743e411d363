package raftstore

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
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

// A look that is under way when the store ends would go on in its directory, which
// is another's by then. It would fail if the end of the watch waited for no look,
// or for one that a disk holds up for good.
func TestEndWaitsForALookAtTheDiskAndForNoneThatHangs(t *testing.T) {
	const stop = 500 * time.Millisecond
	times := Config{Timing: 1}.timings()
	for takes, want := range map[time.Duration]time.Duration{time.Second: time.Second, time.Hour: stop + times.disk} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), stop)
			defer cancel()
			e := &engine{store: &Store{times: times, look: func(string) look {
				time.Sleep(takes)
				return look{}
			}}, disk: &diskHealth{}}
			start := time.Now()
			e.lookAtDisk(ctx)
			if took := time.Since(start); took != want {
				t.Errorf("a look of %v: the watch ended after %v, want %v", takes, took, want)
			}
			time.Sleep(takes) // no look outlives the test
		})
	}
}
