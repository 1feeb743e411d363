package logrelay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/logrelay/journal"
)

// TestLinesByTCPOutlastADiskThatRefusesThem: their sender has forgotten them.
// They are stored once there is room, once and in order, and meanwhile a sender
// that goes on is held back before it fills the memory.
func TestLinesByTCPOutlastADiskThatRefusesThem(t *testing.T) {
	s, dir, board := prepare(t)
	var full atomic.Bool
	s.wrap = func(f journal.File) journal.File { return badDisk{f, 0, &full, &atomic.Int64{}} }
	stop := run(t, s)
	conn, err := net.Dial("tcp", s.Addrs("tcp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	full.Store(true)
	const count, pad = 8000, 2000 // more than the sockets' buffers have room for, too
	written := make(chan error, 1)
	go func() {
		for n := range count {
			if _, err := fmt.Fprintf(conn, "<13>Nov 25 12:00:00 cn1 test: seq=%d. %s\n", n, strings.Repeat("x", pad)); err != nil {
				written <- err
				return
			}
		}
		written <- conn.Close()
	}()
	raised(t, board, conditionJournal, true)
	eventually(t, time.Minute, "as much is kept as may be", func() error {
		if n := s.kept.Load(); n <= keepAhead {
			return fmt.Errorf("%d bytes", n)
		}
		return nil
	})
	failures := testutil.ToFloat64(s.metrics.failed)
	eventually(t, time.Minute, "the write is tried again", func() error {
		if n := testutil.ToFloat64(s.metrics.failed); n < failures+2 {
			return fmt.Errorf("%v writes failed, of %v before", n, failures)
		}
		return nil
	})
	if n := s.kept.Load(); n > keepAhead+4*maxLine {
		t.Errorf("%d bytes of one connection wait for the disk, want about %d at most", n, keepAhead)
	}
	full.Store(false)
	if err := <-written; err != nil {
		t.Error(err)
	}
	eventually(t, time.Minute, "all lines are on the disk", func() error {
		if n := testutil.ToFloat64(s.metrics.input(viaTCP).lines); n != count {
			return fmt.Errorf("%v of %d", n, count)
		}
		return nil
	})
	stop()
	p := process{t: t, dir: dir}
	if got := p.numbers("cn1"); len(got) != count || !slices.IsSorted(got) || got[0] != 0 || got[count-1] != count-1 {
		t.Errorf("%d lines, sorted %v; want %d, each once", len(got), slices.IsSorted(got), count)
	}
	if s.kept.Load() != 0 || testutil.ToFloat64(s.metrics.lost[viaTCP]) != 0 {
		t.Errorf("%d bytes still wait, and %v lines were lost", s.kept.Load(), testutil.ToFloat64(s.metrics.lost[viaTCP]))
	}
}

// TestWhatIsLostIsCounted: a datagram that the disk refused has no sender that
// would hear of it; and lines by TCP that it still refuses when the relay ends.
func TestWhatIsLostIsCounted(t *testing.T) {
	s, dir, board := prepare(t)
	var full atomic.Bool
	s.wrap = func(f journal.File) journal.File { return badDisk{f, 0, &full, &atomic.Int64{}} }
	stop := run(t, s)
	refused := func(input string) net.Conn {
		conn, err := net.Dial(input, s.Addrs(input)[0].String())
		if err != nil {
			t.Fatal(err)
		}
		full.Store(true)
		if _, err := fmt.Fprint(conn, "<13>Nov 25 12:00:00 cn1 test: refused\n"); err != nil {
			t.Fatal(err)
		}
		raised(t, board, conditionJournal, true)
		return conn
	}
	udp := refused("udp")
	defer udp.Close()
	full.Store(false)
	sent := 0
	eventually(t, time.Minute, "the next datagram is stored, and the one before counted", func() error {
		if _, err := fmt.Fprint(udp, "<13>Nov 25 12:00:00 cn1 test: stored\n"); err != nil {
			return err
		}
		sent++
		if n := testutil.ToFloat64(s.metrics.lost[viaUDP]); n != 1 {
			return fmt.Errorf("%v are counted", n)
		}
		return nil
	})
	raised(t, board, conditionJournal, false)
	eventually(t, time.Minute, "no datagram is on its way, which the disk could refuse in the place of the line", func() error {
		b, err := os.ReadFile(filepath.Join(dir, "hosts", "cn1"+fileSuffix))
		if n := bytes.Count(b, []byte("stored")); err == nil && n != sent {
			err = fmt.Errorf("%d of %d are stored", n, sent)
		}
		return err
	})
	tcp := refused("tcp")
	defer tcp.Close()
	eventually(t, time.Minute, "the line by TCP was read", func() error {
		if s.kept.Load() == 0 {
			return errors.New("it was not")
		}
		return nil
	})
	stop()
	if n := testutil.ToFloat64(s.metrics.lost[viaTCP]); n != 1 {
		t.Errorf("%v lines by TCP are counted as lost, want 1", n)
	}
}
