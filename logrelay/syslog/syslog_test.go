package syslog

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	oracle "github.com/leodido/go-syslog/v4"
	"github.com/leodido/go-syslog/v4/rfc3164"
	"github.com/leodido/go-syslog/v4/rfc5424"
)

var received = time.Date(2026, 11, 25, 12, 0, 0, 0, time.FixedZone("", 3600))

// said is a message in words, for tables.
func said(m *Message) string {
	at := "-"
	if !m.Time.IsZero() {
		at = m.Time.Format(time.RFC3339Nano)
	}
	return fmt.Sprintf("%s %s host=%s app=%s proc=%s id=%s data=%s tag=%s text=%q",
		m.AppendPriority(nil), at, m.Host, m.App, m.Proc, m.ID, m.Data, m.AppendTag(nil), m.Text)
}

func TestEveryDialectIsTakenApart(t *testing.T) {
	for in, want := range map[string]string{
		// rsyslog's own, with and without high-precision times
		"<30>2026-11-25T11:59:59.123456+01:00 cn01 sshd[12]: hello": `daemon.info 2026-11-25T11:59:59.123456+01:00 host=cn01 app=sshd proc=12 id= data= tag=sshd[12]: text=" hello"`,
		"<34>Nov 25 11:59:59 cn01 su: 'su root' failed":             `auth.crit 2026-11-25T11:59:59+01:00 host=cn01 app=su proc= id= data= tag=su: text=" 'su root' failed"`,
		"<13>Nov  5 1:02:03 cn01 a: b":                              `user.notice 2026-11-05T01:02:03+01:00 host=cn01 app=a proc= id= data= tag=a: text=" b"`,
		"<13>Jan  1 00:00:01 cn01 a: b":                             `user.notice 2026-01-01T00:00:01+01:00 host=cn01 app=a proc= id= data= tag=a: text=" b"`,
		"<191>Dec 31 23:59:59 fe80::1 a: b":                         `local7.debug 2025-12-31T23:59:59+01:00 host=fe80::1 app=a proc= id= data= tag=a: text=" b"`,
		"<13>Nov 25 11:59:59 root: BusyBox names no host":           `user.notice 2026-11-25T11:59:59+01:00 host= app=root proc= id= data= tag=root: text=" BusyBox names no host"`,
		"<13>Nov 25 11:59:59 su[1]: no host":                        `user.notice 2026-11-25T11:59:59+01:00 host= app=su proc=1 id= data= tag=su[1]: text=" no host"`,
		"<13>Nov 25 2025 11:59:59 sw1 a: b":                         `user.notice 2025-11-25T11:59:59+01:00 host=sw1 app=a proc= id= data= tag=a: text=" b"`,
		"<13>Nov 25 11:59:59 2025 sw1 a: b":                         `user.notice 2025-11-25T11:59:59+01:00 host=sw1 app=a proc= id= data= tag=a: text=" b"`,
		"<189>45: *Mar  1 18:46:11.25: %SYS-5-CONFIG_I: Configured": `local7.notice 2026-03-01T18:46:11.25+01:00 host= app=%SYS-5-CONFIG_I proc= id= data= tag=%SYS-5-CONFIG_I: text=" Configured"`,
		"<13>no time: here":                                         `user.notice - host= app= proc= id= data= tag= text="no time: here"`,
		"<13>notime: here":                                          `user.notice - host= app=notime proc= id= data= tag=notime: text=" here"`,
		"<13>just words":                                            `user.notice - host= app= proc= id= data= tag= text="just words"`,
		"no priority":                                               `user.notice - host= app= proc= id= data= tag= text="no priority"`,
		"<192>too much":                                             `user.notice - host= app= proc= id= data= tag= text="<192>too much"`,
		"":                                                          `user.notice - host= app= proc= id= data= tag= text=""`,
		"<13>Nov 31 11:59:61 h a: b":                                `user.notice - host= app= proc= id= data= tag= text="Nov 31 11:59:61 h a: b"`,
		"<165>1 2026-08-24T05:14:15.000003-07:00 192.0.2.1 my 8 - - %% time": `local4.notice 2026-08-24T05:14:15.000003-07:00 host=192.0.2.1 app=my proc=8 id= data= tag=my[8]: text="%% time"`,
		`<165>1 - - - - - [a b="c]\"]d" e="f"][g] ` + "\xef\xbb\xbftext":     `local4.notice - host= app= proc= id= data=[a b="c]\"]d" e="f"][g] tag= text="text"`,
		"<165>1 2026-08-24T05:14:15Z h a - ID1 -":                            `local4.notice 2026-08-24T05:14:15Z host=h app=a proc= id=ID1 data= tag=a: text=""`,
		`<165>1 - h a p m [never closed`:                                     `local4.notice - host= app= proc= id= data= tag= text="1 - h a p m [never closed"`,
		"<13>Nov 25 11:59:59 h tag without colon":                            `user.notice 2026-11-25T11:59:59+01:00 host=h app=tag proc= id= data= tag=tag text=" without colon"`,
	} {
		var m Message
		Parse(&m, []byte(in), received)
		if diff := cmp.Diff(want, said(&m)); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
}

// TestOnlyStrictTimesStandAsTheyCame: what package time takes beside RFC 3339 is
// no time for the programs that read our files, and for the next relay. It fails
// if a time is kept because it could be read.
func TestOnlyStrictTimesStandAsTheyCame(t *testing.T) {
	const utc = "2026-11-25T11:59:59Z"
	for in, want := range map[string]string{
		"2026-11-25T11:59:59Z":                     utc,
		"2026-11-25T11:59:59.5-00:00":              "2026-11-25T11:59:59.5Z",
		"2026-11-25T11:59:59.123456789+23:59":      "2026-11-25T11:59:59.123456789+23:59",
		"2026-11-25T11:59:59,123456Z":              "!2026-11-25T11:59:59.123456Z",
		"2026-11-25T1:59:59.000001Z":               "!2026-11-25T01:59:59.000001Z",
		"2026-11-25T11:59:59+24:00":                "!2026-11-24T11:59:59Z",
		"2026-11-25T11:59:59-24:00":                "!2026-11-26T11:59:59Z",
		"2026-11-25T11:59:59.12345678901234+00:00": "!2026-11-25T11:59:59.123456789Z",
	} {
		for _, form := range []string{"<13>1 %s cn02 app - - - x", "<13>%s cn02 app: x"} {
			var m Message
			Parse(&m, fmt.Appendf(nil, form, in), received)
			got := m.Time.Format(time.RFC3339Nano)
			if m.RFC3339 == nil {
				got = "!" + got
			} else if string(m.RFC3339) != in {
				t.Errorf("%s is kept as %s", in, m.RFC3339)
			}
			if diff := cmp.Diff(want, got); diff != "" || string(m.Host) != "cn02" {
				t.Errorf(form+": host %s, %s", in, m.Host, diff)
			}
		}
	}
	var m Message
	if Parse(&m, []byte("<13>1 0000-01-01T00:00:00+24:00 cn02 app - - - x"), received); !m.Time.IsZero() || m.RFC3339 != nil {
		t.Errorf("a year that nobody can write: %v", m.Time)
	}
	for _, text := range []string{"", utc[:19], utc[:19] + ".", utc[:19] + ".Z", utc + "Z", utc[:19] + "z", utc[:19] + "+0100", utc[:19] + "+01:60", utc[:10] + " " + utc[11:]} {
		if strict3339([]byte(text)) {
			t.Errorf("%q is taken", text)
		}
	}
}

// TestStructuredDataIsToldFromWhatLooksLikeIt: what a strict reader refuses is
// refused here. It fails if a name, a value or what is between them is not
// looked at.
func TestStructuredDataIsToldFromWhatLooksLikeIt(t *testing.T) {
	name := strings.Repeat("n", 32)
	for data, want := range map[string]bool{
		`[a]`: true, `[a b="c"]`: true, `[a@32473 b="c" d=""][e]`: true, `[a b="\"\]\\ é"]`: true, `[a b="\x"]`: false, `[a b="\""]`: true, `[` + name + ` ` + name + `="v"]`: true, `[a b="c" b="d"]`: true,
		``: false, `-`: false, `[]`: false, `[a`: false, `[a ]`: false, `[a  b="c"]`: false, `[a b]`: false, `[a b=c]`: false, `[a b="c]`: false, `[a b="c"`: false,
		`[a b="c"d="e"]`: false, `[a b="]"]`: false, `[a b="c\"]`: false, `[a b="c"]x`: false, `[a b="c"] `: false, `[a"b]`: false, `[ä]`: false, `[a ="c"]`: false,
		"[a b=\"\xff\"]": false, "[a b=\"\n\"]": false, "[a b=\"\\\n\"]": false, `[` + name + `n]`: false, `[a ` + name + `n="v"]`: false, `[a b="[redacted]"]`: false,
	} {
		if got := StrictData([]byte(data)); got != want {
			t.Errorf("%q: %v", data, got)
		}
		if data == "" || data == "-" || strings.ContainsAny(data, "\n") || strings.HasSuffix(data, " ") {
			continue // the oracle takes these for what they are, or beside what is behind
		}
		if _, err := rfc5424.NewParser().Parse([]byte("<13>1 - - - - - " + data + " x")); (err == nil) != want {
			t.Errorf("%q: the oracle has %v", data, err)
		}
	}
}

// TestFacilitiesHaveRsyslogsNames, which its pri-text writes for 0 to 23.
func TestFacilitiesHaveRsyslogsNames(t *testing.T) {
	for f, want := range strings.Fields("kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp audit alert clock local0 local1 local2 local3 local4 local5 local6 local7") {
		m := Message{Priority: uint8(f) << 3}
		if got := string(m.AppendPriority(nil)); got != want+".emerg" {
			t.Errorf("%d is %s, want %s", f, got, want)
		}
	}
}

func TestTheYearIsTheOneInWhichTheTimeIsPast(t *testing.T) {
	for in, test := range map[string]struct {
		received time.Time
		year     int
	}{
		"<1>Dec 31 23:59:59 h a: b": {time.Date(2027, 1, 1, 0, 0, 5, 0, time.UTC), 2026},
		"<1>Jan  1 00:00:00 h a: b": {time.Date(2026, 12, 31, 23, 59, 0, 0, time.UTC), 2027},
	} {
		var m Message
		Parse(&m, []byte(in), test.received)
		if m.Time.Year() != test.year {
			t.Errorf("%q received at %v: %v", in, test.received, m.Time)
		}
	}
}

// sameAs holds what we make of b against what leodido's parsers do, when they
// take it for a message.
func sameAs(t *testing.T, b []byte) {
	t.Helper()
	var m Message
	Parse(&m, b, received)
	var base *oracle.Base
	structured := false
	if got, err := rfc5424.NewParser().Parse(b); err == nil {
		if got := got.(*rfc5424.SyslogMessage); got.Version == 1 {
			base, structured = &got.Base, true
		}
	} else if got, err := rfc3164.NewParser(rfc3164.WithYear(rfc3164.Year{YYYY: received.Year()}), rfc3164.WithTimezone(received.Location())).Parse(b); err == nil {
		base = &got.(*rfc3164.SyslogMessage).Base
	}
	if base == nil || base.Priority == nil {
		return
	}
	field := func(name string, want *string, got []byte) {
		if want != nil && *want != string(got) {
			t.Errorf("%q: %s is %q, the oracle has %q", b, name, got, *want)
		}
	}
	if *base.Priority != m.Priority {
		t.Errorf("%q: priority %d, the oracle has %d", b, m.Priority, *base.Priority)
	}
	if base.Timestamp != nil && !structured && m.Time.YearDay() != base.Timestamp.YearDay() || structured && base.Timestamp != nil && !m.Time.Equal(*base.Timestamp) {
		t.Errorf("%q: time %v, the oracle has %v", b, m.Time, base.Timestamp)
	}
	field("host", base.Hostname, m.Host)
	if structured || base.ProcID != nil {
		field("app", base.Appname, m.App)
		field("proc", base.ProcID, m.Proc)
	}
	field("id", base.MsgID, m.ID)
	if structured && base.Message != nil && strings.TrimPrefix(strings.TrimRight(*base.Message, "\n\x00"), "\xef\xbb\xbf") != string(m.Text) {
		t.Errorf("%q: text %q, the oracle has %q", b, m.Text, *base.Message)
	}
}

func TestParserAgreesWithTheOracle(t *testing.T) {
	for _, in := range []string{
		"<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
		"<13>Nov  5 17:32:18 cn0012 slurmd[4242]: launch task",
		"<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \xef\xbb\xbf'su root' failed",
		"<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time",
		`<165>1 2003-10-11T22:14:15.003Z h evntslog - ID47 [exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"][x y="\"\]"] An application`,
		"<0>1 - - - - - -",
	} {
		sameAs(t, []byte(in))
	}
}

// FuzzParse: whatever comes is taken apart into parts of itself, and as the
// oracle does when that takes it too for RFC 5424.
func FuzzParse(f *testing.F) {
	f.Add([]byte("<34>Oct 11 22:14:15 mymachine su: 'su root' failed"))
	f.Add([]byte(`<165>1 2003-10-11T22:14:15.003Z h a p m [x y="\"\]"] text`))
	f.Add([]byte("<189>45: *Mar  1 18:46:11.25: %SYS-5-CONFIG_I: Configured"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Message
		Parse(&m, b, received)
		if m.Priority > 191 {
			t.Fatalf("priority %d", m.Priority)
		}
		if Severity(b) != m.Severity() {
			t.Fatalf("severity %d, by itself %d", m.Severity(), Severity(b))
		}
		var local Message
		ParseLocal(&local, b, received)
		for _, part := range [][]byte{
			m.Host, m.App, m.Proc, m.ID, m.Data, m.Tag, m.Text,
			local.Host, local.App, local.Proc, local.ID, local.Data, local.Tag, local.Text,
		} {
			if !bytes.Contains(b, part) {
				t.Fatalf("%q is no part of %q", part, b)
			}
		}
		for _, one := range []Message{m, local} {
			if tag := one.AppendTag(nil); !bytes.HasPrefix(tag, one.App) {
				t.Fatalf("tag %q of program %q", tag, one.App)
			}
			if one.Priority != m.Priority {
				t.Fatalf("priority %d, from elsewhere %d", one.Priority, m.Priority)
			}
		}
		if StrictData(b) && structuredData(b) != len(b) {
			t.Fatalf("%q is strict data, and %d bytes of it are data", b, structuredData(b))
		}
		got, err := rfc5424.NewParser().Parse(b)
		if err != nil || got.(*rfc5424.SyslogMessage).Version != 1 || m.RFC3339 == nil {
			return
		}
		sameAs(t, b)
	})
}

func TestBothFramingsOnOneStream(t *testing.T) {
	long := strings.Repeat("x", 30)
	stream := "<1>a\n5 <2>b\n5 <3>\nc<4>d\r\n30 " + long + "<5>" + long + "\n<6>e\n"
	want := []string{"<1>a", "<2>b", "<3>\nc"[:5], "<4>d", long[:20], "<5>" + long[:17], "<6>e"}
	for chunk := 1; chunk <= len(stream); chunk++ {
		f := Framer{Max: 20}
		var got []string
		var buf []byte
		for at := 0; at < len(stream); at += chunk {
			buf = append(buf, stream[at:min(at+chunk, len(stream))]...)
			for {
				m, n, err := f.Next(buf)
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					break
				}
				if m != nil {
					got = append(got, string(m))
				}
				buf = buf[n:]
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || f.Cut != 2 {
			t.Fatalf("in pieces of %d: %s (%d cut)", chunk, diff, f.Cut)
		}
	}
}

func FuzzFramer(f *testing.F) {
	f.Add([]byte("<1>a\n5 <2>b\n30 xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx<4>d\n"), 7)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		run := func(pieces ...[]byte) (out [][]byte, failed bool) {
			f := Framer{Max: 16}
			var buf []byte
			for _, p := range pieces {
				buf = append(buf, p...)
				for {
					m, n, err := f.Next(buf)
					if err != nil {
						return out, true
					}
					if n == 0 {
						break
					}
					if len(m) > 16 || n > len(buf) {
						t.Fatalf("%q, %d", m, n)
					}
					if m != nil {
						out = append(out, bytes.Clone(m))
					}
					buf = buf[n:]
				}
				if len(buf) > 16+11 {
					t.Fatalf("%d bytes wait", len(buf))
				}
			}
			return out, false
		}
		cut = min(max(cut, 0), len(b))
		whole, failed := run(b)
		parts, failed2 := run(b[:cut], b[cut:])
		if diff := cmp.Diff(whole, parts); diff != "" || failed != failed2 {
			t.Fatalf("cut at %d: %s", cut, diff)
		}
	})
}
