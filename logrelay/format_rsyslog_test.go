package logrelay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestFormatsAreWhatARealRsyslogdWrites, of the same lines, byte for byte. It
// fails if a format has another order, time or tag than the template it is
// named after.
func TestFormatsAreWhatARealRsyslogdWrites(t *testing.T) {
	const addr = "127.9.7.1:10514"
	dir, now := t.TempDir(), time.Now()
	host, port, _ := net.SplitHostPort(addr)
	templates := map[string]string{
		"scibian": "ours", "rsyslog": "RSYSLOG_FileFormat", "traditional": "RSYSLOG_TraditionalFileFormat", "rfc5424": "RSYSLOG_SyslogProtocol23Format",
	}
	config := fmt.Sprintf(`global(workDirectory=%q)
module(load="imptcp")
template(name="ours" type="string" string="%%timestamp:::date-rfc3339%% %%hostname%% %%pri-text%% %%syslogtag%%%%msg%%\n")
ruleset(name="in") {
`, dir)
	for format, template := range templates {
		config += fmt.Sprintf("  action(type=\"omfile\" file=%q template=%q)\n", filepath.Join(dir, format+".log"), template)
	}
	config += fmt.Sprintf("}\ninput(type=\"imptcp\" address=%q port=%q ruleset=\"in\")\n", host, port)
	if err := os.WriteFile(filepath.Join(dir, "rsyslog.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.Command("/usr/sbin/rsyslogd", "-n", "-f", filepath.Join(dir, "rsyslog.conf"), "-i", filepath.Join(dir, "pid"))
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("rsyslogd, run hack/deps: %v", err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	stamp, precise := now.Format(time.Stamp), now.Format("2006-01-02T15:04:05.000000-07:00")
	foreign := now.In(time.FixedZone("", 5*3600+1800)).Format("2006-01-02T15:04:05.000000-07:00")
	const bom = "\xef\xbb\xbf"
	// What the README says of lines of RFC 3164 that are written as RFC 5424, and
	// the other way round: the second of each pair is ours.
	older := map[string][]string{"rfc5424": {" - -  ", " - - "}}
	newer := func(tag, ours string, more ...string) map[string][]string {
		behind := append([]string{" " + tag + " ", " " + ours}, more...)
		return map[string][]string{"scibian": append([]string{" " + tag, " " + ours}, more...), "rsyslog": behind, "traditional": behind, "rfc5424": nil}
	}
	noHost := newer("slurmd", "slurmd: ", " - ", " 10.1.0.9 ")
	noHost["rfc5424"] = []string{" - ", " 10.1.0.9 "}
	empty := newer("slurmd", "slurmd: ")
	empty["scibian"] = []string{" slurmd", " slurmd:"}
	lines := []struct {
		text   string
		differ map[string][]string // by format: what stands there for what rsyslogd has
	}{
		{"<30>" + stamp + " cn02 sshd[12]: Accepted key", older},
		{"<34>" + precise + " cn02 su: \ta tab, and a\x01 control", older},
		{"<191>" + stamp + " cn02 %SYS-5-CONFIG: Configured", older},
		{"<13>" + stamp + " cn02 one: two\nlines\n\nand more", older},
		{"<13>" + stamp + " cn02 tag:no blank", map[string][]string{"scibian": {"tag:no", "tag: no"}}},
		{"<13>" + stamp + " cn02 empty:", nil},
		{"<30>" + foreign + " cn02 sshd[12]: of another zone", older},
		{"<97>" + stamp + " cn02 ntpd: facility 12", older},
		{"<105>" + stamp + " cn02 auditd: facility 13", older},
		{"<113>" + stamp + " cn02 a: facility 14", older},
		{"<121>" + stamp + " cn02 a: facility 15", older},
		{"<165>1 " + precise + ` cn02 slurmd 8 ID7 [a b="c"] structured`, newer("slurmd[8]", "slurmd[8]: ")},
		{"<165>1 " + foreign + ` cn02 slurmd - - - of another zone`, newer("slurmd", "slurmd: ")},
		{"<165>1 " + precise + ` cn02 slurmd - - - ` + bom + "marked é", newer("slurmd", "slurmd: ", bom, "")},
		{"<165>1 " + precise + ` cn02 - - - - no program`, newer("-", "")},
		{"<165>1 " + precise + ` - slurmd - - - no host`, noHost},
		{"<165>1 " + precise + ` cn02 slurmd - - -`, empty},
		{"<165>1 " + precise + ` cn02 slurmd - - - two` + "\nlines", newer("slurmd", "slurmd: ")},
	}
	stream := ""
	for _, l := range lines {
		stream += fmt.Sprintf("%d %s", len(l.text), l.text) // RFC 6587 §3.4.1, for those with line feeds
	}
	var conn net.Conn
	eventually(t, time.Minute, "rsyslogd listens", func() (err error) {
		conn, err = net.Dial("tcp", addr)
		return err
	})
	_, err := conn.Write([]byte(stream))
	if err = errors.Join(err, conn.Close()); err != nil {
		t.Fatal(err)
	}
	for format := range templates {
		var got []string
		eventually(t, time.Minute, "rsyslogd writes", func() error {
			b, err := os.ReadFile(filepath.Join(dir, format+".log"))
			if got = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"); len(got) != len(lines) || !strings.HasSuffix(string(b), "\n") {
				err = errors.Join(err, fmt.Errorf("%d of %d lines, or the last in part", len(got), len(lines)))
			}
			return err
		})
		for i, l := range lines {
			want := got[i]
			for pair := range slices.Chunk(l.differ[format], 2) {
				if !strings.Contains(want, pair[0]) {
					t.Errorf("%q as %s: rsyslogd has %q, and no %q in it", l.text, format, want, pair[0])
				}
				want = strings.Replace(want, pair[0], pair[1], 1)
			}
			if diff := cmp.Diff(want, written(t, format, lineOf(l.text, now), nil)); diff != "" {
				t.Errorf("%q as %s: %s", l.text, format, diff)
			}
		}
	}
	end()
	if t.Failed() {
		t.Log(said.String())
	}
}
