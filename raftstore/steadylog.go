package raftstore

import (
	"errors"
	"runtime"

	"github.com/hashicorp/raft"
)

// steadyLog is the log that Raft is given. hashicorp/raft panics when it can't
// read an entry that is committed, which would end the node's other services too.
// A damage has been told by then and ends the store; whoever of Raft met it waits
// for that.
type steadyLog struct {
	raft.LogStore
	running func() bool     // whether Raft runs; before, it takes an error
	ended   <-chan struct{} // Raft is being stopped
}

// GetLog implements raft.LogStore. On a damage it does not return: no answer would
// be true. Raft's goroutine ends, with what it deferred, as in steadyStable.
func (s steadyLog) GetLog(index uint64, entry *raft.Log) error {
	err := s.LogStore.GetLog(index, entry)
	if errors.Is(err, ErrDamaged) && s.running() {
		<-s.ended
		runtime.Goexit()
	}
	return err
}

// soundLog is bolt, whose panics on senseless pages are the damage that they are,
// also in goroutines where nobody could catch them.
type soundLog struct{ bolt raft.LogStore }

// FirstIndex implements raft.LogStore.
func (s soundLog) FirstIndex() (index uint64, err error) {
	err = soundly(func() (err error) {
		index, err = s.bolt.FirstIndex()
		return err
	})
	return index, err
}

// LastIndex implements raft.LogStore.
func (s soundLog) LastIndex() (index uint64, err error) {
	err = soundly(func() (err error) {
		index, err = s.bolt.LastIndex()
		return err
	})
	return index, err
}

// GetLog implements raft.LogStore.
func (s soundLog) GetLog(index uint64, entry *raft.Log) error {
	return soundly(func() error { return s.bolt.GetLog(index, entry) })
}

// StoreLog implements raft.LogStore.
func (s soundLog) StoreLog(entry *raft.Log) error { return s.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore.
func (s soundLog) StoreLogs(entries []*raft.Log) error {
	return soundly(func() error { return s.bolt.StoreLogs(entries) })
}

// DeleteRange implements raft.LogStore.
func (s soundLog) DeleteRange(first, last uint64) error {
	return soundly(func() error { return s.bolt.DeleteRange(first, last) })
}
