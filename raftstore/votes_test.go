package raftstore

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// countedStable counts writes, and fails those that are not left.
type countedStable struct {
	raft.StableStore
	writes, left int
}

func (s *countedStable) Set(key, value []byte) error {
	if s.writes++; s.writes > s.left {
		return syscall.EIO
	}
	return s.StableStore.Set(key, value)
}

func (s *countedStable) SetUint64(key []byte, value uint64) error {
	return s.Set(key, bigEndian(value))
}

// votes gives a stable store in a new log, and what counts its writes.
func votes(t *testing.T, left int) (*countedStable, func() *voteStable) {
	t.Helper()
	bolt, err := openBolt(filepath.Join(t.TempDir(), logName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bolt.Close(); err != nil {
			t.Error(err)
		}
	})
	counted := &countedStable{StableStore: bolt, left: left}
	return counted, func() *voteStable { return &voteStable{StableStore: checkedStable{counted}} }
}

// vote is what hashicorp/raft does when it votes.
func vote(s raft.StableStore, term uint64, whom string) error {
	if err := s.SetUint64([]byte(keyVoteTerm), term); err != nil {
		return err
	}
	return s.Set([]byte(keyVoteFor), []byte(whom))
}

func wantVote(t *testing.T, what string, s raft.StableStore, term uint64, whom string) {
	t.Helper()
	gotTerm, err := s.GetUint64([]byte(keyVoteTerm))
	got, err2 := s.Get([]byte(keyVoteFor))
	if err := errors.Join(err, err2); err != nil || gotTerm != term || string(got) != whom {
		t.Errorf("%s: voted in term %d for %q (%v), want %d and %q", what, gotTerm, got, err, term, whom)
	}
}

// Each step is followed by a start anew from what is on the disk.
func TestVoteIsOnTheDiskWholeOrNotAtAll(t *testing.T) {
	disk, restarted := votes(t, 2)
	s := restarted()
	if _, err := s.GetUint64([]byte(keyVoteTerm)); !errors.Is(err, raftboltdb.ErrKeyNotFound) || err.Error() != "not found" { // Raft compares the text
		t.Errorf("before any vote: %v", err)
	}
	if _, err := s.Get([]byte(keyVoteFor)); !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		t.Errorf("before any vote: %v", err)
	}
	if err := vote(s, 7, "one"); err != nil || disk.writes != 1 {
		t.Fatalf("%v, %d writes: a vote is one", err, disk.writes)
	}
	wantVote(t, "after a vote", restarted(), 7, "one")
	if err := s.SetUint64([]byte(keyVoteTerm), 8); err != nil || disk.writes != 1 {
		t.Fatalf("%v, %d writes: nobody was voted for yet", err, disk.writes)
	}
	wantVote(t, "a crash in the midst of the next", restarted(), 7, "one")
	if err := s.Set([]byte(keyVoteFor), []byte("two")); err != nil {
		t.Fatal(err)
	}
	wantVote(t, "after the next", restarted(), 8, "two")
	wantVote(t, "without a crash", s, 8, "two")
	if err := vote(s, 9, "three"); !errors.Is(err, syscall.EIO) {
		t.Errorf("a vote that can't be written: %v", err)
	}
	wantVote(t, "a vote that could not be written", s, 8, "two")
	if err := s.Set([]byte(keyVoteFor), []byte("four")); err == nil {
		t.Error("a vote without a term was taken")
	}
	wantVote(t, "a vote without a term", restarted(), 8, "two")
}

func TestVotesOfEarlierVersionsCountUntilThereIsANewer(t *testing.T) {
	disk, restarted := votes(t, 10)
	if err := vote(checkedStable{disk}, 7, "one"); err != nil {
		t.Fatal(err)
	}
	wantVote(t, "of two values", restarted(), 7, "one")
	if err := vote(restarted(), 8, "two"); err != nil {
		t.Fatal(err)
	}
	wantVote(t, "of one value", restarted(), 8, "two")
}

// What Raft keeps beside votes goes to the disk as it did.
func TestTermIsWrittenBeforeItCounts(t *testing.T) {
	disk, restarted := votes(t, 1)
	s := restarted()
	if err := s.SetUint64([]byte(keyTerm), 7); err != nil || disk.writes != 1 {
		t.Fatalf("%v, %d writes", err, disk.writes)
	}
	if got, err := restarted().GetUint64([]byte(keyTerm)); got != 7 || err != nil {
		t.Errorf("the term is %d, %v", got, err)
	}
	if err := s.SetUint64([]byte(keyTerm), 8); !errors.Is(err, syscall.EIO) {
		t.Errorf("a term that can't be written: %v", err)
	}
}

func TestDamagedVoteIsFound(t *testing.T) {
	for what, value := range map[string][]byte{"no checksum": []byte("damaged"), "too short": nil} {
		disk, restarted := votes(t, 10)
		if err := vote(restarted(), 7, "one"); err != nil {
			t.Fatal(err)
		}
		var err error
		if value == nil {
			err = checkedStable{disk}.Set([]byte(keyVote), []byte("short"))
		} else {
			err = disk.Set([]byte(keyVote), value)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := examineVotes(checkedStable{disk}, 0); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: examined: %v", what, err)
		}
		if _, err := restarted().GetUint64([]byte(keyVoteTerm)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: read: %v", what, err)
		}
	}
}
