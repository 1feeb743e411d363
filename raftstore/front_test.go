package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

// openTestFront opens a log in dir.
func openTestFront(t *testing.T, dir string) (*front, func() error) {
	t.Helper()
	bolt, err := openBolt(filepath.Join(dir, logName))
	if err != nil {
		t.Fatal(err)
	}
	f, err := openLogOver(dir, bolt)
	if err != nil {
		t.Fatal(err)
	}
	closeAll := sync.OnceValue(func() error { return errors.Join(f.Close(), bolt.Close()) })
	t.Cleanup(func() { _ = closeAll() })
	return f, closeAll
}

// asAfterACrash copies the files of a log while it is open: what is in the
// journal is in bolt only in part.
func asAfterACrash(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func entriesOf(first, last, term uint64) (list []*raft.Log) {
	for i := first; i <= last; i++ {
		list = append(list, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d of term %d", i, term), AppendedAt: time.Unix(int64(i), 5)})
	}
	return list
}

// holds compares a log with what it should have.
func (f *front) holds(t *testing.T, what string, want []*raft.Log) {
	t.Helper()
	first, err := f.FirstIndex()
	last, err2 := f.LastIndex()
	if err := errors.Join(err, err2); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if len(want) == 0 {
		if first != 0 || last != 0 {
			t.Fatalf("%s: it has %d to %d, and should be empty", what, first, last)
		}
		return
	}
	if first != want[0].Index || last != want[len(want)-1].Index {
		t.Fatalf("%s: it has %d to %d, want %d to %d", what, first, last, want[0].Index, want[len(want)-1].Index)
	}
	for i, entry := range want {
		if i > 0 && want[i-1].Index+1 != entry.Index {
			if err := f.GetLog(entry.Index-1, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
				t.Fatalf("%s: entry %d, which is in a gap: %v", what, entry.Index-1, err)
			}
		}
		var got raft.Log
		if err := f.GetLog(entry.Index, &got); err != nil {
			t.Fatalf("%s: entry %d: %v", what, entry.Index, err)
		}
		if got.Term != entry.Term || !bytes.Equal(got.Data, entry.Data) || !got.AppendedAt.Equal(entry.AppendedAt) {
			t.Fatalf("%s: entry %d:\n%s", what, entry.Index, cmp.Diff(entry, &got))
		}
	}
	if err := f.GetLog(last+1, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("%s: an entry behind the last: %v", what, err)
	}
}

// Whatever was stored and removed, in whatever order, is the same in the journal
// as in a plain list, also after a crash at any of these moments.
func TestFrontIsALogAlsoAfterACrash(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 3))
		dir := t.TempDir()
		f, _ := openTestFront(t, dir)
		var want []*raft.Log
		term := uint64(1)
		for step := range 60 {
			next := uint64(1)
			if n := len(want); n > 0 {
				next = want[n-1].Index + 1
			}
			what := "append"
			var err error
			switch k := r.IntN(10); {
			case k == 0 && len(want) > 1: // another leader's take their place
				what = "replace"
				at := r.IntN(len(want))
				err = f.DeleteRange(want[at].Index, next-1)
				want = want[:at]
				term++
			case k == 1 && len(want) > 1:
				what = "forget the oldest"
				at := 1 + r.IntN(len(want)-1)
				err = f.DeleteRange(want[0].Index, want[at-1].Index)
				want = want[at:]
			case k == 2:
				what = "a gap, as after a snapshot of another's"
				list := entriesOf(next+100, next+110, term)
				err = f.StoreLogs(list)
				want = append(want, list...)
			case k == 3:
				what = "a long one"
				list := entriesOf(next, next, term)
				list[0].Data = bytes.Repeat([]byte{byte(step)}, frontSize)
				err = f.StoreLogs(list)
				want = append(want, list...)
			default:
				list := entriesOf(next, next+uint64(r.IntN(600)), term)
				err = f.StoreLogs(list)
				want = append(want, list...)
			}
			what = fmt.Sprintf("seed %d, step %d, %s", seed, step, what)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if step%10 == 9 {
				f.holds(t, what, want)
			}
			if step%20 == 19 {
				// The copy must be of one moment: nothing is moved meanwhile.
				f.moving.Lock()
				crashed := asAfterACrash(t, dir)
				f.moving.Unlock()
				again, closeAll := openTestFront(t, crashed)
				again.holds(t, what+", after a crash", want)
				if err := closeAll(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// heldBolt lets nothing be stored until it is let go, or fails.
type heldBolt struct {
	raft.LogStore
	hold chan struct{}
	fail atomic.Pointer[error] // of the mover too
}

func (h *heldBolt) StoreLogs(entries []*raft.Log) error {
	<-h.hold
	if err := h.fail.Load(); err != nil {
		return *err
	}
	return h.LogStore.StoreLogs(entries)
}

// Neither what is moved to bolt nor the removal of old entries holds up who
// writes, until the journal is full; then it waits, and nothing is lost.
func TestWritesDoNotWaitForBolt(t *testing.T) {
	dir := t.TempDir()
	f, _ := openTestFront(t, dir)
	held := &heldBolt{LogStore: f.bolt, hold: make(chan struct{})}
	f.bolt = held
	letGo := sync.OnceFunc(func() { close(held.hold) })
	t.Cleanup(letGo) // or the log could not be closed
	var want []*raft.Log
	store := func() error {
		list := entriesOf(uint64(len(want)+1), uint64(len(want)+100), 1)
		for _, entry := range list {
			entry.Data = append(entry.Data, make([]byte, 1000)...)
		}
		want = append(want, list...)
		return f.StoreLogs(list)
	}
	for range 2 * moveBytes / 100_000 { // the mover is woken, and waits
		if err := store(); err != nil {
			t.Fatal(err)
		}
	}
	f.holds(t, "while bolt waits", want)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for len(want)*1000 < 4*frontSize {
			if err := store(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	select {
	case <-done:
		t.Fatal("more than the journal can hold was acknowledged, and bolt has none of it")
	case <-time.After(time.Second):
	}
	letGo()
	select {
	case <-done:
	case <-time.After(2 * soon): // some hundred writes
		t.Fatal("it does not go on")
	}
	f.holds(t, "in the end", want)
}

// What can't be moved is kept, who writes hears of it, and all is well again when
// bolt is.
func TestTroubleOfBoltIsHeardAndHeals(t *testing.T) {
	f, _ := openTestFront(t, t.TempDir())
	failing, full := &heldBolt{LogStore: f.bolt, hold: make(chan struct{})}, errors.New("no space")
	failing.fail.Store(&full)
	close(failing.hold)
	f.bolt = failing
	want := entriesOf(1, moveEntries, 1)
	if err := f.StoreLogs(want); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(soon)
	for !f.troubled() {
		if time.Now().After(deadline) {
			t.Fatal("nobody noticed that nothing can be moved")
		}
		pause(time.Millisecond)
	}
	more := entriesOf(moveEntries+1, moveEntries+5, 1)
	if err := f.StoreLogs(more); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Fatalf("written though nothing can be moved: %v", err)
	}
	f.holds(t, "after the failure", want)
	failing.fail.Store(nil)
	if err := f.StoreLogs(more); err != nil {
		t.Fatal(err)
	}
	f.holds(t, "after it healed", append(want, more...))
}

// Wherever a bit of the journal flips, it is found or changes nothing; so is a
// journal that is gone.
func TestDamageOfTheJournalIsFoundOrChangesNothing(t *testing.T) {
	dir := t.TempDir()
	f, _ := openTestFront(t, dir)
	want := entriesOf(1, 200, 1)
	for i := range want {
		if err := (&checkedLog{LogStore: f}).StoreLogs(want[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	crashed := asAfterACrash(t, dir)
	used := 210 * 512 // bytes that the records take, about
	r := rand.New(rand.NewPCG(2, 2))
	found, harmless := 0, 0
	paths := frontPaths(crashed)
	for i := range 60 {
		path := paths[r.IntN(2)]
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		at := r.IntN(used)
		bad[at] ^= 1 << r.IntN(8)
		if i%10 == 0 {
			bad = bad[:at]
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		switch err := readAll(crashed, want); {
		case err == nil:
			harmless++
		case errors.Is(err, ErrDamaged):
			found++
		default:
			t.Errorf("byte %d of %s: %v", at, path, err)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if found < 20 {
		t.Errorf("%d damages were found, %d were harmless", found, harmless)
	}
	if err := os.Remove(paths[1]); err != nil {
		t.Fatal(err)
	}
	if err := readAll(crashed, want); !errors.Is(err, ErrDamaged) {
		t.Errorf("a file of the journal is gone: %v", err)
	}
}

// readAll reads a log that is not in use, as Inspect does.
func readAll(dir string, want []*raft.Log) error {
	bolt, err := openBolt(filepath.Join(dir, logName))
	if err != nil {
		return err
	}
	defer bolt.Close()
	f, err := readFront(dir, bolt)
	if err != nil {
		return err
	}
	for _, entry := range want {
		var got raft.Log
		if err := (&checkedLog{LogStore: f}).GetLog(entry.Index, &got); err != nil {
			return fmt.Errorf("unnoticed: %w", io.ErrUnexpectedEOF)
		}
		if !bytes.Equal(got.Data, entry.Data) {
			return fmt.Errorf("unnoticed: entry %d is %q", entry.Index, got.Data)
		}
	}
	return nil
}

func FuzzDecodeEntries(f *testing.F) {
	f.Add(encodeEntries(nil, entriesOf(7, 9, 3)))
	f.Add(encodeEntries(nil, []*raft.Log{{Index: 1, Term: 1 << 60, Extensions: []byte("sum")}}))
	f.Add([]byte{1, 200})
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := decodeEntries(data)
		if err != nil {
			return
		}
		again, err := decodeEntries(encodeEntries(nil, entries))
		if err != nil || len(again) != len(entries) {
			t.Fatalf("%d entries and then %d, %v", len(entries), len(again), err)
		}
		for i := range entries {
			if diff := cmp.Diff(entries[i], again[i]); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(encodeBatch([]*forwarded{{command: []byte("a")}, {}, {command: make([]byte, 300)}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		commands, err := decodeBatch(data)
		if err != nil {
			return
		}
		var batch []*forwarded
		for _, command := range commands {
			batch = append(batch, &forwarded{command: command})
		}
		again, err := decodeBatch(encodeBatch(batch))
		if err != nil || len(again) != len(commands) {
			t.Fatalf("%d commands and then %d, %v", len(commands), len(again), err)
		}
		for i := range again {
			if !bytes.Equal(again[i], commands[i]) {
				t.Fatalf("command %d is %q and then %q", i, commands[i], again[i])
			}
		}
	})
}
