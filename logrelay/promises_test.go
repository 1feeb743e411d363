package logrelay

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// TestAStuckDiskStopsNoProgramOfThisNode that writes to a socket of the relay: for a
// second at most, and then what the journal has no room for is lost, and counted.
// It fails where the socket is not read until the disk goes on (with /dev/log, no
// program of the node would), where its lines pile up in memory, and where what was
// lost is not counted.
func TestAStuckDiskStopsNoProgramOfThisNode(t *testing.T) {
	s, dir, _ := prepare(t)
	disk := stuckDisk{stuck: &atomic.Bool{}, resume: make(chan struct{})}
	s.wrap = func(f journal.File) journal.File { return stuckDisk{f, disk.stuck, disk.resume} }
	path := filepath.Join(t.TempDir(), "log")
	s.settings.unix = []string{path}
	stop := run(t, s)
	release := sync.OnceFunc(func() { close(disk.resume) })
	t.Cleanup(release) // before the relay's end
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("<13>app: first")); err != nil {
		t.Fatal(err)
	}
	has(t, dir, "server", ": first\n")
	disk.stuck.Store(true)
	const count, size = 150, 100_000 // more than what is being written and what waits for that have room for
	_ = conn.SetWriteDeadline(time.Now().Add(20 * time.Second))
	text := strings.Repeat("x", size)
	for n := range count {
		if _, err := fmt.Fprintf(conn, "<13>app: seq=%d. %s", n, text); err != nil {
			t.Fatalf("line %d waits for the disk: %v", n, err)
		}
	}
	eventually(t, 20*time.Second, "all are read", func() error {
		if n := testutil.ToFloat64(s.metrics.input(viaUnix).lines); n != count+1 {
			return fmt.Errorf("%v of %d", n, count+1)
		}
		return nil
	})
	lost := int(testutil.ToFloat64(s.metrics.lost[viaUnix]))
	if kept := (count - lost) * size; kept > 16<<20 || lost == 0 {
		t.Errorf("%d of %d are counted as lost: %d bytes are in memory", lost, count, kept)
	}
	disk.stuck.Store(false)
	release()
	eventually(t, 20*time.Second, "the next is stored", func() error {
		if _, err := conn.Write([]byte("<13>app: last")); err != nil {
			t.Fatal(err)
		}
		if n := s.current.Load().End(); n <= uint64(count-lost+1) {
			return fmt.Errorf("the journal ends at %d", n)
		}
		return nil
	})
	stop()
	p := process{t: t, dir: dir}
	if got := p.numbers("server"); len(got) != count-lost {
		t.Errorf("%d lines are in the file, and %d of %d are counted as lost", len(got), lost, count)
	}
}

// TestADiskThatStandsStillIsACondition, in virtual time: it refuses nothing, so
// nothing else says so. It fails where the condition waits for the end of the write,
// or outlives it.
func TestADiskThatStandsStillIsACondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := stuckDisk{stuck: &atomic.Bool{}, resume: make(chan struct{})}
		j, err := journal.Open(journal.Config{Dir: t.TempDir(), Wrap: func(f journal.File) journal.File { return stuckDisk{f, disk.stuck, disk.resume} }})
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{journal: j, board: health.NewBoard(time.Now, nil, nil)}
		defer begin(t.Context(), func(ctx context.Context) { _ = j.Run(ctx) })()
		stands := func(want bool) {
			t.Helper()
			s.tellStuck(time.Now())
			list := s.board.Conditions()
			if got := len(list) == 1 && list[0].Name == conditionStuck; got != want {
				t.Errorf("conditions: %v, want it there: %v", list, want)
			}
		}
		stands(false)
		disk.stuck.Store(true)
		var b journal.Batch
		b.Add(journal.Record{Data: []byte("x")})
		if _, err := j.Append(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		<-time.After(stuckAfter - time.Second)
		stands(false)
		<-time.After(time.Second)
		stands(true)
		<-time.After(time.Hour)
		stands(true)
		close(disk.resume)
		synctest.Wait()
		stands(false)
	})
}
