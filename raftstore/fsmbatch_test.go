package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// fsmOf is a machine of its own, with what its marks saw: the whole state as a
// snapshot, by the mark's index.
func fsmOf(t *testing.T) (f *fsm, marks map[uint64]string, halts *int) {
	marks, halts = map[uint64]string{}, new(int)
	f = &fsm{state: state.New(), log: slog.New(slog.DiscardHandler)}
	f.halt = func(error) {
		*halts++
		if applied, _ := f.progress(); applied != 18 || f.state.Snapshot().Index() != 18 {
			t.Errorf("it halts at entry 19 with %d applied and the state at %d", applied, f.state.Snapshot().Index())
		}
	}
	f.mark = func(index uint64, s *state.Snapshot) {
		if s.Index() != index {
			t.Errorf("the mark at %d was given the state at %d", index, s.Index())
		}
		marks[index] = wholeState(t, s)
	}
	return f, marks, halts
}

func wholeState(t *testing.T, s *state.Snapshot) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Entries that are applied together give what they give one after the other:
// results, digests at the verify marks among them, what is skipped, and where the
// store halts. It would fail if a batch went on behind a mark, lost what was
// before an entry that halts, or gave a result to another entry.
func TestCommittedBatchWithVerifyMarksIsAsSingleEntries(t *testing.T) {
	command := func(cmd state.Command) raft.Log {
		data, err := state.Encode(cmd)
		if err != nil {
			t.Fatal(err)
		}
		return raft.Log{Type: raft.LogCommand, Data: data}
	}
	put := func(key, value string) raft.Log {
		return command(state.KV{Verb: state.Set, Entry: state.Entry{Key: key, Value: []byte(value)}})
	}
	refused := command(state.KV{Verb: state.CAS, Entry: state.Entry{Key: "a", ModifyIndex: 99}})
	half := command(state.Transact{Ops: []state.KV{
		{Verb: state.Set, Entry: state.Entry{Key: "half"}}, {Verb: state.Get, Entry: state.Entry{Key: "nowhere"}}}})
	mark := command(verifyMark())
	skipped := raft.Log{Type: raft.LogCommand, Data: []byte{1, 99, 1, 0x80}}
	unknown := raft.Log{Type: raft.LogCommand, Data: []byte{1, 99, 0, 0x80}}
	membership := raft.Log{Type: raft.LogConfiguration}
	large := put("large", strings.Repeat("x", state.MaxValue))
	log := []raft.Log{put("a", "1"), put("b", "1"), refused, mark, put("a", "2"), membership, skipped, half, put("c", "1"),
		mark, mark, large, large, large, put("d", "1"), skipped, put("a", "3"), refused, unknown, put("e", "1"), mark}
	var entries []*raft.Log
	for i := range log {
		log[i].Index, log[i].Term = uint64(i)+1, 1
		entries = append(entries, &log[i])
	}

	alone, marksAlone, haltsAlone := fsmOf(t)
	var want []any
	for _, e := range entries {
		want = append(want, alone.ApplyBatch([]*raft.Log{e})[0])
	}
	together, marks, halts := fsmOf(t)
	together.ApplyBatch(entries[:1])
	done, forget := together.reached(17)
	defer forget()
	got := together.ApplyBatch(entries) // with one that is in the state already
	got[0] = want[0]

	for i := range want {
		a, isA := want[i].(result)
		b, isB := got[i].(result)
		if isA != isB || fmt.Sprint(a.err) != fmt.Sprint(b.err) {
			t.Errorf("entry %d: %v, alone %v", i+1, b.err, a.err)
		}
	}
	for i, is := range map[int]error{2: state.ErrConflict, 7: state.ErrConflict, 17: state.ErrConflict, 18: errHalted, 19: state.ErrUnknownOutcome} {
		if r, ok := got[i].(result); !ok || !errors.Is(r.err, is) {
			t.Errorf("entry %d: %v, want %v", i+1, got[i], is)
		}
	}
	if a, b := wholeState(t, alone.state.Snapshot()), wholeState(t, together.state.Snapshot()); a != b {
		t.Error("the states differ")
	}
	if len(marks) != 3 || len(marksAlone) != 3 {
		t.Errorf("%d marks were seen, alone %d, want 3", len(marks), len(marksAlone))
	}
	for index, have := range marks {
		if marksAlone[index] != have {
			t.Errorf("the state at mark %d differs", index)
		}
	}
	applied, halted := together.progress()
	if wantApplied, _ := alone.progress(); applied != 18 || applied != wantApplied || halted == nil || *halts != 1 || *haltsAlone != 1 {
		t.Errorf("applied up to %d, alone %d; halted %d times: %v", applied, wantApplied, *halts, halted)
	}
	select {
	case <-done:
	default:
		t.Error("who waits for an entry of the batch sleeps")
	}
}
