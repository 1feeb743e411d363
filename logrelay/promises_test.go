package logrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
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

// TestAStuckDiskStopsNoProgramOfThisNode that writes to a socket of the relay: for
// unixPatience at most, and then what the journal has no room for is lost, counted,
// and told of once. It fails where the socket is not read until the disk goes on (with
// /dev/log, no program of the node would), where its lines pile up in memory, where
// what was lost is not counted, and where the log has no word of it.
func TestAStuckDiskStopsNoProgramOfThisNode(t *testing.T) {
	s, dir, _ := prepare(t)
	var log syncBuffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
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
	_ = conn.SetWriteDeadline(time.Now().Add(time.Minute))
	text := strings.Repeat("x", size)
	for n := range count {
		if _, err := fmt.Fprintf(conn, "<13>app: seq=%d. %s", n, text); err != nil {
			t.Fatalf("line %d waits for the disk: %v", n, err)
		}
	}
	eventually(t, time.Minute, "all are read", func() error {
		if n := testutil.ToFloat64(s.metrics.input(viaUnix).lines); n != count+1 {
			return fmt.Errorf("%v of %d", n, count+1)
		}
		return nil
	})
	lost := int(testutil.ToFloat64(s.metrics.lost[viaUnix]))
	if kept := (count - lost) * size; kept > 9<<20 || lost == 0 {
		t.Errorf("%d of %d are counted as lost: %d bytes are in memory", lost, count, kept)
	}
	disk.stuck.Store(false)
	release()
	eventually(t, time.Minute, "the next is stored", func() error {
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
	lost = int(testutil.ToFloat64(s.metrics.lost[viaUnix])) // with what came before the disk had taken the others
	if text := log.String(); strings.Count(text, "had no room") != 1 || !strings.Contains(text, fmt.Sprint("input=unix lines=", lost)) {
		t.Errorf("%d lines are lost; the log: %s", lost, text)
	}
}

// latePromises is an input whose senders can't be held back, with a journal.
func latePromises(t *testing.T, config journal.Config, via uint8, patience time.Duration) (p *promises, log *syncBuffer, end func()) {
	t.Helper()
	s, dir, _ := prepare(t)
	log = &syncBuffer{}
	s.log = slog.New(slog.NewTextHandler(log, nil))
	config.Dir = dir
	j, err := journal.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	s.journal = j
	promised := s.newPromises(via, patience)
	return &promised, log, begin(context.Background(), func(ctx context.Context) { _ = j.Run(ctx) })
}

// sleepyDisk takes a while for each sync.
type sleepyDisk struct {
	journal.File
	sync time.Duration
}

func (d sleepyDisk) Datasync() error {
	<-time.After(d.sync)
	return d.File.Datasync()
}

// TestALineOfThisNodeIsNotLostForOthers, who fill all room that the journal has,
// while the disk is slow and works. It fails where a program of this node competes with
// them for the same room, and where room is waited for for less than a write takes.
func TestALineOfThisNodeIsNotLostForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pending, size = 256 << 10, 16 << 10
		p, log, end := latePromises(t, journal.Config{
			Pending: pending, Wrap: func(f journal.File) journal.File { return sleepyDisk{f, 1500 * time.Millisecond} },
		}, viaUnix, unixPatience)
		defer end()
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		defer group.Wait()
		defer cancel()
		var theirs journal.Batch // of which as many as fit leave no room
		if theirs.Add(journal.Record{Input: viaRELP, Data: []byte(strings.Repeat("x", size-12))}); theirs.Size() != size {
			t.Fatalf("a line takes %d bytes, want %d", theirs.Size(), size)
		}
		first, err := p.s.journal.Append(ctx, &theirs) // begins a segment, which takes a sync more
		if err := errors.Join(err, first.Wait(ctx)); err != nil {
			t.Fatal(err)
		}
		for range 16 * pending / size {
			group.Go(func() {
				b := theirs
				for ctx.Err() == nil {
					if commit, err := p.s.journal.Append(ctx, &b); err == nil {
						_ = commit.Wait(ctx)
					}
				}
			})
		}
		synctest.Wait()
		// Five of these fill the room of their own, and the next waits: while a write
		// is under way, 1.5 s at most.
		text := []byte(strings.Repeat("x", 60_000))
		const lines = 60
		batch := journal.Batch{Urgent: true} // as serveUnix has it
		for range lines {
			<-time.After(100 * time.Millisecond)
			batch.Add(journal.Record{Input: viaUnix, Data: text})
			p.put(&batch)
		}
		if lost := testutil.ToFloat64(p.s.metrics.lost[viaUnix]); lost != 0 || log.String() != "" {
			t.Errorf("%v of %d lines are lost: %s", lost, lines, log.String())
		}
		if n := testutil.ToFloat64(p.s.metrics.input(viaUnix).lines); n != lines {
			t.Errorf("%v lines are taken, want %d", n, lines)
		}
	})
}

// TestAnEndByUDPWaitsForAStuckDiskNoLongerThanTheRelay: what the journal has no room
// for is lost by then, counted and told of; what it has is not lost, and the log says
// that it is not on the disk yet. It fails where the input waits for as long as the
// disk stands still, where it waits once more behind Server.ending, and where either
// is left untold.
func TestAnEndByUDPWaitsForAStuckDiskNoLongerThanTheRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := stuckDisk{stuck: &atomic.Bool{}, resume: make(chan struct{})}
		disk.stuck.Store(true)
		p, log, end := latePromises(t, journal.Config{
			Pending: 64 << 10, Wrap: func(f journal.File) journal.File { return stuckDisk{f, disk.stuck, disk.resume} },
		}, viaUDP, 0)
		defer end()
		defer close(disk.resume)
		ending, cancel := context.WithTimeout(t.Context(), streamsEnd)
		defer cancel()
		p.s.ending = ending
		put := func(count, size int) {
			var b journal.Batch
			for range count {
				b.Add(journal.Record{Input: viaUDP, Data: []byte(strings.Repeat("x", size))})
			}
			p.put(&b)
			synctest.Wait()
		}
		began := time.Now()
		put(1, 1) // is being written
		put(2, 32_000)
		if took := time.Since(began); took != 0 {
			t.Fatalf("lines that the journal has room for waited for %v", took)
		}
		put(3, 1000)
		put(4, 1000)
		if log.String() != "" {
			t.Errorf("before the end the log has %s", log.String())
		}
		p.end()
		if took := time.Since(began); took != streamsEnd {
			t.Errorf("the end took %v, want %v", took, streamsEnd)
		}
		p.s.lastLosses.tell(p.s.log)
		if lost := testutil.ToFloat64(p.s.metrics.lost[viaUDP]); lost != 7 {
			t.Errorf("%v lines are counted as lost, want 7", lost)
		}
		text := log.String()
		for _, want := range []string{"no room for them in time", "input=udp lines=7", "not yet on the disk", "lines=3"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in the log: %s", want, text)
			}
		}
	})
}

// TestADiskThatKeepsALookAtItIsACondition as well: how full it is can't be seen
// either where it stands still. It fails where one waits for the other, and where
// conditions of bugs then stand for ever.
func TestADiskThatKeepsALookAtItIsACondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := stuckDisk{stuck: &atomic.Bool{}, resume: make(chan struct{})}
		disk.stuck.Store(true)
		p, _, end := latePromises(t, journal.Config{Wrap: func(f journal.File) journal.File { return stuckDisk{f, disk.stuck, disk.resume} }}, viaUDP, 0)
		defer end()
		s := p.s
		s.space = func(string) (float64, error) {
			<-disk.resume
			return 50, nil
		}
		s.bugs.caught("a bug", "a test")
		watched := begin(t.Context(), s.watch)
		defer watched()
		defer close(disk.resume)
		var b journal.Batch
		b.Add(journal.Record{Input: viaUDP, Data: []byte("x")})
		p.put(&b)
		stands := func(want ...string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for _, c := range s.board.Conditions() {
				got = append(got, c.Name)
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("conditions: %v, want %v", got, want)
			}
		}
		stands(conditionFailed)
		<-time.After(stuckAfter + watchEvery)
		stands(conditionStuck, conditionFailed)
		<-time.After(failedFor)
		stands(conditionStuck)
	})
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
		stands(true) // the next write may take as long
		<-time.After(stuckAfter)
		stands(false)
	})
}
