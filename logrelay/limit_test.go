package logrelay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// TestALimitCountsInWindowsOfTheLinesTime: each word is a line, its second and
// its kind; two of a kind go on in ten seconds.
func TestALimitCountsInWindowsOfTheLinesTime(t *testing.T) {
	for _, test := range []struct{ lines, want string }{
		{"0a 1a 2a 9a", "++--"},
		{"0a 1a 2a 10a 11a 12a", "++-++-"},            // a window begins with each ten seconds
		{"0a 1b 2a 3b 4a 5b", "++++--"},               // each kind has its own
		{"8a 12a 9a 13a", "+++-"},                     // one comes late: it counts, and begins nothing
		{"100a 101a 102a 50a 51a 52a 53a", "++-++--"}, // a clock is set back: nothing waits for the old time
		{"0a 1a 2a 86400a 86401a 86402a", "++-++-"},
	} {
		var w window
		got := ""
		for word := range strings.FieldsSeq(test.lines) {
			kind := word[len(word)-1:]
			second, err := strconv.Atoi(word[:len(word)-1])
			if err != nil {
				t.Fatal(err)
			}
			if w.take(kind, int64(second)*int64(time.Second), &limit{lines: 2, every: 10 * time.Second}) {
				got += "+"
			} else {
				got += "-"
			}
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: %s", test.lines, diff)
		}
	}
}

// TestInventedKindsShareALimit: they neither fill the memory nor get round it.
func TestInventedKindsShareALimit(t *testing.T) {
	var w window
	l := &limit{lines: 3, every: time.Minute}
	went := 0
	for i := range 3 * maxKinds {
		if w.take(strconv.Itoa(i), 0, l) {
			went++
		}
	}
	if want := maxKinds + l.lines; went != want || len(w.taken) > maxKinds {
		t.Errorf("%d lines of as many kinds went on and %d kinds are counted, want %d", went, len(w.taken), want)
	}
	if !w.take("0", 0, l) {
		t.Error("a kind that was there before has no more lines of its own")
	}
	if !w.take("new", int64(time.Minute), l) || len(w.taken) != 1 {
		t.Errorf("the next window begins with %d kinds", len(w.taken))
	}
}

// TestALimitIsPerWhatItSays: hosts, unless another expression stands there;
// lines from another node are counted apart.
func TestALimitIsPerWhatItSays(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	judged := func(r *rules, lines ...*line) (got string) {
		for _, l := range lines {
			got += map[verdict]string{goes: "+", limited: "-", dropped: "!"}[r.judge(l, "files")]
		}
		return got
	}
	lines := func() []*line {
		return []*line{
			lineOf("<13>Nov 25 12:00:00 cn02 a: x", at), lineOf("<13>Nov 25 12:00:00 cn03 a: x", at),
			lineOf("<13>Nov 25 12:00:00 cn02 b: x", at), lineOf("<11>Nov 25 12:00:00 cn02 b: x", at),
		}
	}
	for rule, want := range map[string]string{
		`{if: 'true', limit: {lines: 1, every: 1m}}`:                                      "++--",
		`{if: 'true', limit: {lines: 1, every: 1m, per: app}}`:                            "+-+-",
		`{if: 'true', limit: {lines: 1, every: 1m, per: 'host + "/" + app'}}`:             "+++-",
		`{if: 'true', limit: {lines: 1, every: 1m, per: '"all"'}}`:                        "+---",
		`{if: 'severity > 3', limit: {lines: 1, every: 1m}}`:                              "++-+",
		`{if: 'severity <= 3'}, {if: 'true', limit: {lines: 1, every: 1m}}`:               "++-+",
		`{if: 'true', limit: {lines: 1, every: 1m}, to: [siem]}`:                          "++++",
		`{if: 'true', limit: {lines: 3, every: 1m}}, {if: 'app == "b"', drop: true}`:      "++!!", // within it, the next rule decides
		`{if: 'true', limit: {lines: 1, every: 1m, per: 'split(text, " ")[99]'}}`:         "++++", // none can be told
		`{if: 'true', set: {host: '"cn09"'}}, {if: 'true', limit: {lines: 2, every: 1m}}`: "++--",
	} {
		if got := judged(rulesOf(t, rule), lines()...); got != want {
			t.Errorf("%s: %s, want %s", rule, got, want)
		}
	}
	r := rulesOf(t, `{if: 'true', limit: {lines: 1, every: 1m}}`)
	mixed := []*line{}
	for i := range 4 {
		l := lineOf("<13>Nov 25 12:00:00 cn02 a: x", at.Add(-time.Hour*time.Duration(i%2)))
		if i%2 == 1 {
			l.record.Input |= viaOther
		}
		mixed = append(mixed, l)
	}
	if got := judged(r, mixed...); got != "++--" {
		t.Errorf("lines of here, and those of an hour ago from another node, in turn: %s", got)
	}
	if left := r.leftOut(); len(left) != 1 || left[0].host != "cn02" || left[0].lines != 2 || left[0].rule != 0 || r.leftOut() != nil {
		t.Errorf("left out: %+v", left)
	}
	r = rulesOf(t, `{if: 'true', limit: {lines: 1, every: 1m}}`)
	r.boundless = true
	if got := judged(r, lines()...); got != "++++" || r.leftOut() != nil {
		t.Errorf("for a query: %s", got)
	}
}

// stage is a relay's journal and outputs, without inputs, in virtual time.
type stage struct {
	t     *testing.T
	s     *Server
	j     *journal.Journal
	hosts string // the folder of the files
	ctx   context.Context
	group sync.WaitGroup
	end   func() // ends all that runs
}

// newStage makes one of a section. It is to be ended.
func newStage(t *testing.T, yaml string) *stage {
	t.Helper()
	s, dir, _ := prepare(t)
	set := settingsOf(t, yaml)
	s.settings.rules, s.settings.forward = set.rules, set.forward
	s.settings.path, s.settings.format, s.settings.apps, s.settings.redact = set.path, set.format, set.apps, set.redact
	j, err := journal.Open(journal.Config{Dir: s.dir(), Keep: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	x := &stage{t: t, s: s, j: j, hosts: filepath.Join(dir, "hosts")}
	ctx, cancel := context.WithCancel(t.Context())
	x.ctx, x.end = ctx, func() {
		cancel()
		x.group.Wait()
	}
	x.group.Go(func() { _ = j.Run(ctx) })
	return x
}

// store puts lines into the journal, in one batch, and lets the outputs have
// them.
func (x *stage) store(lines ...string) {
	x.t.Helper()
	var b journal.Batch
	for _, text := range lines {
		b.Add(journal.Record{Time: time.Now().UnixNano(), Source: netip.MustParseAddr("127.0.0.1"), Input: viaRELP, Data: []byte(text)})
	}
	commit, err := x.j.Append(x.ctx, &b)
	if err == nil {
		err = commit.Wait(x.ctx)
	}
	if err != nil {
		x.t.Fatal(err)
	}
	synctest.Wait()
}

// file is what a host's file has, without the times in front.
func (x *stage) file(host string) (lines []string) {
	x.t.Helper()
	b, err := os.ReadFile(filepath.Join(x.hosts, host+fileSuffix))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		x.t.Fatal(err)
	}
	for text := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
		lines = append(lines, rest)
	}
	return lines
}

// flood are so many lines of a host.
func flood(host string, count int) (lines []string) {
	for n := range count {
		lines = append(lines, fmt.Sprintf("<13>Nov 25 12:00:00 %s test: seq=%d.", host, n))
	}
	return lines
}

// told is what is said of lines that were left out now.
func told(host string, lines int, limit string) string {
	now := time.Now().Format(time.TimeOnly)
	return fmt.Sprintf("%s syslog.warning holdfast: %d lines left out, received from %s to %s: more than %s (logs.rules[0].limit)", host, lines, now, now, limit)
}

// TestAFileSaysHowManyLinesALimitLeftOut, in virtual time: a host that floods
// has so many of its lines in its file, and one that tells of the others, in
// each window and at a planned end; nobody else is touched.
func TestAFileSaysHowManyLinesALimitLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{rules: [{if: 'severity > 3', limit: {lines: 3, every: 10s}}]}`)
		defer x.end()
		o, err := x.s.newFiles(x.j)
		if err != nil {
			t.Fatal(err)
		}
		x.group.Go(func() {
			if err := o.run(x.ctx, func() {}); err != nil {
				t.Error(err)
			}
		})
		three := []string{"cn1 user.notice test: seq=0.", "cn1 user.notice test: seq=1.", "cn1 user.notice test: seq=2."}
		var want []string
		for range 3 {
			want = append(want, three...)
			want = append(want, "cn1 user.err test: urgent", told("cn1", 7, "3 in 10s"))
			x.store(append(append(flood("cn1", 10), "<11>Nov 25 12:00:00 cn1 test: urgent"), flood("cn2", 2)...)...)
			<-time.After(time.Minute)
			synctest.Wait()
		}
		if diff := cmp.Diff(want, x.file("cn1")); diff != "" {
			t.Error(diff)
		}
		want = append(append(want, three...), told("cn1", 2, "3 in 10s"))
		x.store(flood("cn1", 5)...)
		x.end()
		if diff := cmp.Diff(want, x.file("cn1")); diff != "" {
			t.Errorf("at the end: %s", diff)
		}
		if got := x.file("cn2"); len(got) != 6 {
			t.Errorf("a host within its limit: %q", got)
		}
		if n := testutil.ToFloat64(x.s.metrics.limited.WithLabelValues("files")); n != 3*7+2 {
			t.Errorf("%v lines are counted", n)
		}
		if n := testutil.ToFloat64(x.s.metrics.dropped.WithLabelValues("files")); n != 0 {
			t.Errorf("%v lines count as dropped by a rule", n)
		}
	})
}

// TestAfterACrashALimitLetsTheSameLinesOn: what was written is cut off and
// written again, and what was told of told once.
func TestAfterACrashALimitLetsTheSameLinesOn(t *testing.T) {
	for name, crash := range map[string]func(o *files) error{
		"in the lines":         func(o *files) error { return o.flush() },
		"behind what was told": func(o *files) error { return errors.Join(o.announce(), o.flush()) },
		"behind the cursor":    func(o *files) error { return o.checkpoint() }, // it is not told again, nor forgotten
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newStage(t, `{rules: [{if: 'true', limit: {lines: 3, every: 10s}}]}`)
				defer x.end()
				o, err := x.s.newFiles(x.j)
				if err != nil {
					t.Fatal(err)
				}
				x.store(flood("cn1", 10)...)
				want := []string{"cn1 user.notice test: seq=0.", "cn1 user.notice test: seq=1.", "cn1 user.notice test: seq=2.", told("cn1", 7, "3 in 10s")}
				o.well = func() {}
				if err := o.begin(); err != nil {
					t.Fatal(err)
				}
				reader := x.j.Reader(o.next)
				block, ok, err := reader.TryNext()
				if err != nil || !ok {
					t.Fatalf("there is no block: %v", err)
				}
				if err := errors.Join(o.take(block), crash(o)); err != nil {
					t.Fatal(err)
				}
				if got := x.file("cn1"); len(got) < 3 {
					t.Fatalf("before the crash: %q", got)
				}
				reader.Close()
				o.end()
				x.group.Go(func() {
					if err := o.run(x.ctx, func() {}); err != nil {
						t.Error(err)
					}
				})
				<-time.After(2 * syncEvery)
				synctest.Wait()
				if diff := cmp.Diff(want, x.file("cn1")); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestATargetThatWasDownGetsWhatALimitWouldHaveLetOn, in virtual time: of an
// hour's lines, which it gets within seconds, as many as it would have got in
// that hour, and a line that tells of the others. The files have no limit.
func TestATargetThatWasDownGetsWhatALimitWouldHaveLetOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{forward: {siem: {relp: "siem:20514"}}, rules: [{if: 'true', limit: {lines: 3, every: 1m}, to: [siem]}]}`)
		defer x.end()
		r, began := &receiver{}, time.Now()
		x.s.dialer = func(context.Context, string, string) (net.Conn, error) {
			if time.Since(began) < time.Hour {
				return nil, errors.New("connection refused")
			}
			here, there := net.Pipe()
			x.group.Go(func() { r.serve(there) })
			return here, nil
		}
		outputs, err := x.s.newOutputs(x.j)
		if err != nil {
			t.Fatal(err)
		}
		x.group.Go(func() { x.s.runOutputs(x.ctx, outputs) })
		for range 60 {
			x.store(flood("cn1", 5)...)
			<-time.After(time.Minute)
		}
		<-time.After(2 * time.Minute)
		synctest.Wait()
		got := r.lines()
		if len(got) != 60*3+1 || !strings.Contains(got[len(got)-1], " cn1 holdfast: 120 lines left out, received from ") {
			t.Errorf("%d lines, the last %q", len(got), got[max(0, len(got)-1):])
		}
		if n := testutil.ToFloat64(x.s.metrics.limited.WithLabelValues("siem")); n != 120 {
			t.Errorf("%v lines are counted", n)
		}
		if got := x.file("cn1"); len(got) != 300 {
			t.Errorf("%d of 300 lines are in the file", len(got))
		}
		// One that is told of has no number in the journal.
		for name, o := range x.s.outputs {
			if next := o.cursor.Next(); next != x.j.End() {
				t.Errorf("the cursor of %s stands at %d of %d", name, next, x.j.End())
			}
		}
		x.store(flood("cn1", 5)...)
		<-time.After(time.Minute)
		synctest.Wait()
		if got := r.lines(); len(got) != 61*3+2 || !strings.Contains(got[len(got)-1], " 2 lines left out") {
			t.Errorf("while it is up: %q", got[60*3:])
		}
	})
}

// TestATargetThatBreaksOffGetsWhatALimitLetOnOnceMore, in virtual time: it took
// lines and answered none, so they are judged and sent anew. It fails if lines
// of the first time count at the second.
func TestATargetThatBreaksOffGetsWhatALimitLetOnOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{forward: {siem: {relp: "siem:20514"}}, rules: [{if: 'true', limit: {lines: 3, every: 24h}}]}`)
		defer x.end()
		r, sessions := &receiver{}, 0
		x.s.dialer = func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			sessions++
			if sessions == 1 {
				x.group.Go(func() { breakOff(there) })
			} else {
				x.group.Go(func() { r.serve(there) })
			}
			return here, nil
		}
		outputs, err := x.s.newOutputs(x.j)
		if err != nil {
			t.Fatal(err)
		}
		x.group.Go(func() { x.s.runOutputs(x.ctx, outputs) })
		x.store(flood("cn1", 10)...)
		<-time.After(2 * time.Minute)
		synctest.Wait()
		got := r.lines()
		if sessions < 2 || len(got) != 4 || !strings.HasPrefix(got[0], "seq=0.") || !strings.HasPrefix(got[2], "seq=2.") || !strings.Contains(got[3], ": 7 lines left out, ") {
			t.Errorf("in %d sessions it got %q, want three lines, and that 7 were left out", sessions, got)
		}
	})
}

// breakOff is a target that opens a session and breaks off at its first line.
func breakOff(conn net.Conn) {
	defer conn.Close()
	var session relp.Server
	var in []byte
	room := make([]byte, 4096)
	for {
		n, err := conn.Read(room)
		if err != nil {
			return
		}
		in = append(in, room[:n]...)
		f, size, err := relp.Parse(in)
		if err != nil {
			return
		}
		if size == 0 {
			continue
		}
		if verdict, err := session.Step(f); err != nil || verdict != relp.Reply {
			return
		}
		if _, err := conn.Write(relp.AppendReply(nil, f)); err != nil {
			return
		}
		in = in[size:]
	}
}

// TestWhatALimitLeavesOutWasAcknowledgedAndIsInTheJournal: it is about outputs
// alone, by the admin's will. Queries show lines as rules change them.
func TestWhatALimitLeavesOutWasAcknowledgedAndIsInTheJournal(t *testing.T) {
	const count = 50
	set := settingsOf(t, `{rules: [{if: 'app == "test"', set: {tag: '"tested"'}}, {if: 'app == "tested"', limit: {lines: 5, every: 24h}}]}`)
	s, dir, _ := serve(t, func(s *settings) { s.rules = set.rules })
	if err := numberedLines(s, "cn1", count); err != nil { // waits for all answers
		t.Fatal(err)
	}
	flushed(t, s)
	if lines, done := ask(t, s, Query{Severity: NoSeverity, Text: " tested: seq="}); len(lines) != count || !done {
		t.Errorf("a query gives %d of %d lines", len(lines), count)
	}
	b, err := os.ReadFile(filepath.Join(dir, "hosts", "cn1"+fileSuffix))
	if err != nil {
		t.Fatal(err)
	}
	written, left := 0, 0
	for text := range strings.Lines(string(b)) {
		if _, rest, ok := strings.Cut(text, " holdfast: "); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Error(err)
			}
			left += n
		} else if strings.Contains(text, " tested: seq=") {
			written++
		}
	}
	// Ten, if a day ended in between.
	if written+left != count || written != 5 && written != 10 {
		t.Errorf("%d lines are in the file, which says that %d were left out, of %d", written, left, count)
	}
}

// TestNoGapIsFoundWhereARuleMadeIt: a sender's numbers are looked at before
// rules leave its lines out.
func TestNoGapIsFoundWhereARuleMadeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{rules: [{if: 'severity == 7', drop: true}]}`)
		defer x.end()
		o, err := x.s.newFiles(x.j)
		if err != nil {
			t.Fatal(err)
		}
		x.group.Go(func() { _ = o.run(x.ctx, func() {}) })
		for n, priority := range []int{14, 15, 15, 14} {
			x.store(fmt.Sprintf(`<%d>1 2026-11-25T12:00:00Z cn1 app - - [meta sequenceId="%d"] x`, priority, n+1))
		}
		<-time.After(syncEvery)
		synctest.Wait()
		if got := x.file("cn1"); len(got) != 2 {
			t.Errorf("%q", got)
		}
		if n := testutil.ToFloat64(x.s.metrics.missing); n != 0 {
			t.Errorf("%v lines are missing", n)
		}
		x.store(`<14>1 2026-11-25T12:00:00Z cn1 app - - [meta sequenceId="7"] x`)
		if n := testutil.ToFloat64(x.s.metrics.missing); n != 2 {
			t.Errorf("%v lines are missing, want 2", n)
		}
	})
}
