package raftstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A name that flipped a bit is one that nobody finds: what it stands for would
// count as never set.
func TestFlippedNamesInTheLogsFileAreFound(t *testing.T) {
	found := 0
	for _, name := range []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand", "holdfast vote", "holdfast log format", "logs", "conf"} {
		path := filepath.Join(t.TempDir(), logName)
		writeLog(t, path)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(data, []byte(name)) {
			continue // a vote is kept in one way or the other
		}
		found++
		flip(t, path, name)
		if err := reread(path); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if found < 5 {
		t.Errorf("only %d names are in the file", found)
	}
}

func TestEntriesWithoutATermAreDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), logName)
	bolt, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer bolt.Close()
	log, stable := &checkedLog{LogStore: bolt}, checkedStable{bolt}
	if err := examineLog(log, stable, 0, 0); err != nil {
		t.Errorf("a new log: %v", err)
	}
	if err := examineLog(log, stable, 9, 2); !errors.Is(err, ErrDamaged) {
		t.Errorf("a snapshot and no term: %v", err)
	}
	entries, term := written()
	if err := log.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	if err := examineLog(log, stable, 6, 0); !errors.Is(err, ErrDamaged) {
		t.Errorf("entries and no term: %v", err)
	}
	if err := stable.SetUint64([]byte("CurrentTerm"), term); err != nil {
		t.Fatal(err)
	}
	if err := examineLog(log, stable, 6, 0); err != nil {
		t.Errorf("entries and their term: %v", err)
	}
}
