package raftstore

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// The last key of a damaged log can be any number: what is looked at ends with the
// first entry that is missing, as the start's look does.
func TestInspectionOfALogWithASenselessEndComesBack(t *testing.T) {
	log := &checkedLog{LogStore: raft.NewInmemStore()}
	far := uint64(1) << 40
	if err := log.StoreLogs(append(entriesOf(7, 12, 1), entriesOf(far, far, 1)...)); err != nil {
		t.Fatal(err)
	}
	in := Inspection{Entries: map[string]uint64{}, Snapshots: []InspectedSnapshot{{Index: 9, Term: 1}}}
	done := make(chan error, 1)
	go func() { done <- in.readEntries(log, 10, new(raft.Configuration)) }()
	select {
	case err := <-done:
		if err != nil || in.LastIndex != 12 || in.Entries[raft.LogCommand.String()] != 6 {
			t.Errorf("up to %d, %v, %v", in.LastIndex, in.Entries, err)
		}
	case <-time.After(soon):
		t.Fatal("it looks for entries that never were")
	}
}

// What a restore left out below the snapshot is no end.
func TestInspectionGoesOnBehindTheHoleOfARestore(t *testing.T) {
	log := &checkedLog{LogStore: raft.NewInmemStore()}
	if err := log.StoreLogs(append(entriesOf(7, 12, 1), entriesOf(101, 103, 2)...)); err != nil {
		t.Fatal(err)
	}
	in := Inspection{Entries: map[string]uint64{}, Snapshots: []InspectedSnapshot{{Index: 100, Term: 2}}, LastIndex: 100, LastTerm: 2}
	if err := in.readEntries(log, 10, new(raft.Configuration)); err != nil || in.LastIndex != 103 {
		t.Errorf("up to %d, %v", in.LastIndex, err)
	}
}
