package logrelay

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestUpToWhereANodeIsBelieved: over starts at which the journal has less than a
// node was sent, and more again. It fails if a start forgets one before, or if a
// node that has stored lines since is believed no more than before.
func TestUpToWhereANodeIsBelieved(t *testing.T) {
	dir := t.TempDir()
	starts := func(end uint64) *renumbered {
		r := newRenumbered(dir, slog.New(slog.DiscardHandler))
		r.open(end)
		return r
	}
	believed := func(what string, r *renumbered, fb2, fb3 uint64) {
		t.Helper()
		if got2, got3 := r.before("fb2"), r.before("fb3"); got2 != fb2 || got3 != fb3 {
			t.Errorf("%s: fb2 is believed up to %d and fb3 up to %d, want %d and %d", what, got2, got3, fb2, fb3)
		}
	}
	r := starts(100)
	// The file may be missing since it could not be written.
	believed("the first start", r, 0, 0)
	r.agrees("fb2")
	believed("fb2 has stored lines", r, math.MaxUint64, 0)
	believed("after a power cut", starts(150), 150, 0)
	r = starts(180)
	believed("with other lines of the same numbers", r, 150, 0)
	r.agrees("fb2")
	r.agrees("fb3")
	believed("both have stored lines", starts(200), 200, 200)
	if err := os.WriteFile(filepath.Join(dir, renumberedFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	believed("the file is damaged", starts(200), 0, 0)
}

// TestWhatCanNotBeWrittenDownIsLater: a disk is full as this node starts, after a
// power cut, and has space again. It fails if a file is left that says too much, if
// nobody writes it later, or if more is written than changed.
func TestWhatCanNotBeWrittenDownIsLater(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, renumberedFile)
	if err := os.WriteFile(path, fmt.Appendf(nil, `{"base":0,"nodes":{"fb2":%d}}`, uint64(math.MaxUint64)), 0o600); err != nil {
		t.Fatal(err)
	}
	writes, full := 0, true
	begins := func() *renumbered {
		r := newRenumbered(dir, slog.New(slog.DiscardHandler))
		replace := r.replace
		r.replace = func(path string, data []byte, mode fs.FileMode) error {
			if writes++; full {
				return syscall.ENOSPC
			}
			return replace(path, data, mode)
		}
		return r
	}
	r := begins()
	r.open(100)
	if got := r.before("fb2"); got != 100 {
		t.Errorf("fb2 is believed up to %d, want 100", got)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of before is there still: %v", err)
	}
	full = false
	s := &shipper{
		renumbered: r, journal: newJournal(t), replicas: &replicas{}, others: func() []Other { return nil },
		letGo: func() uint64 { return 0 },
	}
	var err error
	if s.cursor, err = s.journal.Cursor("replica", false); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_ = s.run(t.Context(), func() {}) // there is no other node
	}
	if writes != 2 {
		t.Errorf("it was written %d times, want once at the start and once later", writes)
	}
	next := begins()
	next.open(200)
	if got := next.before("fb2"); got != 100 {
		t.Errorf("after the next start fb2 is believed up to %d, want 100", got)
	}
}

// TestAStartWithoutReplicasShipsNothingTwice: a node has another, then none, then the
// other again. It fails if what the other has comes there once more, or if it does not
// get what it lacks.
func TestAStartWithoutReplicasShipsNothingTwice(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	second.start(t)
	sent := 0
	for _, replicas := range []int{2, 1, 2} {
		first.make(t, all, filepath.Join(filepath.Dir(first.dir), "pki-fb1"))
		first.settings.replicas, first.replicaPatience = replicas, time.Minute
		first.start(t)
		first.send(t, sent, 20)
		sent += 20
		first.end()
	}
	eventually(t, time.Minute, "the second has all lines", func() error {
		if lost := missing(second.files(t), sent); len(lost) > 0 {
			return fmt.Errorf("%v are missing", lost)
		}
		return nil
	})
	second.end()
	if got := second.files(t); len(got) != sent {
		t.Errorf("the second has %d lines in its files, want %d", len(got), sent)
	}
}

// TestAStartWithoutReplicasNotesNumbersThatAreGivenTwice, if there was another node
// before. It fails if such a node is then believed what it has of the first of them,
// or if a file is left that says so.
func TestAStartWithoutReplicasNotesNumbersThatAreGivenTwice(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	path := filepath.Join(dir, renumberedFile)
	alone := func(end uint64) error { return keepRenumbered(dir, log, end) }
	if err := alone(50); err != nil || exists(path) {
		t.Errorf("there was no other node: %v, and the file is there: %v", err, exists(path))
	}
	with := newRenumbered(dir, log)
	with.open(100)
	with.agrees("fb2")
	if err := errors.Join(alone(150), alone(180)); err != nil {
		t.Fatal(err)
	}
	with = newRenumbered(dir, log)
	if with.open(200); with.before("fb2") != 150 || with.before("fb3") != 0 {
		t.Errorf("fb2 is believed up to %d and fb3 up to %d, want 150 and 0", with.before("fb2"), with.before("fb3"))
	}
	if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := alone(200); err == nil {
		t.Error("a file that says too much can be neither written nor removed, and the relay starts")
	}
}

// TestLinesWithTheNumbersOfLostOnesReachTheOtherNode: a node shipped lines, lost them
// with its power, and gave their numbers to others while the other node was away.
// Then it starts once more, and these are on its disk like any. It fails if the
// other is believed to have them, since it has the first ones of these numbers.
func TestLinesWithTheNumbersOfLostOnesReachTheOtherNode(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	first, second := all[0], all[1]
	disk := &power{}
	begins := func(n *node, patience time.Duration) {
		n.make(t, all, filepath.Join(filepath.Dir(n.dir), "pki-"+n.name))
		n.replicaPatience = patience
		n.start(t)
	}
	begins(second, time.Minute)
	first.losesWhatItShips(t, second, disk, 100, 130, second.end)
	begins(first, 100*time.Millisecond)
	first.send(t, 10, 50) // by another client, with the numbers of those
	first.end()
	begins(first, 100*time.Millisecond)
	begins(second, time.Minute)
	eventually(t, time.Minute, "the second has all lines", func() error {
		if lost := missing(second.files(t), 60); len(lost) > 0 {
			return fmt.Errorf("%v are missing", lost)
		}
		return nil
	})
}
