package logrelay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// poisonRules panic over a line with the word poison: windows of no length, which
// no cluster file can have, divide by zero.
func poisonRules(t *testing.T) []rule {
	t.Helper()
	set := settingsOf(t, `{rules: [{if: 'text contains "poison"', limit: {lines: 1, every: 1s}}]}`)
	set.rules[0].limit.every = 0
	return set.rules
}

// poisonSecrets fit nowhere, and panic over a line without the word fine where
// patterns are asked of its parts.
func poisonSecrets() []*secret {
	never := regexp.MustCompile(`\x00never`)
	return []*secret{{Regexp: never, loose: regexp.MustCompile("fine")}, {Regexp: never}}
}

// poisonFormat panics over a line with the word poison, with that line.
var poisonFormat = lineFormat{whole: func(l *line, dst []byte) []byte {
	if bytes.Contains(l.Text, []byte("poison")) {
		panic(string(l.Text))
	}
	return l.appendFile(dst)
}}

// TestALineThatPanicsCostsNoOtherLine of a block, wherever it does: where it is
// read, judged, given a path, or written, and where the line in its place is. That
// stands where the line would, and has nothing of it. It fails where a panic ends
// the process, as at each start since; where its line is passed over without a
// word; where it stands behind younger ones; and where the panic's own words, or
// the host of the line before, are taken for harmless.
func TestALineThatPanicsCostsNoOtherLine(t *testing.T) {
	for _, test := range []struct {
		where, section string
		inject         func(o *files)
		lost           int    // of five lines
		file           string // where the line in place of a lost one is
	}{
		{"read", `{}`, func(o *files) { o.names.known = nil }, 5, "others.log"},
		{"judged", `{}`, func(o *files) { o.rules.list = poisonRules(t) }, 2, "cn1.log"},
		{"path", `{files: {path: "{host}/{app}.log"}}`, func(o *files) { o.rules.secrets = poisonSecrets() }, 2, "cn1+.log"},
		{"written", `{}`, func(o *files) { o.config.format = poisonFormat }, 2, "cn1.log"},
		{"written below its program's name", `{files: {path: "{host}/{app}.log"}}`, func(o *files) { o.config.format = poisonFormat }, 2, "cn1/test.log"},
		{"both written", `{files: {format: json}}`, func(o *files) { o.rules.secrets = poisonSecrets() }, 2, "cn1.log"},
		{"both written, as text", `{files: {format: rfc5424}}`, func(o *files) { o.rules.secrets = poisonSecrets() }, 2, "cn1.log"},
	} {
		t.Run(test.where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newStage(t, test.section)
				defer x.end()
				var list []string
				for n, word := range []string{"fine", "poison", "fine", "poison", "fine"} {
					list = append(list, fmt.Sprintf("<13>Nov 25 12:00:00 cn1 test: %s seq=%d. password=hunter2", word, n))
				}
				x.store("<13>Nov 25 12:00:00 cn2 test: fine, and of another host")
				x.store(list...)
				o := beginFiles(t, x)
				reader := x.j.Reader(0)
				defer reader.Close()
				for _, inject := range []func(*files){func(*files) {}, test.inject} {
					inject(o)
					block, err := reader.Next(t.Context())
					if err := errors.Join(err, o.take(block), o.flush()); err != nil {
						t.Fatal(err)
					}
				}
				checkStandIns(t, x, test.lost, test.file)
				if n := testutil.ToFloat64(o.metrics.broken); n != float64(test.lost) {
					t.Errorf("%v lines are counted, want %d", n, test.lost)
				}
				panics := test.lost
				if strings.HasPrefix(test.where, "both") {
					panics *= 2
				}
				if n := x.s.bugs.count; n != panics {
					t.Errorf("%d panics are told of, want %d", n, panics)
				}
				if n := testutil.ToFloat64(o.metrics.lines); n != 6 {
					t.Errorf("%v lines are in the files, want 6 with those in the place of others", n)
				}
				if list := x.s.board.Conditions(); len(list) != 1 || list[0].Name != conditionFailed || strings.Contains(list[0].Message, "poison") {
					t.Errorf("conditions: %v", list)
				}
			})
		})
	}
}

// checkStandIns looks into the files of a stage for five lines of host cn1, of which
// some could not be handled: the second and the fourth, or all. One of host cn2 stands in
// front of them in the journal.
func checkStandIns(t *testing.T, x *stage, lost int, file string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(x.hosts, file))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	if strings.Contains(text, "poison") || strings.Count(text, "could not be handled") != lost {
		t.Errorf("%s: %q", file, text)
	}
	for _, part := range []string{"line 2 of this node's journal (", "line 4 of this node's journal (", " bytes, by relp) ", conditionFailed} {
		if !strings.Contains(text, part) {
			t.Errorf("%s: no %q in %q", file, part, text)
		}
	}
	if lines := x.file("cn2"); lost == 5 && len(lines) != 1 {
		t.Errorf("lines that nobody could read are in the file of the host before: %q", lines)
	}
	if strings.HasPrefix(text, "{") {
		for line := range strings.Lines(text) {
			if !json.Valid([]byte(line)) {
				t.Errorf("no JSON: %s", line)
			}
		}
	}
	if strings.Contains(text, "seq=0.") { // they stand in one file
		order := []int{strings.Index(text, "seq=0."), strings.Index(text, "line 2 of"), strings.Index(text, "seq=2."), strings.Index(text, "line 4 of"), strings.Index(text, "seq=4.")}
		if !slices.IsSorted(order) {
			t.Errorf("%s: the order is %v: %s", file, order, text)
		}
	}
}

// TestALineThatPanicsEndsNoRelay: of three by RELP, the second is another one in the
// file and at the target, and all outputs are behind it. It fails where a panic is
// recovered for one of the two alone, and where the cursor stays in front of the
// line.
func TestALineThatPanicsEndsNoRelay(t *testing.T) {
	last, lastDir, _ := serve(t, nil)
	s, dir, board := prepare(t)
	s.settings.rules = poisonRules(t)
	s.settings.forward = []target{{name: "siem", via: viaRELP, addresses: []string{last.Addrs("relp")[0].String()}}}
	stop := run(t, s)
	c, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	for n, word := range []string{"fine", "poison", "fine"} {
		if _, err := c.conn.Write(c.session.AppendLine(nil, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn1 test: %s seq=%d. password=hunter2", word, n))); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.read(0); err != nil {
		t.Fatal(err)
	}
	raised(t, board, conditionFailed, true)
	for output, in := range map[string]string{"files": dir, "siem": lastDir} {
		has(t, in, "cn1", "seq=2.")
		b, err := os.ReadFile(filepath.Join(in, "hosts", "cn1.log"))
		if err != nil {
			t.Fatal(err)
		}
		first, behind, ok := strings.Cut(string(b), "line 1 of this node's journal")
		if !ok || !strings.Contains(first, "seq=0.") || !strings.Contains(behind, "integer divide by zero") || strings.Contains(string(b), "poison") {
			t.Errorf("%s: %q", output, b)
		}
		if n := testutil.ToFloat64(s.metrics.broken.WithLabelValues(output)); n != 1 {
			t.Errorf("%s: %v lines are counted", output, n)
		}
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	for _, o := range s.Status().Outputs {
		if o.Next != 3 {
			t.Errorf("%s stands at %d, want 3: its next start would come to the line once more", o.Name, o.Next)
		}
	}
	stop()
}

// TestATargetIsSentALineInThePlaceOfOneThatPanics, in either format, and also where
// that one panics, too: in order, framed, with nothing of the line. It fails where
// the line goes out as it came since redaction is what panicked.
func TestATargetIsSentALineInThePlaceOfOneThatPanics(t *testing.T) {
	s, _, _ := prepare(t)
	for _, test := range []struct {
		format string
		rules  *rules
		want   string // how the line in the place of another begins
		panics int
	}{
		{format3164, &rules{list: poisonRules(t)}, `<43>\S+ cn01 holdfast: line 7 of`, 1},
		{format5424, &rules{list: poisonRules(t)}, `<43>1 \S+ cn01 holdfast - - - line 7 of`, 1},
		{format3164, &rules{secrets: []*secret{{}}}, `<43>\S+ - holdfast: line 7 of`, 2},
		{format5424, &rules{secrets: []*secret{{}}}, `<43>1 \S+ - holdfast - - - line 7 of`, 2},
	} {
		s.bugs.count = 0
		f := &forward{target: target{name: "siem", via: viaTCP, format: test.format}, rules: test.rules, names: testNames(), metrics: s.metrics.output("siem"), bugs: s.bugs}
		before := testutil.ToFloat64(f.metrics.broken)
		r := journal.Record{Time: time.Now().UnixNano(), Source: netip.MustParseAddr("10.1.0.31"), Input: viaUDP, Data: []byte("<13>Nov 25 12:00:00 cn01 test: poison hunter2")}
		if !f.judge(7, r) {
			t.Fatalf("%s: it is passed over without a word", test.format)
		}
		f.frame(7)
		out := string(f.out)
		if !regexp.MustCompile(`^\d+ `+test.want).MatchString(out) || strings.Contains(out, "hunter2") || strings.Contains(out, "poison") {
			t.Errorf("%s: %q, want %q", test.format, out, test.want)
		}
		if size, text, _ := strings.Cut(out, " "); size != fmt.Sprint(len(text)) {
			t.Errorf("a frame of %d bytes that says %s", len(text), size)
		}
		if n := testutil.ToFloat64(f.metrics.broken) - before; n != 1 || s.bugs.count != test.panics {
			t.Errorf("%s: %v lines and %d panics are counted, want 1 and %d", test.format, n, s.bugs.count, test.panics)
		}
	}
}

// TestAQueryGivesALineInThePlaceOfOneThatPanics, and a sum counts it. It fails where
// the answer breaks off there, and where who asks raises a condition, or renews it.
func TestAQueryGivesALineInThePlaceOfOneThatPanics(t *testing.T) {
	var log bytes.Buffer
	board := health.NewBoard(time.Now, nil, nil)
	f := &filter{names: testNames(), severity: 7, bugs: &bugs{log: slog.New(slog.NewTextHandler(&log, nil)), board: board}}
	f.rules.secrets = poisonSecrets()
	r := journal.Record{Source: netip.MustParseAddr("10.1.0.31"), Input: viaRELP, Data: []byte("<13>Nov 25 12:00:00 cn01 test: hunter2")}
	e := f.look(7, r)
	if e == nil || e.Host != "cn01" || !strings.Contains(e.Line, "line 7 of") || strings.Contains(e.Line, "hunter2") {
		t.Errorf("%+v", e)
	}
	if name, wanted := f.name(7, r, countBy("app")); name != overflow || !wanted {
		t.Errorf("counted as %q, %v", name, wanted)
	}
	f.hosts = map[string]bool{"cn02": true}
	if e := f.look(7, r); e != nil {
		t.Errorf("of another host: %+v", e)
	}
	f.written, r.Data = &rules{list: poisonRules(t)}, []byte("<13>Nov 25 12:00:00 cn01 test: poison") // in front of the look at its host
	if name, wanted := f.name(7, r, countBy("app")); wanted || f.line.lost == "" {
		t.Errorf("of another host, and counted as %q; it panicked: %v", name, f.line.lost != "")
	}
	if list := board.Conditions(); len(list) != 0 || strings.Count(log.String(), "a query") != 1 {
		t.Errorf("conditions %v; the log: %s", list, log.String())
	}
}

// TestALineThatPanicsIsNotMissing: it came, and its number with it. It fails where the
// next line of its host has a gap in front of it, where a number in the text of a line
// counts, or that of a relay's line for the relay, and where a panic over the number
// ends the process.
func TestALineThatPanicsIsNotMissing(t *testing.T) {
	s, _, _ := prepare(t)
	o := &files{names: testNames(), rules: &rules{}, gaps: newGaps(), missing: s.metrics.missing, bugs: s.bugs, metrics: s.metrics.output("files")}
	at := netip.MustParseAddr("10.1.0.31") // cn01
	record := func(source netip.Addr, text string) journal.Record {
		return journal.Record{Time: time.Now().UnixNano(), Source: source, Input: viaUDP, Data: []byte(text)}
	}
	numbered := func(n int) journal.Record {
		return record(at, fmt.Sprintf(`<13>1 2026-11-25T12:00:00Z cn01 test - - [meta sequenceId="%d"] x`, n))
	}
	o.judge(0, numbered(1))
	l := line{host: "cn01"}
	o.countStill(&l, numbered(2))
	o.judge(1, numbered(3))
	o.countStill(&l, record(at, `<13>Nov 25 12:00:00 cn01 test: [meta sequenceId="2000"]`))
	o.countStill(&l, record(netip.MustParseAddr("127.0.0.1"), `<13>1 2026-11-25T12:00:00Z cn05 test - - [meta sequenceId="2000"] x`))
	o.judge(2, numbered(4))
	if n := testutil.ToFloat64(s.metrics.missing); n != 0 {
		t.Errorf("%v lines are missing: %v", n, o.gaps.newest())
	}
	o.gaps = nil
	if !o.judge(3, numbered(5)) || o.line.lost == "" {
		t.Error("no line stands in the place of one over whose number something panicked")
	}
}

// TestABugIsToldOfOnceAMinute, in virtual time, by log and condition, and for an hour
// after the last. It fails where each line of many has its stack in the log, or the
// condition stands for ever.
func TestABugIsToldOfOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		board := health.NewBoard(time.Now, nil, nil)
		b := &bugs{log: slog.New(slog.NewTextHandler(&log, nil)), board: board}
		panicking := func() {
			defer func() { b.caught(recover(), "output files", "line", 7) }()
			var none []int
			_ = none[len(log.Bytes())]
		}
		for range 100 {
			panicking()
		}
		if n := strings.Count(log.String(), "stack="); n != 1 || !strings.Contains(log.String(), "bugs_test.go") {
			t.Errorf("%d stacks: %s", n, log.String())
		}
		text := func() string {
			list := board.Conditions()
			if len(list) != 1 || list[0].Name != conditionFailed {
				return fmt.Sprint(list)
			}
			return list[0].Message
		}
		<-time.After(failedAgain)
		if b.expire(time.Now()); !strings.HasPrefix(text(), "100 times") || !strings.Contains(text(), "output files: runtime error: index out of range") {
			t.Errorf("a minute later: %s", text())
		}
		if panicking(); strings.Count(log.String(), "stack=") != 2 || !strings.Contains(log.String(), "panics=100 ") {
			t.Errorf("the next: %s", log.String())
		}
		<-time.After(failedFor - time.Second)
		if b.expire(time.Now()); !strings.HasPrefix(text(), "101 times") {
			t.Errorf("almost an hour later: %s", text())
		}
		<-time.After(time.Second)
		if b.expire(time.Now()); len(board.Conditions()) != 0 {
			t.Errorf("an hour later: %s", text())
		}
	})
}

// TestAPanicsOwnWordsAreNotToldUnlessTheyAreTheRuntimes: they may have the line in
// them.
func TestAPanicsOwnWordsAreNotToldUnlessTheyAreTheRuntimes(t *testing.T) {
	why := func(f func()) (why string) {
		defer func() { why = whyOf(recover()) }()
		f()
		return ""
	}
	var none map[string]int
	for want, f := range map[string]func(){
		"assignment to entry in nil map":     func() { none["hunter2"] = 1 },
		"a panic with a string":              func() { panic("hunter2") },
		"a panic with a *errors.errorString": func() { panic(errors.New("hunter2")) },
	} {
		if got := why(f); !strings.HasSuffix(got, want) || strings.Contains(got, "hunter2") {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
