package logrelay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/health"
)

// heldUp is a receiver's end of a connection that is not read on from a text on,
// until it is let go.
type heldUp struct {
	net.Conn
	text          []byte
	came, release chan struct{}
	once          sync.Once
}

func (h *heldUp) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	if bytes.Contains(b[:n], h.text) {
		h.once.Do(func() {
			close(h.came)
			<-h.release
		})
	}
	return n, err
}

// TestATargetIsToldWhatWasLeftOutBeforeTheCursorPassesIt, in virtual time: who
// dies while it tells tells once more, of the last second's lines at least. It
// fails when the cursor is committed first: nobody would tell of them any more.
func TestATargetIsToldWhatWasLeftOutBeforeTheCursorPassesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{forward: {siem: {relp: "siem:20514"}}, rules: [{if: 'true', limit: {lines: 1, every: 24h}}]}`)
		defer x.end()
		r, h := &receiver{}, &heldUp{text: []byte(" left out, "), came: make(chan struct{}), release: make(chan struct{})}
		x.s.dialer = func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			h.Conn = there
			x.group.Go(func() { r.serve(h) })
			return here, nil
		}
		outputs, err := x.s.newOutputs(x.j)
		if err != nil {
			t.Fatal(err)
		}
		x.group.Go(func() { x.s.runOutputs(x.ctx, outputs) })
		told := func() bool {
			select {
			case <-h.came:
				return true
			default:
				return false
			}
		}
		for n := 0; !told(); n++ {
			if n > 300 {
				t.Fatalf("after half a minute nothing is told: %q", r.lines())
			}
			x.store(flood("cn1", 2)...)
			<-time.After(100 * time.Millisecond)
		}
		cursor, end := x.s.outputs["siem"].cursor, x.j.End()
		if next := cursor.Next(); next >= end {
			t.Errorf("the cursor stands at %d of %d while the target has yet to hear of them", next, end)
		}
		close(h.release)
		<-time.After(2 * commitEvery)
		synctest.Wait()
		if next := cursor.Next(); next != end {
			t.Errorf("once it has heard of them: the cursor stands at %d of %d", next, end)
		}
	})
}

// brokenOff is a receiver's end of a connection that breaks off at a text.
type brokenOff struct {
	net.Conn
	text []byte
	gone chan struct{}
}

func (b *brokenOff) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if bytes.Contains(p[:n], b.text) {
		close(b.gone)
		return 0, errors.Join(io.ErrUnexpectedEOF, b.Conn.Close())
	}
	return n, err
}

// TestATargetThatGoesWhileItIsToldIsToldOnTheNextConnection, in virtual time: of the
// lines since the last commit. It fails when the cursor moves behind them as the
// connection ends: what was left out is then told to nobody.
func TestATargetThatGoesWhileItIsToldIsToldOnTheNextConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{forward: {siem: {relp: "siem:20514"}}, rules: [{if: 'true', limit: {lines: 1, every: 24h}}]}`)
		defer x.end()
		first, second, gone := &receiver{}, &receiver{}, make(chan struct{})
		calls := 0
		x.s.dialer = func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			if calls++; calls == 1 {
				x.group.Go(func() { first.serve(&brokenOff{there, []byte(" left out, "), gone}) })
			} else {
				x.group.Go(func() { second.serve(there) })
			}
			return here, nil
		}
		outputs, err := x.s.newOutputs(x.j)
		if err != nil {
			t.Fatal(err)
		}
		x.group.Go(func() { x.s.runOutputs(x.ctx, outputs) })
		away := func() bool {
			select {
			case <-gone:
				return true
			default:
				return false
			}
		}
		for n := 0; !away(); n++ {
			if n > 300 {
				t.Fatalf("after half a minute nothing is told: %q", first.lines())
			}
			x.store(flood("cn1", 2)...)
			<-time.After(100 * time.Millisecond)
		}
		<-time.After(lastRetry + 2*announceEvery)
		synctest.Wait()
		if got := strings.Join(second.lines(), "\n"); !strings.Contains(got, " left out, ") {
			t.Errorf("by the next connection came %q", got)
		}
		if next := x.s.outputs["siem"].cursor.Next(); next != x.j.End() {
			t.Errorf("once it has heard of them: the cursor stands at %d of %d", next, x.j.End())
		}
	})
}

// TestADiskThatRefusesIsNoFaultOfTheTarget, in virtual time: the journal can't be
// read, which no other address of the target makes better. The lines stay with
// the first, and the condition names this node, and stands until the journal is
// read. It fails if an error of the reader passes the turn on, and if a connection
// that is taken ends the condition at each try.
func TestADiskThatRefusesIsNoFaultOfTheTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{forward: {siem: {relp: ["first:20514", "second:20514"]}}}`)
		defer x.end()
		var ended atomic.Int32
		x.s.board = health.NewBoard(time.Now, nil, func(c health.Condition) {
			if c.Name == conditionOutput+"siem" {
				ended.Add(1)
			}
		})
		var dialed []string
		x.s.dialer = func(_ context.Context, _, address string) (net.Conn, error) {
			dialed = append(dialed, address)
			here, there := net.Pipe()
			x.group.Go(func() { (&receiver{}).serve(there) })
			return here, nil
		}
		outputs, err := x.s.newOutputs(x.j)
		if err != nil {
			t.Fatal(err)
		}
		x.store(flood("cn1", 5)...)
		names, err := filepath.Glob(filepath.Join(x.s.dir(), "*.journal"))
		if err != nil || len(names) != 1 {
			t.Fatalf("%q, %v", names, err)
		}
		if err := os.Remove(names[0]); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/proc/self/mem", names[0]); err != nil { // its first page gives EIO, as a bad sector does
			t.Fatal(err)
		}
		i := slices.IndexFunc(outputs, func(o output) bool { return o.name == "siem" })
		x.group.Go(func() { x.s.keepRunning(x.ctx, outputs[i]) })
		<-time.After(20 * time.Second)
		synctest.Wait()
		said := ""
		for _, c := range x.s.board.Conditions() {
			if said += c.Name + ": " + c.Message + "\n"; c.Name == conditionFailover+"siem" {
				t.Errorf("another address is taken: %s", c.Message)
			}
		}
		if !strings.Contains(said, conditionOutput+"siem: ") || !strings.Contains(said, "of this node, not the target") || !strings.Contains(said, "input/output error") {
			t.Errorf("it says: %q", said)
		}
		if n := ended.Load(); n != 0 {
			t.Errorf("the condition ended %d times while the disk refused", n)
		}
		<-time.After(5 * time.Minute) // the disk is given up meanwhile
		synctest.Wait()
		if n := ended.Load(); n != 1 {
			t.Errorf("once the journal is read the condition has ended %d times, want 1", n)
		}
		if len(dialed) < 2 || slices.Contains(dialed, "second:20514") {
			t.Errorf("connections to %q", dialed)
		}
		if x.j.Damaged() == 0 {
			t.Error("after five minutes the disk is not given up")
		}
	})
}
