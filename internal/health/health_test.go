package health

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRaisingAgainKeepsSinceAndReportsOnlyChanges(t *testing.T) {
	now := time.Unix(0, 0)
	var raised, cleared int
	board := NewBoard(func() time.Time { return now }, func(Condition) { raised++ }, func(Condition) { cleared++ })
	board.Raise("disk", Warning, "90 % full")
	now = now.Add(time.Hour)
	board.Raise("disk", Warning, "90 % full")
	board.Raise("disk", Error, "99 % full")
	want := []Condition{{Name: "disk", Severity: Error, Message: "99 % full", Since: time.Unix(0, 0)}}
	if diff := cmp.Diff(want, board.Conditions()); diff != "" {
		t.Error(diff)
	}
	board.Clear("disk")
	board.Clear("disk")
	if raised != 2 || cleared != 1 {
		t.Errorf("reported %d raises and %d ends, want 2 and 1", raised, cleared)
	}
}

func TestNilBoardIgnoresEverything(t *testing.T) {
	var board *Board
	board.Raise("x", Error, "y")
	board.Clear("x")
	if c := board.Conditions(); c != nil {
		t.Errorf("a nil board has %v", c)
	}
}
