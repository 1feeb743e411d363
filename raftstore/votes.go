package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// hashicorp/raft's names of what it keeps in the stable store.
const (
	keyTerm     = "CurrentTerm"
	keyVoteTerm = "LastVoteTerm"
	keyVoteFor  = "LastVoteCand"
)

// keyVote is ours of the last vote: its term (8 bytes, big-endian) and for whom.
const keyVote = "holdfast vote"

// voteStable keeps the last vote as one value. hashicorp/raft writes its term
// and then for whom it was, each in a transaction with two syncs, and an election
// waits for both on two servers after one another. The term is kept in memory
// until it is said for whom: nobody has been told of a vote by then, and a crash
// leaves the vote of before. Raft's goroutine alone calls it.
//
// What versions before format 3 wrote is read until there is a newer vote.
type voteStable struct {
	raft.StableStore // below; it checks what it gives back

	mu   sync.Mutex
	term *uint64 // of a vote that is being given; nil: none is
}

// SetUint64 implements raft.StableStore; it blocks until the value is on the
// disk, but for the term of a vote.
func (v *voteStable) SetUint64(key []byte, value uint64) error {
	if string(key) != keyVoteTerm {
		return v.StableStore.SetUint64(key, value)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.term = &value
	return nil
}

// Set implements raft.StableStore; it blocks until the value is on the disk.
func (v *voteStable) Set(key, value []byte) error {
	if string(key) != keyVoteFor {
		return v.StableStore.Set(key, value)
	}
	v.mu.Lock()
	term := v.term
	v.term = nil // also if it fails: then there was no vote
	v.mu.Unlock()
	if term == nil {
		return fmt.Errorf("a vote for %q: its term must be set before", value)
	}
	return v.StableStore.Set([]byte(keyVote), append(bigEndian(*term), value...))
}

// GetUint64 implements raft.StableStore.
func (v *voteStable) GetUint64(key []byte) (uint64, error) {
	if string(key) != keyVoteTerm {
		return v.StableStore.GetUint64(key)
	}
	term, _, err := readVote(v.StableStore)
	return term, err
}

// Get implements raft.StableStore.
func (v *voteStable) Get(key []byte) ([]byte, error) {
	if string(key) != keyVoteFor {
		return v.StableStore.Get(key)
	}
	_, whom, err := readVote(v.StableStore)
	return whom, err
}

// readVote gives the last vote; the error for none is raftboltdb.ErrKeyNotFound.
func readVote(stable raft.StableStore) (term uint64, whom []byte, err error) {
	vote, err := stable.Get([]byte(keyVote))
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		term, err = stable.GetUint64([]byte(keyVoteTerm))
		if err != nil {
			return 0, nil, err
		}
		whom, err = stable.Get([]byte(keyVoteFor))
		if errors.Is(err, raftboltdb.ErrKeyNotFound) { // it crashed before it said for whom: no vote
			return term, nil, nil
		}
		return term, whom, err
	}
	if err != nil {
		return 0, nil, err
	}
	if len(vote) < 8 {
		return 0, nil, fmt.Errorf("%q: %w: %d bytes, and a vote has 8 and more", keyVote, ErrDamaged, len(vote))
	}
	return binary.BigEndian.Uint64(vote), bytes.Clone(vote[8:]), nil
}

var _ raft.StableStore = (*voteStable)(nil)
