package logrelay

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/logrelay/journal"
)

// TestASecretAtTheEndOfALineIsWrittenNowhere: not into the file, not onward,
// and not in the answer to a query; and the lines behind it stay lines of
// their own. A pattern that sees the line feed has no end to fit at, or takes
// the line feed away.
func TestASecretAtTheEndOfALineIsWrittenNowhere(t *testing.T) {
	secrets := func(s *settings) { s.redact = []string{`password=.*$`, `token=[^ ]+`} }
	last, lastDir, _ := serve(t, nil)
	first, dir, _ := serve(t, func(s *settings) {
		secrets(s)
		s.forward = []target{{name: "siem", via: viaRELP, addresses: []string{last.Addrs("relp")[0].String()}}}
	})
	c, err := dial(first.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	for _, text := range []string{"one password=hunter2 and more", "two token=hunter3", "three token=hunter4 is old", "four"} {
		if _, err := c.conn.Write(c.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 cn1 test: "+text))); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.read(0); err != nil {
		t.Fatal(err)
	}
	want := []string{"one [redacted]", "two [redacted]", "three [redacted] is old", "four"}
	check := func(where string, lines []string) error {
		if len(lines) != len(want) {
			return fmt.Errorf("%s: %q, want %d lines", where, lines, len(want))
		}
		for i, line := range lines {
			if _, text, _ := strings.Cut(line, "test: "); text != want[i] {
				return fmt.Errorf("%s: %q, want %q", where, line, want[i])
			}
		}
		return nil
	}
	for where, dir := range map[string]string{"the file": dir, "the target's file": lastDir} {
		eventually(t, time.Minute, "the lines come", func() error {
			b, err := os.ReadFile(filepath.Join(dir, "hosts", "cn1.log"))
			if err != nil {
				return err
			}
			return check(where, strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"))
		})
	}
	lines, done := ask(t, first, Query{Severity: NoSeverity})
	if err := check("a query", lines); err != nil || !done {
		t.Error(err, done)
	}
}

// hiding are rules with patterns of secrets.
func hiding(t *testing.T, patterns ...string) *rules {
	t.Helper()
	r := &rules{}
	for _, text := range patterns {
		one, err := compileSecret(text)
		if err != nil {
			t.Fatal(err)
		}
		r.secrets = append(r.secrets, one)
	}
	return r
}

// everyFormat is one of each kind, with each variable that a sender chooses.
var everyFormat = []string{
	"scibian", "rsyslog", "traditional", "rfc5424", "json",
	"{tag}{text}", "{text}", "{host}|{claims}|{source}|{app}|{proc}|{tag}|{text}", "{text} {app}", "{text}, {tag}", "{proc}\t{text}\t",
}

// TestASecretStandsInNoFormat, wherever it is in a line: behind a line feed or a
// tab, and where the pattern begins in the tag and ends in the text. It fails
// if a format tries patterns in the raw parts alone, or in each part alone, or
// leaves the host or the source out.
func TestASecretStandsInNoFormat(t *testing.T) {
	for _, test := range []struct{ pattern, text string }{
		{`password=.*$`, "<13>Nov 25 12:00:00 cn02 app: password=one\nhunter2"},
		{`password=\S+`, "<13>Nov 25 12:00:00 cn02 app: password=hun\nhunter2 x"},
		{`password=#011\S+`, "<13>Nov 25 12:00:00 cn02 app: password=\thunter2"},
		{`password: \S+`, "<13>Nov 25 12:00:00 cn02 password: hunter2 is wrong"},
		{`password:\s+\S+`, "<13>password: hunter2"},
		{`Bearer \S+`, "<13>Nov 25 12:00:00 cn02 Bearer hunter2"},
		{`password=\S+`, "<13>Nov 25 12:00:00 cn02 password=hunter2 is wrong"},
		{`key\[[^ ]+`, "<13>Nov 25 12:00:00 cn02 key[hunter2]: x"},
		{`app\[7\]: .*`, "<165>1 2026-11-25T05:14:15Z cn02 app 7 - - hunter2 and more"},
		{`user\.notice \S+ .*`, "<13>Nov 25 12:00:00 cn02 app: hunter2"},
		{`cn02 user\.notice .*`, "<13>Nov 25 12:00:00 cn02 hunter2: hunter2"},
		{`hunter\d`, "<13>Nov 25 12:00:00 hunter2 app: x"},
		{`\bhunter2\b`, "<13>Nov 25 12:00:00 cn02 a\x01/hunter2/x: x"},
		{`(?i)TOKEN.*$`, "<13>Nov 25 12:00:00 cn02 app: a token\x7fhunter2"},
		{`one.*`, "<13>Nov 25 12:00:00 cn02 one[hunter2]: two"},
	} {
		r := hiding(t, `no such thing`, test.pattern)
		for _, format := range everyFormat {
			if strings.Contains(test.pattern, "notice") && (format == "rsyslog" || format == "traditional") {
				continue // they have no facility, and patterns are tried in the line as it stands
			}
			l := inParis(test.text)
			before := fmt.Sprintf("%q %s", []any{l.Host, l.Tag, l.App, l.Proc, l.Text, l.ID, l.Data}, l.host)
			out := written(t, format, l, r)
			if strings.Contains(out, "hunter2") {
				t.Errorf("%s in %q as %s: %s", test.pattern, test.text, format, out)
			}
			if format == "json" && !json.Valid([]byte(out)) {
				t.Errorf("%s in %q: %s is no JSON", test.pattern, test.text, out)
			}
			if after := fmt.Sprintf("%q %s", []any{l.Host, l.Tag, l.App, l.Proc, l.Text, l.ID, l.Data}, l.host); after != before {
				t.Errorf("%s in %q as %s: the line is another behind that: %s", test.pattern, test.text, format, after)
			}
		}
	}
	// A pattern takes no other's beginning away.
	for _, format := range everyFormat {
		l := inParis("<13>Nov 25 12:00:00 cn02 app: user=root password=hunter2 user=x 44")
		out := written(t, format, l, hiding(t, `user=\S+`, `user=\S+ password=\S+`, `root`, `4$`))
		if strings.Contains(out, "hunter2") || !strings.Contains(out, "[redacted] [redacted] 4[redacted]") {
			t.Errorf("as %s: %s", format, out)
		}
	}
	for _, pattern := range []string{`10\.1\.0\.\d`, `^10\.1\.0\.9$`, `^cn02$`, `^ID7$`, `^\[a b="c"\]$`, `^hi$`, `^8$`} {
		out := written(t, "json", inParis(`<165>1 2026-11-25T05:14:15Z cn02 app 8 ID7 [a b="c"] hi`), hiding(t, pattern))
		if !strings.Contains(out, redacted) || !json.Valid([]byte(out)) {
			t.Errorf("%s is redacted in no part of %s", pattern, out)
		}
	}
}

// TestOnlyWhatIsCoveredIsRedacted: the other parts, and what is around it, stay
// as they came. It fails if a part's place in the line is another than hide
// takes it for.
func TestOnlyWhatIsCoveredIsRedacted(t *testing.T) {
	const older, newer = "<13>Nov 25 12:00:00 cn02 key[7]: \x01one two three", `<13>1 2026-11-25T05:14:15Z cn02 key 7 ID [a b="c"] one two three`
	for _, test := range []struct{ in, pattern, want string }{
		{older, "two", "cn02|key|7|key[7]:|#001one [redacted] three"},
		{older, `7\]: #001one`, "cn02|key|[redacted]|key[[redacted]|[redacted] two three"},
		{older, `y\[`, "cn02|ke[redacted]|7|ke[redacted]7]:|#001one two three"},
		{older, "ey|7.*ne|one", "cn02|k[redacted]|[redacted]|k[redacted][[redacted]|[redacted] two three"},
		{newer, `7\]: one`, "cn02|key|[redacted]|key[[redacted]]:|[redacted] two three"},
		{newer, "(two|three)", "cn02|key|7|key[7]:|one [redacted] [redacted]"},
		{"<13>Nov 25 12:00:00 cn02 key[7]: a\tb\x01 c", "a\tb", "cn02|key|7|key[7]:|[redacted]#001 c"}, // as it came
		{newer, "^cn02", "[redacted]|key|7|key[7]:|one two three"},
	} {
		const format = "{claims}|{app}|{proc}|{tag}|{text}"
		if diff := cmp.Diff(test.want, written(t, format, inParis(test.in), hiding(t, test.pattern))); diff != "" {
			t.Errorf("%s in %q: %s", test.pattern, test.in, diff)
		}
	}
}

// TestATargetGetsNoSecretThatBeginsInTheTag, in RFC 5424 no more than in RFC
// 3164. It fails if what is sent is redacted as it stands alone.
func TestATargetGetsNoSecretThatBeginsInTheTag(t *testing.T) {
	for _, format := range []string{format3164, format5424} {
		f := &forward{target: target{via: viaTCP, format: format}, rules: hiding(t, `password: \S+`)}
		f.line = *inParis("<13>Nov 25 12:00:00 cn02 password: hunter2 is wrong")
		f.frame(1)
		if got := string(f.out); strings.Contains(got, "hunter2") || !strings.HasSuffix(got, redacted+" is wrong") {
			t.Errorf("%s: %s", format, got)
		}
	}
}

// TestAQueryNamesNoProgramThatIsASecret, neither by line nor in a sum.
func TestAQueryNamesNoProgramThatIsASecret(t *testing.T) {
	f := &filter{names: testNames(), severity: 7}
	f.rules.secrets = hiding(t, `password=\S+`).secrets
	record := journal.Record{Source: netip.MustParseAddr("10.1.0.9"), Data: []byte("<13>Nov 25 12:00:00 cn02 password=hunter2 is wrong")}
	if !f.take(record) {
		t.Fatal("a query for all takes no line")
	}
	if e, by := f.entry(), countBy("app")(f); e.App != redacted || by != redacted || strings.Contains(e.Line, "hunter2") {
		t.Errorf("%+v, counted as %q", e, by)
	}
}

// TestAConditionOfAQueryKnowsNoSecret: who asks whether a line contains one, letter
// by letter, has the same answer whatever it is. It fails where a condition judges
// what the answer then hides, and where the line is another behind it.
func TestAConditionOfAQueryKnowsNoSecret(t *testing.T) {
	const text = "<13>Nov 25 12:00:00 cn02 password=hunter2[12]: token: hunter2, and fine"
	for condition, want := range map[string]bool{
		`text contains "hunter"`: false,
		`app contains "hunter"`:  false,
		`any([text, app, proc, host, claims, source], # contains "unt")`: false,
		`text matches "h.nter"`:                                   false,
		`text contains "[redacted], and fine"`:                    true,
		`app == "[redacted]"`:                                     true,
		`host == "cn02" && source == "10.1.0.9" && severity == 5`: true,
	} {
		program, err := compile(condition)
		if err != nil {
			t.Fatal(err)
		}
		f := &filter{names: testNames(), severity: 7, rules: rules{list: []rule{{program: program}}, secrets: hiding(t, `password=\w+`, `hunter\d`).secrets}}
		r := journal.Record{Source: netip.MustParseAddr("10.1.0.9"), Data: []byte(text)}
		if got := f.take(r); got != want {
			t.Errorf("%s: %v, want %v", condition, got, want)
		}
		if got := string(f.line.Text); !strings.Contains(got, "hunter2") || f.line.host != "cn02" {
			t.Errorf("%s: behind it the line is %q, of %s", condition, got, f.line.host)
		}
	}
}

// TestASecretIsNoFilesName: where the path has {app}, and a sender's first word
// is one, or begins one that goes on in the text. It fails if a file is called
// as the line's program whatever the patterns say.
func TestASecretIsNoFilesName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{host}/{app}.log"}, redact: ['password=\S+', 'Bearer \S+']}`)
		defer x.end()
		o := beginFiles(t, x)
		for text, want := range map[string]string{
			"password=hunter2 is wrong": "cn02/redacted.log",
			"x,password=hunter2: wrong": "cn02/redacted.log",
			"Bearer hunter2":            "cn02/redacted.log",
			"login: password=hunter2":   "cn02/login.log",
		} {
			l := lineOf("<13>Nov 25 12:00:00 cn02 "+text, time.Now())
			if f, err := o.fileOf(l); err != nil || f.name != want {
				t.Errorf("%q is in %v, want %s (%v)", text, f, want, err)
			}
		}
	})
}

// lonely are lines of which a part stands by itself: the default format leaves
// it out, or it is no part of the tag.
var lonely = []string{
	"<13>1 2026-11-25T12:00:00Z h - " + strings.Repeat("p", 300) + " - - a\tb",
	"<13>1 2026-11-25T12:00:00Z h - p\x01 - - ",
	"<13>1 - - - p - - a\x7f",
	"<13>1 - - - - i\t - ",
	"<13>1 - - - - - [a b=\"\t\"]",
	"<13>1 - - - - - - \x01",
	"<13>Nov 25 12:00:00 cn02 :\t",
	"<13>Nov 25 12:00:00 cn02 [\t]:",
	"\t",
	// What /dev/log takes of a process that names no program.
	"<13>1 2026-11-25T12:00:00Z - - 4711 - [" + localData + ` uid="0" gid="0"] a` + "\tb",
}

// TestALineWithoutAProgramThatHasAProcessIsWritten, in every format and into a
// file of its program's: a datagram that no output can write stands in the
// journal, and ends the relay at each start. It fails if hide looks for a process
// in a tag that is not there.
func TestALineWithoutAProgramThatHasAProcessIsWritten(t *testing.T) {
	r := hiding(t, `password=\S+`, `^zzz`)
	for _, in := range lonely {
		for _, format := range everyFormat {
			if got, want := written(t, format, inParis(in), r), written(t, format, inParis(in), nil); got != want {
				t.Errorf("%q as %s: %q, want %q", in, format, got, want)
			}
		}
		if _, covered := r.app(inParis(in)); covered {
			t.Errorf("%q: its program is redacted", in)
		}
	}
	for in, part := range map[string]string{
		"<13>1 2026-11-25T12:00:00Z h - password=zzz - - x":         `"proc":"[redacted]"`,
		"<13>1 2026-11-25T12:00:00Z h - a\tpassword=zzz - - x\ty":   `"proc":"a#011[redacted]"`,
		"<13>1 2026-11-25T12:00:00Z h - zzz - - x":                  `"proc":"[redacted]"`,
		"<13>1 2026-11-25T12:00:00Z h - - password=zzz - x":         `"id":"[redacted]"`,
		"<13>1 2026-11-25T12:00:00Z - - - - [a b=\"password=zzz\"]": `"data":"[a b=\"[redacted]"`,
		"<13>1 2026-11-25T12:00:00Z password=zzz - - - - \t":        `"claims":"[redacted]"`,
		"<13>1 2026-11-25T12:00:00Z h zzz password=zzz - - x":       `"app":"[redacted]","proc":"[redacted]"`,
		"<13>Nov 25 12:00:00 cn02 [password=zzz]: \tx":              `"app":"[[redacted]"`,
		"<13>1 2026-11-25T12:00:00Z h - p - - \xef\xbb\xbfzzz, zzz": `"text":"[redacted], zzz"`,
	} {
		for _, format := range everyFormat {
			out := written(t, format, inParis(in), r)
			if strings.Contains(out, "password=zzz") || format == "json" && !strings.Contains(out, part) {
				t.Errorf("%q as %s: %s, want %s", in, format, out, part)
			}
		}
	}
}

// TestNoLineStopsTheFiles: those of before, and the next, are in a file, whatever
// the path and the format have of them. It fails as the test above does, where
// a relay would end.
func TestNoLineStopsTheFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{host}/{app}.log", format: json}, redact: ['password=\S+']}`)
		defer x.end()
		x.store(append(lonely, "<13>1 2026-11-25T12:00:00Z cn02 - password=hunter2 - - x", "<13>Nov 25 12:00:00 cn02 test: last")...)
		o := beginFiles(t, x)
		reader := x.j.Reader(0)
		defer reader.Close()
		block, err := reader.Next(t.Context())
		if err := errors.Join(err, o.take(block), o.flush()); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for name := range o.open {
			b, err := os.ReadFile(filepath.Join(x.hosts, name))
			if err != nil || strings.Contains(string(b), "hunter2") {
				t.Errorf("%s: %s (%v)", name, b, err)
			}
			lines += strings.Count(string(b), "\n")
		}
		if want := len(lonely) + 2; lines != want {
			t.Errorf("%d lines are in the files, want %d", lines, want)
		}
	})
}

// TestAWrongPlaceHidesThePart, all of it, and nothing is cut from outside of the
// line. It fails if a place is taken for right that has not the part in it.
func TestAWrongPlaceHidesThePart(t *testing.T) {
	r := hiding(t, `hunter2`)
	for name, of := range map[string]func(*line, *places) (*[]byte, *span){
		"claims": func(l *line, at *places) (*[]byte, *span) { return &l.Host, &at.claims },
		"tag":    func(l *line, at *places) (*[]byte, *span) { return &l.Tag, &at.tag },
		"app":    func(l *line, at *places) (*[]byte, *span) { return &l.App, &at.app },
		"proc":   func(l *line, at *places) (*[]byte, *span) { return &l.Proc, &at.proc },
		"text":   func(l *line, at *places) (*[]byte, *span) { return &l.Text, &at.text },
		"id":     func(l *line, at *places) (*[]byte, *span) { return &l.ID, &at.id },
		"data":   func(l *line, at *places) (*[]byte, *span) { return &l.Data, &at.data },
	} {
		for _, move := range [][2]int{{-1 << 20, 0}, {0, 1 << 20}, {1, 0}, {-1, -1}, {1 << 20, -1 << 20}, {1, 1}} {
			l := inParis("<13>Nov 25 12:00:00 cn02 key[7]: one")
			l.ID, l.Data = []byte("ID"), []byte("[a]")
			plain, at := l.appendPlain(nil)
			r.plain, r.covered = plain, nil
			part, place := of(l, &at)
			*place = span{place.from + move[0], place.to + move[1]}
			if r.hideAt(l, at); string(*part) != redacted {
				t.Errorf("%s, whose place is off by %v, is %q", name, move, *part)
			}
			if l.host != "cn02" {
				t.Errorf("%s, whose place is off by %v, takes the host with it: %q", name, move, l.host)
			}
		}
	}
	l := inParis("<13>Nov 25 12:00:00 cn02 key[7]: one")
	plain, at := l.appendPlain(nil)
	r.plain, r.covered, at.host = plain, nil, span{1, 1 << 20}
	if r.hideAt(l, at); l.host != redacted {
		t.Errorf("the host is %q", l.host)
	}
}

// TestPatternsAreAskedOnceALine: where its program is in the path, what that
// found out holds for the line that is written, and for no other. It fails if
// mayHide is asked twice, or if a line is taken for the one before.
func TestPatternsAreAskedOnceALine(t *testing.T) {
	f, err := parseFormat("json")
	if err != nil {
		t.Fatal(err)
	}
	r := hiding(t, `hunter2`)
	l := inParis("<13>Nov 25 12:00:00 cn02 app: nothing")
	r.app(l)
	r.plain = r.plain[:0]
	if f.append(nil, l, r); len(r.plain) != 0 {
		t.Errorf("patterns are tried once more, in %q", r.plain)
	}
	if f.append(nil, l, r); len(r.plain) == 0 {
		t.Error("what was found out holds though the line was written")
	}
	for name, change := range map[string]func(){
		"another tag":  func() { l.retag("hunter2") },
		"another host": func() { l.rename("hunter2") },
		"another line": func() {
			l.read(journal.Record{Source: netip.MustParseAddr("10.1.0.9"), Data: []byte("hunter2")}, testNames())
		},
		"none": func() {
			l.read(journal.Record{Data: []byte("<13>Nov 25 12:00:00 cn02 app: hunter2")}, testNames())
			r.app(l)
		},
	} {
		l.read(journal.Record{Source: netip.MustParseAddr("10.1.0.9"), Data: []byte("<13>Nov 25 12:00:00 cn02 app: nothing")}, testNames())
		r.app(l)
		if change(); strings.Contains(string(f.append(nil, l, r)), "hunter2") {
			t.Errorf("%s: what must not be written is", name)
		}
	}
}

// variants are a line as it came, as rules may make it, and with any of its parts
// empty, or another, whatever the others are: bit by bit, of host, tag, program,
// process, number, data and text.
func variants(in string, empty, set uint8) (list []*line) {
	for i := range 4 {
		l := &line{}
		l.read(journal.Record{Source: netip.MustParseAddr("10.1.0.9"), Data: []byte(in)}, testNames())
		if i == 1 || i == 3 {
			l.retag(in)
			l.rename(in)
		}
		for bit, part := range []*[]byte{&l.Host, &l.Tag, &l.App, &l.Proc, &l.ID, &l.Data, &l.Text} {
			switch {
			case i < 2:
			case empty>>bit&1 != 0:
				*part = nil
			case set>>bit&1 != 0:
				*part = []byte(in)
			}
		}
		list = append(list, l)
	}
	return list
}

// FuzzRedact: where a pattern fits, and whatever a sender writes around it, the
// secret stands in no format; and where it does not, lines are as without.
func FuzzRedact(f *testing.F) {
	for _, in := range lonely {
		f.Add([]byte(in), []byte(""), uint8(0b0000111), uint8(0b0001000))
	}
	f.Add([]byte("<13>Nov 25 12:00:00 cn02 app[1]: "), []byte(" more"), uint8(0b0000100), uint8(0b0100000))
	f.Add([]byte("<13>"), []byte("[12]: text"), uint8(0b0000010), uint8(0))
	f.Add([]byte("<165>1 2026-11-25T05:14:15Z h app 8 - [a b=\"c\"] "), []byte("\n\x00"), uint8(0b0000101), uint8(0b0000010))
	f.Add([]byte("<165>1 2026-11-25T05:14:15Z h app 8 - [a b=\""), []byte("\"] x"), uint8(0b1111111), uint8(0))
	f.Add([]byte("<13>1 2026-11-25T05:14:15Z h app 8 - - \t"), []byte(""), uint8(0), uint8(0b0000010))
	f.Add([]byte("\xe2\x80 \t"), []byte("\x80:"), uint8(0), uint8(0b1111111))
	f.Fuzz(func(t *testing.T, before, behind []byte, empty, set uint8) {
		const name = "Zq"
		if strings.Contains(string(before)+string(behind), name) || len(before)+len(behind) > 2048 {
			return
		}
		r := hiding(t, `Zq=[0-9]+`, `^Zq$`)
		for _, in := range []string{string(before) + "Zq=4711" + string(behind), string(before) + string(behind)} {
			for i, l := range variants(in, empty, set) {
				for _, format := range everyFormat {
					out := written(t, format, l, r)
					if strings.Contains(out, "Zq=4711") {
						t.Fatalf("%q, %d, as %s: %q", in, i, format, out)
					}
					if !strings.Contains(in, name) && out != written(t, format, l, nil) {
						t.Fatalf("%q, %d, as %s: %q, though nothing is to be hidden", in, i, format, out)
					}
				}
				if app, _ := r.app(l); strings.Contains(string(app), "Zq=4711") {
					t.Fatalf("%q, %d: program %q", in, i, app)
				}
				plain, at := l.appendPlain(nil)
				if string(plain[:at.end]) != string(l.appendFile(nil)) {
					t.Fatalf("%q, %d: %q, %+v", in, i, plain, at)
				}
				for _, part := range []struct {
					raw []byte
					at  span
				}{
					{l.Host, at.claims}, {l.Tag, at.tag}, {l.App, at.app}, {l.Proc, at.proc}, {l.Text, at.text}, {[]byte(l.host), at.host}, {l.ID, at.id}, {l.Data, at.data},
				} {
					if len(part.raw) > 0 && string(part.at.in(plain)) != string(appendClean(nil, part.raw)) {
						t.Fatalf("%q, %d: %q does not stand at %v of %q", in, i, part.raw, part.at, plain)
					}
				}
			}
		}
	})
}
