package logrelay

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// pacedDisk takes so many nanoseconds for each sync.
type pacedDisk struct {
	journal.File
	pace *atomic.Int64
}

func (d pacedDisk) Datasync() error {
	<-time.After(time.Duration(d.pace.Load()))
	return d.File.Datasync()
}

// TestADiskWhoseWritesAllLastIsOneCondition, in virtual time: there is always one under
// way, and each takes 15 s. It fails where the condition ends with each write, and begins
// anew with the next, or where it outlives a disk that is fast again.
func TestADiskWhoseWritesAllLastIsOneCondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pace atomic.Int64
		pace.Store(int64(15 * time.Second))
		j, err := journal.Open(journal.Config{Dir: t.TempDir(), Wrap: func(f journal.File) journal.File { return pacedDisk{f, &pace} }})
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{journal: j, board: health.NewBoard(time.Now, nil, nil)}
		var group sync.WaitGroup
		defer group.Wait()
		defer begin(t.Context(), func(ctx context.Context) { _ = j.Run(ctx) })()
		sending, stop := context.WithCancel(t.Context())
		defer stop()
		group.Go(func() {
			for sending.Err() == nil {
				var b journal.Batch
				b.Add(journal.Record{Data: []byte("x")})
				if commit, err := j.Append(sending, &b); err == nil {
					_ = commit.Wait(sending)
				}
			}
		})
		stands, changes := false, 0
		look := func() {
			synctest.Wait()
			s.tellStuck(time.Now())
			now := slices.ContainsFunc(s.board.Conditions(), func(c health.Condition) bool { return c.Name == conditionStuck })
			if now != stands {
				changes++
			}
			stands = now
		}
		for range 300 {
			look()
			<-time.After(watchEvery)
		}
		if !stands || changes != 1 {
			t.Errorf("in five minutes the condition changed %d times and stands: %v; want once, and that it does", changes, stands)
		}
		pace.Store(int64(time.Second))
		<-time.After(17 * time.Second) // one of before, and one more
		if look(); stands {
			t.Error("a write took a second, and the condition stands")
		}
	})
}
