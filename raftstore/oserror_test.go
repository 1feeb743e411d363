package raftstore

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/health"
)

// patientReading is how an engine reads when it opens its log.
func patientReading(t *testing.T) reading {
	t.Helper()
	metrics, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{store: &Store{metrics: metrics, board: health.NewBoard(time.Now, nil, nil), log: slog.New(slog.DiscardHandler)}, disk: &diskHealth{}}
	return func(do func() error) error { return e.patiently(t.Context(), do) }
}

// A disk that reads well and can't be written has lost nothing: to take that for a
// damage would set a good store aside.
func TestWriteErrorWhileTheLogIsOpenedIsNoDamage(t *testing.T) {
	disk := &os.PathError{Op: "fdatasync", Path: logName, Err: syscall.EIO}
	refused := func(what string, err error, tries int) {
		t.Helper()
		if !errors.Is(err, syscall.EIO) || errors.Is(err, ErrDamaged) || tries != 1 {
			t.Errorf("%s: tried %d times, %v; want what the disk says, at once", what, tries, err)
		}
	}
	dir := t.TempDir()
	f, _ := openTestFront(t, dir)
	if err := f.StoreLogs(entriesOf(1, 100, 5)); err != nil {
		t.Fatal(err)
	}
	copied := asAfterACrash(t, dir) // with entries in the journal that bolt has not
	path := filepath.Join(copied, logName)

	tries, options := 0, boltOptions()
	options.OpenFile = func(string, int, fs.FileMode) (*os.File, error) {
		tries++
		return nil, disk
	}
	_, err := openBoltWith(path, options, patientReading(t))
	refused("bolt", err, tries)

	bolt, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer bolt.Close()
	full := &unwritten{LogStore: bolt, err: disk}
	_, err = openFront(copied, full, false, patientReading(t))
	refused("what is in the journal", err, full.tries)
}

// unwritten is bolt on a disk that takes nothing.
type unwritten struct {
	raft.LogStore
	err   error
	tries int
}

func (u *unwritten) StoreLogs([]*raft.Log) error {
	u.tries++
	return u.err
}

// What can't be read of the journal is tried again, and then a damage.
func TestJournalIsReadPatiently(t *testing.T) {
	dir := t.TempDir()
	_, closeAll := openTestFront(t, dir)
	if err := closeAll(); err != nil {
		t.Fatal(err)
	}
	bolt, err := openBolt(filepath.Join(dir, logName))
	if err != nil {
		t.Fatal(err)
	}
	defer bolt.Close()
	patient, reads := patientReading(t), 0
	_, err = openLogReading(dir, bolt, func(do func() error) error {
		reads++
		return patient(func() error {
			if reads == 1 { // of bolt
				return do()
			}
			return &os.PathError{Op: "read", Path: frontName, Err: syscall.EIO}
		})
	})
	if !errors.Is(err, ErrDamaged) || reads != 2 {
		t.Errorf("%d things are read: %v", reads, err)
	}
}
