package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// written is what the log of a test has.
func written() (entries []*raft.Log, term uint64) {
	r := rand.New(rand.NewPCG(5, 1))
	for i := range 300 {
		entry := &raft.Log{Index: uint64(7 + i), Term: uint64(1 + i/100), Type: raft.LogCommand, Data: make([]byte, r.IntN(400))}
		for k := range entry.Data {
			entry.Data[k] = byte(r.Uint32())
		}
		if i%9 == 0 {
			entry.Extensions = []byte(fmt.Sprint("extension ", i))
		}
		entries = append(entries, entry)
	}
	return entries, 3
}

func writeLog(t *testing.T, path string) {
	t.Helper()
	bolt, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer bolt.Close()
	newest, err := openLogOver(filepath.Dir(path), bolt)
	if err != nil {
		t.Fatal(err)
	}
	entries, term := written()
	stable := &voteStable{StableStore: checkedStable{bolt}}
	err = errors.Join((&checkedLog{LogStore: newest}).StoreLogs(entries), newest.Close(),
		stable.SetUint64([]byte("CurrentTerm"), term), stable.SetUint64([]byte("LastVoteTerm"), term),
		stable.Set([]byte("LastVoteCand"), []byte("10.1.0.1:8300")))
	if err != nil {
		t.Fatal(err)
	}
}

// reread opens a log as a start does, and reads everything.
func reread(path string) (err error) {
	bolt, err := openBolt(path)
	if err != nil {
		return err
	}
	defer bolt.Close()
	newest, err := openLogOver(filepath.Dir(path), bolt)
	if err != nil {
		return err
	}
	defer newest.Close()
	log, stable := &checkedLog{LogStore: newest}, checkedStable{bolt}
	if err := examineLog(log, stable, 6, 0); err != nil {
		return err
	}
	entries, term := written()
	for _, want := range entries {
		var got raft.Log
		if err := log.GetLog(want.Index, &got); err != nil {
			return fmt.Errorf("UNNOTICED: %w", err)
		}
		got.AppendedAt = want.AppendedAt
		if diff := cmp.Diff(*want, got); diff != "" {
			return fmt.Errorf("UNNOTICED: entry %d:\n%s", want.Index, diff)
		}
	}
	first, _ := log.FirstIndex()
	last, _ := log.LastIndex()
	gotTerm, err := stable.GetUint64([]byte("CurrentTerm"))
	voted, vote, err2 := readVote(stable)
	if err := errors.Join(err, err2); err != nil || gotTerm != term || voted != term || string(vote) != "10.1.0.1:8300" ||
		first != entries[0].Index || last != entries[len(entries)-1].Index {
		return fmt.Errorf("UNNOTICED: term %d, voted %d for %q, entries %d to %d, %w", gotTerm, voted, vote, first, last, err)
	}
	return nil
}

// Wherever a bit of the file flips or a sector is zeroed, it is found, or it
// was in a place that nobody reads.
func TestDamageOfTheLogIsFoundOrChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), logName)
	writeLog(t, path)
	if err := reread(path); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(11, 1))
	found, harmless := 0, 0
	for range 200 {
		bad := bytes.Clone(good)
		at := r.IntN(len(bad))
		what := fmt.Sprintf("bit flipped in byte %d", at)
		switch r.IntN(8) {
		case 0:
			at &^= 511
			clear(bad[at : at+512])
			what = fmt.Sprintf("sector at %d zeroed", at)
		case 1:
			bad = bad[:at]
			what = fmt.Sprintf("cut at %d", at)
		default:
			bad[at] ^= 1 << r.IntN(8)
		}
		if bytes.Equal(bad, good) {
			continue
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		switch err := reread(path); {
		case err == nil:
			harmless++
		case strings.Contains(err.Error(), "UNNOTICED"):
			t.Errorf("%s: %v", what, err)
		case !errors.Is(err, ErrDamaged) && !strings.Contains(err.Error(), "checksums"):
			t.Errorf("%s: %v, which does not say that it is damaged", what, err)
		default:
			found++
		}
	}
	if found < 40 {
		t.Errorf("only %d damages were found, %d were harmless: what was tried?", found, harmless)
	}
	t.Logf("%d found, %d harmless", found, harmless)
}

func TestDamagedServerStaysOutAndComesBackWiped(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	h.settled("fb1 fb2 fb3", "") // or two of them may be all the voters
	h.leader().put("before", "1")
	victim := h.follower()
	h.everywhere("before", "1")
	victim.stop()
	flip(t, filepath.Join(victim.dir, "raft", logName), "before")

	board := health.NewBoard(time.Now, nil, nil)
	store, err := New(victim.config(), state.New(), Deps{Board: board})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	err = store.Run(ctx, func() { t.Error("it says that it is ready") })
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "log entry") || !strings.Contains(err.Error(), "wipe the whole data directory "+victim.dir) {
		t.Fatalf("Run: %v", err)
	}
	if c := board.Conditions(); len(c) != 1 || c[0].Name != conditionDamaged {
		t.Errorf("conditions: %v", c)
	}
	h.leader().put("after", "2")
	victim.wipe()
	victim.start()
	h.settled(strings.Join(h.order, " "), "")
	h.everywhere("before", "1")
	h.everywhere("after", "2")
}

// flip flips a bit wherever a text stands in a file.
func flip(t *testing.T, path, text string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := bytes.Count(data, []byte(text))
	if n == 0 {
		t.Fatalf("%q is not in %s", text, path)
	}
	wrong := []byte(text)
	wrong[0] ^= 1
	if err := os.WriteFile(path, bytes.ReplaceAll(data, []byte(text), wrong), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLogWithoutChecksumsIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), logName)
	bolt, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	entries, _ := written()
	if err := bolt.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	if err := bolt.Close(); err != nil {
		t.Fatal(err)
	}
	if err := reread(path); err == nil || !strings.Contains(err.Error(), "it keeps no checksums") {
		t.Errorf("%v", err)
	}
}

// Restoring a snapshot leaves a hole in the log of the leader, which is none of
// the disk's doing.
func TestRestoredSnapshotsHoleIsNoDamage(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	h.leader()
	o.put("k", "1")
	var saved bytes.Buffer
	if err := o.store.SaveSnapshot(t.Context(), &saved); err != nil {
		t.Fatal(err)
	}
	if err := o.store.RestoreSnapshot(t.Context(), &saved); err != nil {
		t.Fatal(err)
	}
	o.put("k", "2")
	o.stop()
	o.start()
	h.leader()
	h.everywhere("k", "2")
}

func TestLogThatDoesNotReachItsSnapshotIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), logName)
	writeLog(t, path) // entries 7 to 306
	bolt, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer bolt.Close()
	for covered, want := range map[uint64]string{6: "", 5: "log entry 6", 0: "log entry 1", 400: ""} {
		err := examineLog(&checkedLog{LogStore: bolt}, checkedStable{bolt}, covered, 0)
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), want)) {
			t.Errorf("with a snapshot up to %d: %v, want %q", covered, err, want)
		}
	}
}
