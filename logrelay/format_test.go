package logrelay

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/leodido/go-syslog/v4/rfc5424"
)

// written is a line in a format.
func written(t *testing.T, format string, l *line, r *rules) string {
	t.Helper()
	f, err := parseFormat(format)
	if err != nil {
		t.Fatal(err)
	}
	return string(f.append(nil, l, r))
}

// inParis is a line that was received there at noon.
func inParis(text string) *line {
	at := time.Date(2026, 11, 25, 12, 0, 0, 123456789, time.FixedZone("", 3600))
	l := lineOf(text, at)
	l.received = at
	if !l.Time.IsZero() && l.RFC3339 == nil {
		l.Time = time.Date(2026, 11, 5, 11, 59, 59, 0, at.Location())
	}
	return l
}

// TestTheDefaultFormatIsScibians: byte for byte as lines were written before
// there was a choice, and as the template that the README shows gives it.
func TestTheDefaultFormatIsScibians(t *testing.T) {
	for in, want := range map[string]string{
		"<30>2026-11-25T11:59:59.123456+01:00 cn01 sshd[12]: hello": "2026-11-25T11:59:59.123456+01:00 cn01 daemon.info sshd[12]: hello",
		"<13>Nov 05 11:59:59 cn01 su: no\nhost\x00\x7f":             "2026-11-05T11:59:59+01:00 cn01 user.notice su: no#012host#000#177",
		"<97>1 2026-11-25T05:14:15Z h app 8 - - text":               "2026-11-25T05:14:15Z h ntp.alert app[8]: text",
		"just words": "2026-11-25T12:00:00.123456+01:00 10.1.0.9 user.notice just words",
		"":           "2026-11-25T12:00:00.123456+01:00 10.1.0.9 user.notice ",
	} {
		for _, format := range []string{settingsFormat(t, `{}`), defaultFormat, "{time} {claims} {facility}.{severity} {tag}{text}"} {
			if diff := gocmp.Diff(want, written(t, format, inParis(in), nil)); diff != "" {
				t.Errorf("%q as %s: %s", in, format, diff)
			}
		}
	}
}

// settingsFormat is the name of the format that a section gives.
func settingsFormat(t *testing.T, section string) string {
	t.Helper()
	got := settingsOf(t, section).format
	l := inParis("<30>Nov 25 12:00:00 cn01 a: b")
	for name, f := range lineFormats {
		if string(f.append(nil, l, nil)) == string(got.append(nil, l, nil)) {
			return name
		}
	}
	t.Fatalf("%s gives no format that has a name", section)
	return ""
}

// TestEveryFormatAndVariable: what rsyslog's templates of these names give, and
// each variable where the message has it and where it has not.
func TestEveryFormatAndVariable(t *testing.T) {
	const older, newer, bare = "<30>Nov  5 11:59:59 CN02 sshd[12]: \thi", `<165>1 2026-11-25T05:14:15.000003-07:00 cn02 slurmd 8 ID7 [a b="c"] hi`, "words alone"
	for _, test := range []struct{ format, in, want string }{
		{"rsyslog", older, "2026-11-05T11:59:59+01:00 CN02 sshd[12]: #011hi"},
		{"rsyslog", newer, "2026-11-25T05:14:15.000003-07:00 cn02 slurmd[8]: hi"},
		{"rsyslog", bare, "2026-11-25T12:00:00.123456+01:00 10.1.0.9 words alone"},
		{"rsyslog", "<13>Nov 25 12:00:00 cn02 a:", "2026-11-05T11:59:59+01:00 cn02 a: "},
		{"traditional", "<13>Nov 25 12:00:00 cn02 a:", "Nov  5 11:59:59 cn02 a: "},
		{"scibian", "<13>Nov 25 12:00:00 cn02 a:", "2026-11-05T11:59:59+01:00 cn02 user.notice a:"},
		{"traditional", older, "Nov  5 11:59:59 CN02 sshd[12]: #011hi"},
		{"traditional", newer, "Nov 25 05:14:15 cn02 slurmd[8]: hi"},
		{"traditional", bare, "Nov 25 12:00:00 10.1.0.9 words alone"},
		{"rfc5424", older, "<30>1 2026-11-05T11:59:59+01:00 CN02 sshd 12 - - #011hi"},
		{"rfc5424", newer, `<165>1 2026-11-25T05:14:15.000003-07:00 cn02 slurmd 8 ID7 [a b="c"] hi`},
		{"rfc5424", "<13>2026-11-25T11:59:59.123456789+01:00 cn02 a: x", "<13>1 2026-11-25T11:59:59.123456+01:00 cn02 a - - - x"},
		{"rfc5424", `<13>1 2026-11-25T11:59:59Z cn02 a - - [a b="]"] x`, `<13>1 2026-11-25T11:59:59Z cn02 a - - - [a b="]"] x`},
		{"rfc5424", "<13>1 2026-11-25T11:59:59Z c\x01n\xff a - - - \xef\xbb\xbfx é", "<13>1 2026-11-25T11:59:59Z c?n? a - - - \xef\xbb\xbfx é"},
		{"rfc5424", "<13>1 2026-11-25T11:59:59Z " + strings.Repeat("h", 300) + " a - - - \xef\xbb\xbf\xff", "<13>1 2026-11-25T11:59:59Z " + strings.Repeat("h", 255) + " a - - - \xff"},
		{"scibian", "<13>1 2026-11-25T11:59:59Z cn02 a - - - \xef\xbb\xbfx", "2026-11-25T11:59:59Z cn02 user.notice a: x"},
		{"rfc5424", "<13>2026-11-25T11:59:59.12Z cn02 a: x", "<13>1 2026-11-25T11:59:59.12Z cn02 a - - - x"},
		{"scibian", "<13>2026-11-25T11:59:59.123456789+01:00 cn02 a: x", "2026-11-25T11:59:59.123456789+01:00 cn02 user.notice a: x"},
		{"scibian", "<13>2026-11-25T1:59:59,5+24:00 cn02 a: x", "2026-11-05T11:59:59+01:00 cn02 user.notice a: x"},
		{"json", older, `{"time":"2026-11-05T11:59:59+01:00","received":"2026-11-25T12:00:00.123456+01:00","host":"cn02","claims":"CN02","source":"10.1.0.9","facility":"daemon","severity":"info","priority":30,"app":"sshd","proc":"12","text":"\u0009hi"}`},
		{"json", newer, `{"time":"2026-11-25T05:14:15.000003-07:00","received":"2026-11-25T12:00:00.123456+01:00","host":"cn02","claims":"cn02","source":"10.1.0.9","facility":"local4","severity":"notice","priority":165,"app":"slurmd","proc":"8","id":"ID7","data":"[a b=\"c\"]","text":"hi"}`},
		{"json", "<13>", `{"time":"2026-11-25T12:00:00.123456+01:00","received":"2026-11-25T12:00:00.123456+01:00","host":"10.1.0.9","source":"10.1.0.9","facility":"user","severity":"notice","priority":13,"text":""}`},
		{"{text}", older, "#011hi"},
		{"rsyslogd {text} {text}", older, "rsyslogd #011hi #011hi"},
		{"{tag}{text}", bare, "words alone"},
		{"{tag} {text}", newer, "slurmd[8]: hi"},
		{"{time}|{stamp}|{received}|{text}", older, "2026-11-05T11:59:59+01:00|Nov  5 11:59:59|2026-11-25T12:00:00.123456+01:00|#011hi"},
		{"{host}|{claims}|{source}|{text}", older, "cn02|CN02|10.1.0.9|#011hi"},
		{"{host}|{claims}|{source}|{text}", bare, "10.1.0.9|10.1.0.9|10.1.0.9|words alone"},
		{"{facility}\t{severity}\t{priority}\t{text}", newer, "local4\tnotice\t165\thi"},
		{"{app}|{proc}|{tag}|{text}", older, "sshd|12|sshd[12]:|#011hi"},
		{"{app}|{proc}|{tag}|{text}", bare, "-|-||words alone"},
		{"{{{text}}} 100 % é", bare, "{words alone} 100 % é"},
	} {
		if diff := gocmp.Diff(test.want, written(t, test.format, inParis(test.in), nil)); diff != "" {
			t.Errorf("%q as %s: %s", test.in, test.format, diff)
		}
	}
	own := inParis(bare)
	own.record.Source = netip.Addr{}
	if got := written(t, "{source} {text}", own, nil); got != "- words alone" {
		t.Errorf("a line that nobody sent: %q", got)
	}
}

func TestAFormatThatIsNoneIsRefused(t *testing.T) {
	for format, want := range map[string]string{
		"":               "is no format: want scibian, rsyslog, traditional, rfc5424, json, or a template",
		"JSON":           "is no format",
		"%msg%":          "is no format",
		"{msg}":          `"{msg}" is no variable: want {time} {stamp} {received} {host} {claims}`,
		"{text":          "{text}, and {{ or }} for a brace that is to stand there",
		"rsyslog {text}": "is rsyslog and a template: want one of the two",
		"json\t{text}":   "is json and a template",
		"{text} " + strings.Repeat("x", maxFormat): "has 1031 bytes, want 1024 at most",
		"{text}{text} {host}{text}":                "has {text} more than 2 times",
		"{time} {tag}":                             "{text} is missing",
		"{time}\n{text}":                           "has a control character",
		"{text}\u2028":                             "has a control character",
		"{text}\u0085":                             "has a control character",
		"{\"a\":{text}}":                           "is no variable",
		"{{text}} {time}":                          "{text} is missing",
	} {
		if _, err := parseFormat(format); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", format, err, want)
		}
	}
}

// TestARedactedLineOfJSONIsJSON: a pattern that goes on to the next blank takes
// no quote away. It fails if patterns are tried in the whole line of JSON, or if
// a key is left out.
func TestARedactedLineOfJSONIsJSON(t *testing.T) {
	r := hiding(t, `password=\S+`, `secret-host`, `(?s)key:.*`)
	const begin = `{"time":"2026-11-05T11:59:59+01:00","received":"2026-11-25T12:00:00.123456+01:00",`
	const middle = `"source":"10.1.0.9","facility":"user","severity":"notice","priority":13,`
	for in, want := range map[string]string{
		`<13>Nov 25 12:00:00 secret-host app: login "password=hunter2"`: begin + `"host":"[redacted]","claims":"[redacted]",` + middle + `"app":"app","text":"login \"[redacted]"}`,
		"<13>Nov 25 12:00:00 cn02 key: a\nb":                            begin + `"host":"cn02","claims":"cn02",` + middle + `"app":"[redacted]","text":"[redacted]"}`,
		"<13>Nov 25 12:00:00 cn02 app: key: a\nb\xff":                   begin + `"host":"cn02","claims":"cn02",` + middle + `"app":"app","text":"[redacted]"}`,
		"<13>Nov 25 12:00:00 cn02 app: one\npassword=hunter2 \t two":    begin + `"host":"cn02","claims":"cn02",` + middle + `"app":"app","text":"one#012[redacted] #011 two"}`,
		`<13>1 2026-11-05T11:59:59+01:00 cn02 password=a password=b password=c [x y="password=d"] t`: begin + `"host":"cn02","claims":"cn02",` + middle +
			`"app":"[redacted]","proc":"[redacted]","id":"[redacted]","data":"[x y=\"[redacted]","text":"t"}`,
	} {
		out := written(t, "json", inParis(in), r)
		if diff := gocmp.Diff(want, out); diff != "" || !json.Valid([]byte(out)) {
			t.Errorf("%q: %s", in, diff)
		}
	}
	if got := written(t, "{text}", inParis("<13>Nov 25 12:00:00 cn02 app: password=hunter2 ok"), r); got != "[redacted] ok" {
		t.Errorf("in a template: %q", got)
	}
}

// FuzzFormat: whatever a sender writes is one line in every format, in JSON an
// object that has what it wrote, and in RFC 5424 a message for a reader that is
// strict.
func FuzzFormat(f *testing.F) {
	f.Add([]byte("<30>2026-11-25T11:59:59.123456+01:00 ../x/y ss\"hd[\n12]: hel\x00lo\xff\\ \u2028\u0085\u007f"), uint8(0), uint8(0))
	for _, in := range lonely {
		f.Add([]byte(in), uint8(0b0000110), uint8(0b1111001))
	}
	f.Add([]byte(`<165>1 2026-11-25T05:14:15Z h app 8 - [a b="c\]"] text`), uint8(0b0000100), uint8(0b0001000))
	f.Fuzz(func(t *testing.T, b []byte, empty, set uint8) {
		for _, l := range variants(string(b), empty, set) {
			soundInEveryFormat(t, l)
		}
	})
}

// soundInEveryFormat fails where a line is not one in a format.
func soundInEveryFormat(t *testing.T, l *line) {
	t.Helper()
	for _, format := range []string{"scibian", "rsyslog", "traditional", "rfc5424", "json", "{received} {claims} {app} {proc} {tag} {text}", "{tag}{text}"} {
		out := written(t, format, l, nil)
		for _, c := range []byte(out) {
			if c < 0x20 || c == 0x7f {
				t.Fatalf("%s: %q has a control character", format, out)
			}
		}
		if format == "rfc5424" {
			if _, err := rfc5424.NewParser().Parse([]byte(out)); err != nil {
				t.Fatalf("%q: %v", out, err)
			}
		}
		if format != "json" {
			continue
		}
		var got struct {
			Host, Claims, App, Proc, ID, Data, Text, Source, Facility, Severity string
			Time, Received                                                      time.Time
			Priority                                                            uint8
		}
		read := json.NewDecoder(strings.NewReader(out))
		read.DisallowUnknownFields()
		if err := read.Decode(&got); err != nil || !utf8.ValidString(out) || strings.ContainsAny(out, "\u2028\u2029\u0085") {
			t.Fatalf("%q: %v", out, err)
		}
		if want := cmp.Or(l.Time, l.received); got.Priority != l.Priority || got.Time.Unix() != want.Unix() || !got.Received.Equal(l.received.Truncate(time.Microsecond)) {
			t.Fatalf("%q has %+v, want %v, %v, %d", out, got, want, l.received, l.Priority)
		}
		for _, part := range [][2]string{
			{got.Host, l.host}, {got.Claims, string(l.Host)}, {got.App, string(l.App)}, {got.Proc, string(l.Proc)}, {got.ID, string(l.ID)},
			{got.Data, string(l.Data)}, {got.Text, strings.TrimPrefix(string(l.Text), " ")},
			{got.Source, "10.1.0.9"}, {got.Facility + "." + got.Severity, string(l.AppendPriority(nil))},
		} {
			if want := string([]rune(part[1])); part[0] != want { // a rune for each byte that is none
				t.Fatalf("%q has %q, want %q", out, part[0], want)
			}
		}
	}
}

// TestATimeThatIsWrittenAnewKeepsItsFraction: one that came with a comma, say. It
// fails where the time is written to the second.
func TestATimeThatIsWrittenAnewKeepsItsFraction(t *testing.T) {
	l := &line{}
	l.Time = time.Date(2026, 11, 25, 11, 59, 59, 123456789, time.FixedZone("", 3600))
	if got := string(l.appendTime(nil)); got != "2026-11-25T11:59:59.123456789+01:00" {
		t.Errorf("in a file: %s", got)
	}
	if got := string(l.appendTime5424(nil)); got != "2026-11-25T11:59:59.123456+01:00" {
		t.Errorf("by RFC 5424: %s", got)
	}
	l.Time = l.Time.Truncate(time.Second)
	if got := string(l.appendTime5424(nil)); got != "2026-11-25T11:59:59+01:00" {
		t.Errorf("of a whole second: %s", got)
	}
}
