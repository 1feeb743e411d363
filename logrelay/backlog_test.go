package logrelay

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// backlogged is a relay that does not run, with a journal of ten segments, one
// line in each, and outputs: the files have all, and no target has any.
type backlogged struct {
	*Server
	j   *journal.Journal
	dir string // of it
	one int64  // bytes of a segment
}

const backlogLines = 10

func newBacklogged(t *testing.T, targets map[string]backlog) *backlogged {
	t.Helper()
	dir := t.TempDir()
	j, err := journal.Open(journal.Config{Dir: dir, Segment: 1})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		board: health.NewBoard(time.Now, nil, nil), log: slog.New(slog.DiscardHandler), gate: newGate(),
		settings: settings{rotate: rotateConfig{free: 10, keep: 10}}, outputs: map[string]*outputState{},
	}
	s.current.Store(j)
	if s.metrics, err = newMetrics(prometheus.NewRegistry(), func() float64 { return 0 }); err != nil {
		t.Fatal(err)
	}
	for name, b := range targets {
		cursor, err := j.Cursor("to-"+name, false)
		if err != nil {
			t.Fatal(err)
		}
		s.outputs[name] = newOutputState(cursor)
		s.outputs[name].backlog = &b
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = j.Run(ctx)
	}()
	for i := range backlogLines {
		var b journal.Batch
		b.Add(journal.Record{Time: int64(i), Data: []byte("<13>Nov 25 12:00:00 cn1 test: x")})
		commit, err := j.Append(ctx, &b)
		if err == nil {
			err = commit.Wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	end()
	<-ended
	cursor, err := j.Cursor("files", true)
	if err != nil {
		t.Fatal(err)
	}
	s.outputs["files"] = newOutputState(cursor)
	return &backlogged{s, j, dir, j.Bytes() / backlogLines}
}

// condition is the message of one; "": it does not stand.
func (b *backlogged) condition(name string) string {
	for _, c := range b.board.Conditions() {
		if c.Name == name {
			return c.Message
		}
	}
	return ""
}

// TestADeadTargetKeepsNoMoreThanItMay: by its bound, and by the disk's.
func TestADeadTargetKeepsNoMoreThanItMay(t *testing.T) {
	for _, test := range []struct {
		name   string
		target func(one int64) backlog
		replay int64 // segments
		free   float64
		files  uint64 // where their cursor stands
		want   uint64 // where the target's does
	}{
		{"room, and no bound", func(int64) backlog { return backlog{} }, 0, 50, 10, 0},
		{"room, and a bound", func(one int64) backlog { return backlog{most: 4 * one} }, 0, 50, 10, 6},
		{"the journal keeps more anyway", func(one int64) backlog { return backlog{most: 4 * one} }, 7, 50, 10, 3},
		{"room just enough", func(int64) backlog { return backlog{} }, 0, 12, 10, 0},
		{"short of room", func(int64) backlog { return backlog{} }, 3, 11.9, 10, 7},
		{"short of room, and a bound", func(one int64) backlog { return backlog{most: 8 * one} }, 3, 11.9, 10, 7},
		{"short of room, and all are to wait", func(int64) backlog { return backlog{wait: true} }, 3, 1, 10, 0},
		{"short of room, with a bound for those that wait", func(one int64) backlog { return backlog{most: 8 * one, wait: true} }, 3, 1, 10, 2},
		{"the files are not there yet", func(int64) backlog { return backlog{} }, 3, 1, 4, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBacklogged(t, map[string]backlog{"siem": {}})
			*b.outputs["siem"].backlog = test.target(b.one)
			b.settings.replay = test.replay * b.one
			if err := b.outputs["files"].cursor.Commit(test.files); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second finds nothing to do
				b.bound(b.j, test.free)
			}
			if got := b.outputs["siem"].cursor.Next(); got != test.want {
				t.Errorf("the target goes on at %d, want %d", got, test.want)
			}
			if got := testutil.ToFloat64(b.metrics.letGo.WithLabelValues("siem")); got != float64(test.want) {
				t.Errorf("%v lines are counted, want %d", got, test.want)
			}
			said := b.condition(conditionBacklog + "siem")
			if (said != "") != (test.want > 0) || test.want > 0 && !strings.Contains(said, fmt.Sprintf(" %d of them", test.want)) {
				t.Errorf("the condition says %q, want %d lines", said, test.want)
			}
			if got := testutil.ToFloat64(b.metrics.waitingBytes.WithLabelValues("siem")); got != float64(b.one)*float64(backlogLines-test.want) {
				t.Errorf("%v bytes wait, want those of %d lines", got, backlogLines-test.want)
			}
		})
	}
}

// TestTheConditionEndsWhenTheTargetHasAllAgain, and not before.
func TestTheConditionEndsWhenTheTargetHasAllAgain(t *testing.T) {
	b := newBacklogged(t, map[string]backlog{"siem": {}, "well": {}})
	if err := b.outputs["well"].cursor.Commit(backlogLines); err != nil {
		t.Fatal(err)
	}
	b.settings.replay = 2 * b.one
	b.bound(b.j, 5)
	for next := uint64(8); next <= backlogLines; next++ {
		if err := b.outputs["siem"].cursor.Commit(next); err != nil {
			t.Fatal(err)
		}
		b.bound(b.j, 50)
		if said := b.condition(conditionBacklog + "siem"); (said == "") != (next == backlogLines) {
			t.Errorf("at %d of %d: %q", next, backlogLines, said)
		}
	}
	if said := b.condition(conditionBacklog + "well"); said != "" || testutil.ToFloat64(b.metrics.letGo.WithLabelValues("well")) != 0 {
		t.Errorf("a target that takes its lines: %q", said)
	}
}

// TestADeadTargetCostsNoFile: on a disk that the journal and the files share,
// what is kept for the target goes first. With a target whose lines are to
// wait, files go, and a condition says so until there is room.
func TestADeadTargetCostsNoFile(t *testing.T) {
	for _, wait := range []bool{false, true} {
		dir := putAway(t)
		before := leftOf(t, dir)
		b := newBacklogged(t, map[string]backlog{"siem": {wait: wait}})
		all, more := b.j.Bytes(), 0.0
		// All of the journal leaves 9 %, and none 19 %.
		b.space = func(string) (float64, error) { return 9 + more + 10*(1-float64(b.j.Bytes())/float64(all)), nil }
		b.look()
		r := newRotator(dir, b.settings.rotate, layoutOf(t), b.log)
		r.space, r.room = b.space, &room{board: b.board, removed: b.metrics.removed}
		if err := r.tidy(); err != nil {
			t.Fatal(err)
		}
		space := testutil.ToFloat64(b.metrics.removed.WithLabelValues("space"))
		said := b.condition(conditionRemoved)
		if !wait {
			if left := leftOf(t, dir); left != before || space != 0 || said != "" {
				t.Errorf("%q are left of %q, %v files went for space: %q", left, before, space, said)
			}
			continue
		}
		if left := leftOf(t, dir); left != "cn1.log cn2.log cn3.log.old notes.txt" || space != 4 || !strings.HasPrefix(said, "4 log files") {
			t.Errorf("where lines are to wait %q are left, %v files went for space: %q", left, space, said)
		}
		for _, step := range []struct {
			more float64
			want bool
		}{{2.9, true}, {3, false}} {
			more = step.more
			if err := r.tidy(); err != nil || (b.condition(conditionRemoved) != "") != step.want {
				t.Errorf("with %v %% free the condition says %q, %v", 9+more, b.condition(conditionRemoved), err)
			}
		}
	}
}

// TestAnotherNodesBacklogGoesBeforeFilesToo: but for what the journal keeps
// anyway, unless the disk is nearly full. It fails if all of it goes.
func TestAnotherNodesBacklogGoesBeforeFilesToo(t *testing.T) {
	b := newBacklogged(t, map[string]backlog{"siem": {wait: true}}) // it keeps all in the journal
	cursor, err := b.j.Cursor("replica", true)
	if err != nil {
		t.Fatal(err)
	}
	b.settings.replay = 3 * b.one
	lets := b.letsReplicaGo(b.j, cursor)
	for _, test := range []struct {
		next uint64
		free float64
		want uint64
	}{{0, 50, 0}, {0, 11, 7}, {7, 11, 0}, {6, 11, 7}, {7, 4, backlogLines}} {
		if err := cursor.Commit(test.next); err != nil {
			t.Fatal(err)
		}
		b.gate.disk(100 - test.free)
		b.bound(b.j, test.free)
		if got := lets(); got != test.want {
			t.Errorf("at %d with %v %% free: those from %d on are kept, want %d", test.next, test.free, got, test.want)
		}
	}
}

// TestNoReplayBeginsBeforeWhatIsKept: it would be let go within a second, and an
// Error would say that the target does not take its lines.
func TestNoReplayBeginsBeforeWhatIsKept(t *testing.T) {
	b := newBacklogged(t, map[string]backlog{"siem": {}})
	siem := b.outputs["siem"]
	if _, err := b.j.Cursor("other", false); err != nil { // nothing is removed
		t.Fatal(err)
	}
	if err := siem.cursor.Commit(backlogLines); err != nil {
		t.Fatal(err)
	}
	b.settings.replay = 3 * b.one
	for _, test := range []struct {
		free  float64
		since int64
		want  bool
	}{{50, 0, true}, {11, 0, false}, {11, 6, false}, {11, 7, true}} {
		b.bound(b.j, test.free)
		_, err := b.Replay("siem", time.Unix(0, test.since))
		if (err == nil) != test.want {
			t.Errorf("with %v %% free, from line %d on: %v", test.free, test.since, err)
		}
		if _, end, err := siem.begin(t.Context()); err != nil { // as its run does
			t.Fatal(err)
		} else {
			end()
		}
		b.bound(b.j, test.free)
		if said := b.condition(conditionBacklog + "siem"); said != "" {
			t.Errorf("with %v %% free, from line %d on: %s", test.free, test.since, said)
		}
		if err := siem.cursor.Commit(backlogLines); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLinesThatNeverWereWaitForNobody: the newest segment is lost, and the numbers
// that it had room for are set apart. What waits, what is lacked, and what is let go
// is counted in lines that the journal has. A relay that subtracts numbers says
// hundreds of thousands.
func TestLinesThatNeverWereWaitForNobody(t *testing.T) {
	b := newBacklogged(t, map[string]backlog{"siem": {}})
	newest := filepath.Join(b.dir, fmt.Sprintf("%020d.journal", backlogLines-1))
	if err := os.WriteFile(newest, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(journal.Config{Dir: b.dir, Segment: 1})
	if err != nil {
		t.Fatal(err)
	}
	b.current.Store(j)
	for name, cursor := range map[string]string{"siem": "to-siem", "files": "files"} {
		if b.outputs[name].cursor, err = j.Cursor(cursor, false); err != nil {
			t.Fatal(err)
		}
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = j.Run(ctx)
	}()
	for range 3 {
		var batch journal.Batch
		batch.Add(journal.Record{Time: 1, Data: []byte("<13>Nov 25 12:00:00 cn1 test: x")})
		commit, err := j.Append(ctx, &batch)
		if err == nil {
			err = commit.Wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	end()
	<-ended
	if j.End() < 1<<20/11 {
		t.Fatalf("the journal ends at %d", j.End())
	}
	const want = backlogLines + 3 // the files had the one that is lost
	if got := b.outputs["siem"].status("siem", j, j.End()).Waiting; got != want {
		t.Errorf("the status says that %d lines wait, want %d", got, want)
	}
	if err := testutil.CollectAndCompare(outlook{b.Server}, strings.NewReader(fmt.Sprintf(`
# HELP holdfast_logs_waiting_lines Lines that an output does not durably have yet, by output.
# TYPE holdfast_logs_waiting_lines gauge
holdfast_logs_waiting_lines{output="files"} 3
holdfast_logs_waiting_lines{output="siem"} %d
`, want)), "holdfast_logs_waiting_lines"); err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := b.Flush(short); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("siem lacks %d lines", want)) {
		t.Errorf("flush: %v", err)
	}
	if err := b.outputs["files"].cursor.Commit(j.End()); err != nil {
		t.Fatal(err)
	}
	b.settings.replay = 3 * b.one
	if err := b.outputs["siem"].cursor.Commit(backlogLines); err != nil {
		t.Fatal(err)
	}
	b.bound(j, 5)
	if said := b.condition(conditionBacklog + "siem"); said != "" {
		t.Errorf("only numbers that no line has lie in front of what is kept, and it says %q", said)
	}
	b.settings.replay = 0
	if err := b.outputs["siem"].cursor.Commit(0); err != nil {
		t.Fatal(err)
	}
	b.bound(j, 5)
	if said := b.condition(conditionBacklog + "siem"); !strings.Contains(said, fmt.Sprintf(" %d of them", want-1)) {
		t.Errorf("all but the newest are let go, and it says %q", said)
	}
	if got := testutil.ToFloat64(b.metrics.letGo.WithLabelValues("siem")); got != want-1 {
		t.Errorf("%v lines are counted, want %d", got, want-1)
	}
}
