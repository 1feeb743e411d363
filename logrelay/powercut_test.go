package logrelay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/logrelay/journal"
)

// power is what disks have until it is cut in the midst of a sync.
type power struct {
	mu  sync.Mutex
	off chan struct{} // the next sync waits for its end, and fails; nil: all is well
}

func (p *power) fails() (cut func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = make(chan struct{})
	return sync.OnceFunc(func() { close(p.off) })
}

// cutDisk is a journal's file that loses its power.
type cutDisk struct {
	journal.File
	power *power
}

func (d cutDisk) Datasync() error {
	d.power.mu.Lock()
	off := d.power.off
	d.power.mu.Unlock()
	if off != nil {
		<-off
		return syscall.EIO
	}
	return d.File.Datasync()
}

// TestLinesThatPowerTookOnTheirWayReachBothDisksAndTargets: a node shipped lines
// and lost its power before they were on its own disk. Their client, which was not
// told, sends them to the other node, which has had them since. They are to be
// stored there as its own: else they are in no file of the first, and at no
// target. It fails if the first says that it has all while its disk syncs, if the
// other takes what was shipped for stored on both, or if it does after a restart.
func TestLinesThatPowerTookOnTheirWayReachBothDisksAndTargets(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(map[bool]string{false: "one cut", true: "both cut"}[both], func(t *testing.T) {
			all := nodes(t, "fb1", "fb2")
			first, second := all[0], all[1]
			target, disk := &receiver{}, &power{}
			var group sync.WaitGroup
			t.Cleanup(group.Wait)
			forwards := func() {
				second.settings.forward = settingsOf(t, `{forward: {siem: {relp: ["10.1.0.77:20514"]}}}`).forward
				second.dialer = func(context.Context, string, string) (net.Conn, error) {
					here, there := net.Pipe()
					group.Go(func() { target.serve(there) })
					return here, nil
				}
				second.replicaPatience = 100 * time.Millisecond
				second.start(t)
			}
			forwards()
			first.losesWhatItShips(t, second, disk, 10, 40, func() {
				if both {
					second.end()
					second.make(t, all, filepath.Join(filepath.Dir(second.dir), "pki-fb2"))
				}
			})
			if both {
				forwards()
			}
			second.send(t, 10, 40)
			first.make(t, all, filepath.Join(filepath.Dir(first.dir), "pki-fb1"))
			first.start(t)
			eventually(t, time.Minute, "all lines are in the first's files, once, and at the target", func() error {
				if got := first.files(t); len(got) != 50 || len(missing(got, 50)) > 0 {
					return fmt.Errorf("%d lines of 50 are in the files", len(got))
				}
				if got := target.lines(); len(got) != 40 {
					return fmt.Errorf("%d lines of 40 are at the target", len(got))
				}
				return nil
			})
			eventually(t, time.Minute, "what is twice is counted", func() error {
				if n := second.Status().Doubled; n != 30 {
					return fmt.Errorf("%d lines of 30", n)
				}
				return nil
			})
			if n := first.Status().Doubled; n != 0 {
				t.Errorf("%d lines are counted on the node that has them once", n)
			}
		})
	}
}

// copyRunning copies the journal of a node that runs. Files that are about to be
// renamed, and those that were while it copied, are nothing that a power cut
// leaves. How far the node's own files have come is left out: they are lost too.
func copyRunning(t *testing.T, to, from string) {
	t.Helper()
	eventually(t, time.Minute, "the journal is copied", func() error {
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		list, err := os.ReadDir(from)
		for _, entry := range list {
			name := entry.Name()
			if strings.HasPrefix(name, ".") || name == "cursor-files" {
				continue
			}
			var b []byte
			if b, err = os.ReadFile(filepath.Join(from, name)); err == nil {
				err = os.WriteFile(filepath.Join(to, name), b, 0o600)
			}
			if err != nil {
				return err
			}
		}
		return err
	})
}

// TestNothingIsSaidBehindLinesThatTheDiskRefused: what follows a shipment says
// that it is on the sender's disk. It fails if the connection goes on after a
// write that failed, or says that there is no more while one is under way.
func TestNothingIsSaidBehindLinesThatTheDiskRefused(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		syncs := make(chan error)
		j, err := journal.Open(journal.Config{Dir: dir, Wrap: func(f journal.File) journal.File { return syncDisk{f, syncs} }})
		if err != nil {
			t.Fatal(err)
		}
		end := begin(t.Context(), func(ctx context.Context) { _ = j.Run(ctx) })
		here, there := net.Pipe()
		ended := make(chan error, 1)
		s := &shipper{journal: j}
		go func() { ended <- s.send(t.Context(), here, 0, new(atomic.Uint64)); _ = here.Close() }()
		var got []shipment
		heard := make(chan struct{})
		go func() {
			defer close(heard)
			for {
				var buf bytes.Buffer
				one, err := readShipment(there, &buf)
				if err != nil {
					return
				}
				got = append(got, one)
			}
		}()
		line := func() {
			t.Helper()
			var batch journal.Batch
			batch.Add(journal.Record{Time: 1, Input: viaRELP, Data: []byte("<13>Nov 25 12:00:00 cn01 test: x")})
			if _, err := j.Append(t.Context(), &batch); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		said := func(what string, want ...shipment) {
			t.Helper()
			synctest.Wait()
			if len(got) != len(want) {
				t.Fatalf("%s: said %d things, want %d: %+v", what, len(got), len(want), got)
			}
			for i, w := range want {
				if got[i].first != w.first || got[i].end != w.end {
					t.Errorf("%s: %d is of %d to %d, want %d to %d", what, i, got[i].first, got[i].end, w.first, w.end)
				}
			}
		}
		said("at the beginning", shipment{})
		line()
		syncs <- nil // of the segment's header
		said("the first line syncs", shipment{}, shipment{end: 1})
		syncs <- nil
		said("it is there", shipment{}, shipment{end: 1}, shipment{first: 1, end: 1})
		line()
		said("the second syncs", shipment{}, shipment{end: 1}, shipment{first: 1, end: 1}, shipment{first: 1, end: 2})
		syncs <- syscall.EIO
		said("it is refused", shipment{}, shipment{end: 1}, shipment{first: 1, end: 1}, shipment{first: 1, end: 2})
		line()
		syncs <- nil // of a header
		syncs <- nil
		said("the third is there", shipment{}, shipment{end: 1}, shipment{first: 1, end: 1}, shipment{first: 1, end: 2})
		select {
		case err := <-ended:
			if err == nil {
				t.Error("it ends as if all were well")
			}
		default:
			t.Error("the connection goes on")
		}
		_ = there.Close()
		<-heard
		end()
	})
}

// TestTwoFullNodesBringEachOtherTheirLines: under the wait policy, a line that
// waits for a node that is as full as this one is answered.
func TestTwoFullNodesBringEachOtherTheirLines(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	var full atomic.Bool
	for _, n := range all {
		n.settings.wait = true
		n.space = func(string) (float64, error) {
			if full.Load() {
				return 4, nil
			}
			return 50, nil
		}
	}
	first.start(t)
	c, err := dial(netip.AddrPortFrom(first.addr, testRELP).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	before := first.journal.End()
	c.line(t, 0)
	first.grows(t, before, 1)
	full.Store(true)
	eventually(t, time.Minute, "the first is full", func() error {
		if !first.gate.isFull() {
			return errors.New("it is not")
		}
		return nil
	})
	second.start(t)
	_ = c.conn.SetReadDeadline(time.Now().Add(time.Minute))
	if err := c.read(0); err != nil || c.acked != 1 {
		t.Errorf("%d lines answered, %v", c.acked, err)
	}
}

// losesWhatItShips starts the node, which gets and ships the lines before 10, and then
// those from one to another while its disk does not hold them any more. Once the other
// node has them and meanwhile was called, the power goes: the node has ended, and has
// what it had before.
func (n *node) losesWhatItShips(t *testing.T, other *node, disk *power, from, to int, meanwhile func()) {
	t.Helper()
	n.replicaPatience = time.Minute
	n.wrap = func(f journal.File) journal.File { return cutDisk{f, disk} }
	n.start(t)
	n.send(t, 0, 10)
	logs, saved := filepath.Join(n.dir, "logs"), filepath.Join(t.TempDir(), "logs")
	copyRunning(t, saved, logs)
	c, err := dial(netip.AddrPortFrom(n.addr, testRELP).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	before, cut := other.journal.End(), disk.fails()
	t.Cleanup(cut) // before the node ends
	var lines []byte
	for i := from; i < to; i++ {
		lines = c.session.AppendLine(lines, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn01 test: seq=%d.", i))
	}
	if _, err := c.conn.Write(lines); err != nil {
		t.Fatal(err)
	}
	other.grows(t, before, to-from)
	meanwhile()
	cut()
	n.end()
	_ = c.conn.SetReadDeadline(time.Now().Add(time.Minute)) // it ends with the node
	if _ = c.read(0); c.acked != 0 {
		t.Fatalf("%d lines were answered", c.acked)
	}
	if err := errors.Join(os.RemoveAll(n.dir), os.CopyFS(logs, os.DirFS(saved))); err != nil {
		t.Fatal(err)
	}
}
