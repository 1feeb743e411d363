package logrelay

import (
	"bytes"
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

// hostile are names that a sender can write: they climb, hide, are too long, or
// look like a file of ours.
var hostile = []string{
	"", ".", "..", "...", "../../etc/passwd", "/etc/passwd", "a/b", "a\x00b", "a\nb", ".hidden", "-rf", "ÄÖÜ/ß", "\xff\xfe", "\u2028", "CON", "x\\y",
	strings.Repeat("y", 300), strings.Repeat("é", 300), "x.log", "x.log.20260101T000000.000", "x.log.20260101T000000.000.zst", "x.log.20260101T000000Z",
	".x.log.20260101T000000.000.zst.1", "x.zst", "x+", "others", "none", "%s%n", "{host}", "$(id)",
}

// pathOf is the path that a template gives a line.
func pathOf(t *testing.T, template string, l *line) string {
	t.Helper()
	path, err := parsePath(template)
	if err != nil {
		t.Fatal(err)
	}
	a := newApps(defaultApps)
	return string(path.append(nil, l, a.of(l)))
}

// TestEveryVariableOfAPath, with the default, which is what files were called
// before there was a choice. It fails with local time in place of UTC, another
// order of the variables' numbers, and a variable that is not made safe.
func TestEveryVariableOfAPath(t *testing.T) {
	east := time.FixedZone("", 2*3600)
	at := time.Date(2026, 11, 26, 0, 30, 0, 0, east) // the 25th in UTC
	l := lineOf("<165>Nov 25 12:00:00 CN02.Example.com Slurm/D[7]: x", at)
	l.received = at
	for template, want := range map[string]string{
		defaultPath:                                 "cn02.example.com.log",
		"{host}/{app}.log":                          "cn02.example.com/slurm_d.log",
		"{facility}/{severity}/{host}.log":          "local4/notice/cn02.example.com.log",
		"{year}/{month}/{day}/{host}.log":           "2026/11/25/cn02.example.com.log",
		"Nodes_1/x-{host}-{year}-{month}-{day}.log": "Nodes_1/x-cn02.example.com-2026-11-25.log",
		"{host}/{host}.log":                         "cn02.example.com/cn02.example.com.log",
	} {
		if got := pathOf(t, template, l); got != want {
			t.Errorf("%s: %s, want %s", template, got, want)
		}
	}
	if got := pathOf(t, "{host}/{app}.log", lineOf("<165>just words", at)); got != "10.1.0.9/none.log" {
		t.Errorf("a line of no program: %s", got)
	}
	for priority := range 192 {
		l := lineOf(fmt.Sprintf("<%d>Nov 25 12:00:00 cn02 a: x", priority), at)
		want := strings.Replace(string(l.AppendPriority(nil)), ".", "/", 1) + "/cn02.log"
		if got := pathOf(t, "{facility}/{severity}/{host}.log", l); got != want {
			t.Errorf("priority %d: %s, want %s", priority, got, want)
		}
	}
	for _, name := range hostile {
		l := &line{host: safeName(name)}
		if got := pathOf(t, defaultPath, l); got != l.host+fileSuffix {
			t.Errorf("%q: %s", name, got)
		}
	}
}

// TestAPathThatIsNotSafeIsRefused, and the error says why. That such a thing
// stands in the cluster file is told with its place: see the tests of the
// section.
func TestAPathThatIsNotSafeIsRefused(t *testing.T) {
	for template, want := range map[string]string{
		"":                            "a name is empty",
		"/var/log/{host}.log":         "a name is empty",
		"{host}//x.log":               "a name is empty",
		"{host}/":                     "a name is empty",
		"../{host}.log":               "begins with a dot",
		"x/./{host}.log":              "begins with a dot",
		".{host}.log":                 "begins with a dot",
		"{host}/.log":                 "begins with a dot",
		"{host}":                      "does not end with .log",
		"{host}.log.zst":              "does not end with .log",
		"{host}.log/{app}.log":        "is a folder and ends with .log",
		"{hosts}.log":                 `"{hosts}" is no variable: want {host} {app} {facility} {severity} {year} {month} {day}`,
		"{claims}.log":                `"{claims}" is no variable`,
		"{host.log":                   "a brace without its other",
		"{host":                       "a brace without its other: want {host} {app}",
		"host}.log":                   "a brace without its other",
		"{{host}}.log":                "has other characters than letters",
		"{host} {year}.log":           "has other characters than letters",
		"x\x00{host}.log":             "has other characters than letters",
		"all.log":                     "{host} is missing",
		"{app}/all.log":               "{host} is missing",
		"{month}/{host}.log":          "{month} wants {year}",
		"{year}/{day}/{host}.log":     "{day} wants both",
		"{host}-{app}.log":            "{host} and {app} want a / between them",
		"{app}{year}{app}/{host}.log": "{app} and {app} want a / between them",
		"{facility}{host}/x.log":      "{facility} and {host} want a / between them",
		"{host}" + strings.Repeat("x", 70) + ".log":        "can be a name of 202 bytes, want 200 at most: {host} counts as 128, {app} as 48",
		"{host}" + strings.Repeat("/{app}", 30) + "/x.log": "want 1024 at most",
	} {
		if _, err := parsePath(template); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", template, err, want)
		}
	}
}

// safePaths are templates with a place for each kind of name.
var safePaths = []string{defaultPath, "{host}/{host}.log", "{app}/{app}/{host}/{app}.log", "{host}/{app}.log", "{app}/{host}.log", "{facility}/{severity}/{host}.log", "{host}-{year}{month}{day}/x{app}.{facility}.log"}

// checkPath: a path is one of a file below the folder, which can't be taken for
// one that was put away; and it is known again.
func checkPath(t *testing.T, template, path string, at time.Time) {
	t.Helper()
	if !filepath.IsLocal(path) || filepath.Clean(path) != path || len(path) > maxPath || !strings.HasSuffix(path, fileSuffix) {
		t.Fatalf("%s: %q", template, path)
	}
	names := strings.Split(path, "/")
	for i, name := range names {
		last := i == len(names)-1
		// With what stands behind and in front of it later on.
		if longest := len(".") + len(name) + len(".") + len(rotatedTime) + len(zstSuffix) + len(".1"); name == "" || name[0] == '.' || longest > 255 {
			t.Fatalf("%s: %q in %q", template, name, path)
		}
		if _, _, away := cutRotated(name); away || !last && strings.HasSuffix(name, fileSuffix) {
			t.Fatalf("%s: %q can be the name of a file, in %q", template, name, path)
		}
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-+") != "" {
			t.Fatalf("%s: %q", template, path)
		}
	}
	l := layoutOf(t, template)
	if p, ok := l.place(path, at); !ok || p.past || p.earlier {
		t.Fatalf("%s: %q is not known again: %+v", template, path, p)
	}
	for i := range names[1:] {
		if dir := strings.Join(names[:i+1], "/"); !l.folder(dir) {
			t.Fatalf("%s: folder %q of %q is not known again", template, dir, path)
		}
	}
	// Where the path of now is another, it is still known, as one of before.
	now := safePaths[len(path)%len(safePaths)] // each in its turn: to read one takes long
	if p, ok := layoutOf(t, now, template).place(path, at); !ok || p.earlier && !p.past || !p.earlier && now != template && !gives(t, now, names) {
		t.Fatalf("%s behind %s: %q is %+v, %v", now, template, path, p, ok)
	}
	if p, ok := l.place(path, at.AddDate(1, 1, 1)); !ok || p.past != strings.Contains(template, "{year}") {
		t.Fatalf("%s: %q a year later: %+v", template, path, p)
	}
}

// gives tells whether a template gives a path of those names, by writing it
// anew of what it takes for its variables.
func gives(t *testing.T, template string, names []string) bool {
	t.Helper()
	path, err := parsePath(template)
	if err != nil {
		t.Fatal(err)
	}
	values, ok := path.values(names)
	if !ok {
		return false
	}
	again := template
	for i, v := range pathVariables {
		again = strings.ReplaceAll(again, "{"+v.name+"}", values[i])
	}
	return again == strings.ReplaceAll(strings.Join(names, "/"), string(folderMark), "")
}

// checkHosts: two hosts have no file in common, whatever their programs are
// called.
func checkHosts(t *testing.T, template string, a, b *line) {
	t.Helper()
	if one, two := pathOf(t, template, a), pathOf(t, template, b); (one == two) && a.host != b.host {
		t.Fatalf("%s: %s and %s have %s in common", template, a.host, b.host, one)
	}
}

// named is a line of a host and a program, whose names a relay claims.
func named(host, app string, at time.Time) *line {
	l := &line{host: safeName(host), received: at}
	if l.host == "" {
		l.host = "10.1.0.9"
	}
	l.App = []byte(app)
	return l
}

// TestHostileNamesStayInTheirHostsFiles. It fails without the mark behind a
// folder that is called as a file, and where a program's name is not cut.
func TestHostileNamesStayInTheirHostsFiles(t *testing.T) {
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for _, template := range safePaths {
		owners := map[string]string{}
		for _, host := range hostile {
			for _, app := range hostile {
				l := named(host, app, at)
				path := pathOf(t, template, l)
				checkPath(t, template, path, at)
				if owner, ok := owners[path]; ok && owner != l.host {
					t.Errorf("%s: %s and %s have %s in common", template, owner, l.host, path)
				}
				owners[path] = l.host
			}
		}
	}
	if got := pathOf(t, "{host}/{app}.log", named("x.log.20260101T000000.000.zst", "x.log", at)); got != "x.log.20260101t000000.000.zst+/x.log.log" {
		t.Error(got)
	}
}

// FuzzPath: whatever senders write, a line is in a file of its host's below the
// folder; and whatever an admin writes is refused or gives such a path.
func FuzzPath(f *testing.F) {
	for i, name := range hostile {
		f.Add(safePaths[i%len(safePaths)], name, hostile[(i*7+3)%len(hostile)], "cn1", "sshd", int64(i)*86_400_000_000_000*300, uint8(i*5))
	}
	f.Fuzz(func(t *testing.T, template, host, app, otherHost, otherApp string, nanoseconds int64, priority uint8) {
		at := time.Unix(0, nanoseconds)
		a, b := named(host, app, at), named(otherHost, otherApp, at)
		a.Priority, b.Priority = priority%192, priority/2
		templates := safePaths
		if path, err := parsePath(template); err == nil {
			templates = append(templates[:len(templates):len(templates)], path.text)
		}
		for _, one := range templates {
			path := pathOf(t, one, a)
			if strings.ToLower(one) == one { // its own letters stay as they are
				checkPath(t, one, path, at)
			}
			checkHosts(t, one, a, b)
		}
	})
}

// TestInventedProgramsUseUpNoOtherHostsFiles: and one that was there before keeps
// its own. It fails if programs are counted over all hosts, or not at all.
func TestInventedProgramsUseUpNoOtherHostsFiles(t *testing.T) {
	at := time.Now()
	a := newApps(5)
	first := string(a.of(named("cn1", "sshd", at)))
	seen := map[string]bool{}
	for i := range 100_000 {
		seen[string(a.of(named("cn1", fmt.Sprint("forged", i), at)))] = true
	}
	if len(seen) != 5 || !seen[overflow] || len(a.known["cn1"]) != 5 {
		t.Errorf("%d names, %d are remembered: %v", len(seen), len(a.known["cn1"]), seen)
	}
	if got := string(a.of(named("cn1", "sshd", at))); got != first || got != "sshd" {
		t.Errorf("a program that was there before is %q", got)
	}
	if got := string(a.of(named("cn2", "forged99999", at))); got != "forged99999" {
		t.Errorf("a program of another host is %q", got)
	}
}

// TestOnlyPathsThatATemplateGivesAreOurs: of severities, facilities, dates and
// names that stand twice, those alone that it writes. It fails where a variable
// takes any word: files of an earlier path are then taken for those of now, and
// never put away, or files of others for ours, and removed.
func TestOnlyPathsThatATemplateGivesAreOurs(t *testing.T) {
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	long := strings.Repeat("x", maxApp+1)
	for _, test := range []struct {
		path      string // and those before, separated by blanks
		files     string // that are of the path of now
		earlier   string
		strangers string
	}{
		{"{facility}/{host}.log {severity}/{host}.log", "auth/cn1.log local7/cn1.log kern/x.log.log ntp/a.log audit/a.log alert/a.log clock/a.log", "info/cn1.log emerg/cn1.log", "apt/history.log local8/cn1.log warn/cn1.log authx/cn1.log"},
		{"{severity}/{host}.log {facility}/{host}.log", "err/cn1.log debug/cn1.log", "daemon/cn1.log authpriv/cn1.log", "error/cn1.log apt/history.log"},
		{"{year}/{month}/{day}/{host}.log", "2026/11/26/cn1.log 2025/02/31/cn1.log 2026/09/09/cn1.log", "", "2026/99/26/cn1.log 2026/00/26/cn1.log 2026/13/01/cn1.log 2026/11/00/cn1.log 2026/11/32/cn1.log"},
		{"{host}/{host}.log", "a/a.log a.log+/a.log.log", "", "a/b.log a/aa.log"},
		{"{app}/x{app}/{host}.log", "su/xsu/cn1.log", "", "su/xsudo/cn1.log " + long + "/x" + long + "/cn1.log"},
	} {
		l := layoutOf(t, strings.Fields(test.path)...)
		for _, want := range []struct {
			files       string
			ok, earlier bool
		}{{test.files, true, false}, {test.earlier, true, true}, {test.strangers, false, false}} {
			for _, file := range strings.Fields(want.files) {
				if p, ok := l.place(file, at); ok != want.ok || p.earlier != want.earlier || want.earlier && !p.past {
					t.Errorf("%s: %s is ours: %v, %+v", test.path, file, ok, p)
				}
			}
		}
	}
	if p, ok := layoutOf(t, "{facility}/{host}.log").place("facility12/cn1.log", at); !ok || !p.past || p.earlier {
		t.Errorf("a file of a facility that had no name: %+v, %v", p, ok)
	}
	l := layoutOf(t, "{facility}/{host}/{host}/x.log")
	for dir, want := range map[string]bool{"auth": true, "apt": false, "auth/cn1": true, "auth/cn1/cn1": true, "auth/cn1/cn2": false, "auth/cn1/cn1/x.log": false} {
		if got := l.folder(dir); got != want {
			t.Errorf("files of ours can be below %s: %v", dir, got)
		}
	}
}

// TestEachLineHasItsOwnDay, whatever the line before had: the text of a day is
// kept while lines are of it. It fails if the next day's first second, or a day
// before 1970, has the day before.
func TestEachLineHasItsOwnDay(t *testing.T) {
	path, err := parsePath("{year}/{month}/{day}/{host}.log")
	if err != nil {
		t.Fatal(err)
	}
	midnight := time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)
	l := &line{host: "cn1"}
	for _, at := range []time.Time{
		{}, midnight, midnight.Add(-1), midnight.Add(24*time.Hour - 1), midnight.Add(24 * time.Hour), time.Unix(0, 0), time.Unix(-1, 0), time.Unix(-86400, 0), time.Unix(-86401, 0),
	} {
		l.received = at.In(time.FixedZone("", 7200))
		if got, want := string(path.append(nil, l, nil)), at.UTC().Format("2006/01/02/")+"cn1.log"; got != want {
			t.Errorf("a line of %v is in %s", at, got)
		}
	}
}

// TestWhatALimitLeftOutIsToldInOneFile, also of a host that has as many
// programs as may have files. It fails if the relay's own name is counted as any
// other.
func TestWhatALimitLeftOutIsToldInOneFile(t *testing.T) {
	a := newApps(2)
	told := &line{}
	for i := range 4 {
		told.announce(&over{overKey: overKey{host: "cn1"}, limit: &limit{lines: 1, every: time.Second}, lines: 1, first: time.Now(), last: time.Now()})
		if got := string(a.of(told)); got != "holdfast" {
			t.Errorf("with %d programs it is told in %s", i, got)
		}
		want := fmt.Sprint("app", i)
		if i >= 2 {
			want = overflow
		}
		if got := string(a.of(named("cn1", fmt.Sprint("app", i), time.Now()))); got != want {
			t.Errorf("program %d is in %s, want %s", i, got, want)
		}
	}
}

// TestALineCostsNoMemory, but for files that are opened and what is redacted:
// with the default, and with a path and a format of one's own, with patterns of
// secrets that fit nowhere, and with a program beyond those that have files. It
// fails where a path, a name or a part is made a string on the way, or a part
// is copied before a pattern fits.
func TestALineCostsNoMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, section := range []string{
		`{}`,
		`{files: {path: "{year}/{month}/{day}/{facility}/{severity}/{host}/{app}.log", format: "{received} {time} {stamp} {host} {claims} {source} {facility} {severity} {priority} {app} {proc} {tag}{text}"}}`,
		`{files: {format: json}}`, `{files: {format: rfc5424}}`, `{files: {format: traditional}}`, `{files: {format: rsyslog}}`,
		`{redact: ['password=\S+', '\bkey$']}`, `{files: {format: json}, redact: ['password=\S+', '\bkey$']}`, `{files: {format: rfc5424}, redact: ['password=\S+']}`,
		`{files: {path: "{host}/{app}.log", format: "{received} {app} {text}", apps: 1}, redact: ['password=\S+', '\bkey$']}`,
	} {
		x := newStage(t, section)
		o := beginFiles(t, x)
		if o.layout.path.has[varApp] { // where apps says 1, the line's is one too many
			o.apps.of(named("cn01", "another", time.Now()))
		}
		record := journal.Record{
			Time: time.Now().UnixNano(), Source: netip.MustParseAddr("10.1.0.31"), Input: viaRELP,
			Data: []byte("<101>2026-11-25T12:00:00.123456+01:00 cn01 Slurm/D[12]: launched \x01 \xff \u2028 \"a\""),
		}
		names := testNames()
		one := func() {
			o.line.read(record, names)
			f, err := o.fileOf(&o.line)
			if err != nil {
				t.Fatal(err)
			}
			o.put(f)
			f.buf, o.dirty = f.buf[:0], o.dirty[:0]
		}
		if n := testing.AllocsPerRun(100, one); n != 0 {
			t.Errorf("%s: a line costs %v pieces of memory", section, n)
		}
		x.end()
	}
}

// TestPathsThatWereBeforeAreRemembered, with their folders: those below the
// folder of now. It fails if the path of another folder is looked for here.
func TestPathsThatWereBeforeAreRemembered(t *testing.T) {
	dir := t.TempDir()
	open := func(folder, text string) (before []string) {
		t.Helper()
		path, err := parsePath(text)
		if err != nil {
			t.Fatal(err)
		}
		p, before, err := openPaths(dir, folder, path, true)
		if err == nil {
			err = p.save()
		}
		if err != nil {
			t.Fatal(err)
		}
		return before
	}
	for _, step := range []struct {
		folder, text string
		want         []string
	}{
		{"/logs/hosts", defaultPath, nil},
		{"/logs/hosts/", defaultPath, nil},
		{"/logs/hosts", "{host}/{app}.log", []string{defaultPath}},
		{"/logs", "{host}.log", []string{"hosts/{host}.log", "hosts/{host}/{app}.log"}},
		{"/logs/ho", "{host}.log", nil},
		{"/logs/hosts", defaultPath, []string{"{host}/{app}.log"}},
	} {
		if diff := cmp.Diff(step.want, open(step.folder, step.text)); diff != "" {
			t.Errorf("%s in %s: %s", step.text, step.folder, diff)
		}
	}
	for i := range 3 * maxPaths {
		open("/logs/hosts", fmt.Sprintf("x%d/{host}.log", i))
	}
	if before := open("/logs/hosts", "{host}/x.log"); len(before) != maxPaths || before[maxPaths-1] != fmt.Sprintf("x%d/{host}.log", 3*maxPaths-1) {
		t.Errorf("%d are remembered: %q", len(before), before)
	}
}

// TestAnUpgradeRemembersThePathThatWasTheOnlyOne: where files were written and no
// paths are remembered, those of the default path are ours, at the next start too.
// Where none were written, files in the folder are others'. It fails if a missing
// file of paths always means that there were none, or never.
func TestAnUpgradeRemembersThePathThatWasTheOnlyOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{files: {path: "{host}/{app}.log"}}`)
		defer x.end()
		x.store("<13>Nov 25 12:00:00 cn1 test: text")
		for _, want := range [][]bool{{false, false}, {true, true}} {
			for start, want := range want {
				o, err := x.s.newFiles(x.j)
				if err == nil {
					err = o.paths.save()
				}
				if err != nil {
					t.Fatal(err)
				}
				if p, ok := o.layout.place("cn1.log", time.Now()); ok != want || p.earlier != want {
					t.Errorf("start %d: ours %v, earlier %v, want %v", start, ok, p.earlier, want)
				}
				if err := o.cursor.Commit(1); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Remove(filepath.Join(x.s.dir(), pathsFile)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestFileNamesAreToldFromFolders(t *testing.T) {
	for name, want := range map[string]bool{
		"x.log": true, "x.log.20260101T000000.000": true, "x.log.20260101T000000.000.zst": true, ".log": true,
		"x": false, "x.logs": false, "x.zst": false, "x.log.20260101T000000Z": false, "a.log.example.com": false, "": false, ".zst": false,
	} {
		if got := namesFile([]byte(name)); got != want {
			t.Errorf("%q: %v", name, got)
		}
		if _, _, away := cutRotated(name); away && !want || bytes.HasSuffix([]byte(name), []byte(fileSuffix)) && !want {
			t.Errorf("%q can be a file's", name)
		}
	}
}
