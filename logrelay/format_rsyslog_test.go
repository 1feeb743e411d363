package logrelay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
	const loose, structured = "tag:no blank", "structured"
	lines := []string{
		"<30>" + stamp + " cn02 sshd[12]: Accepted key",
		"<34>" + precise + " cn02 su: \ta tab, and a\x01 control",
		"<191>" + stamp + " cn02 %SYS-5-CONFIG: Configured",
		"<13>" + stamp + " cn02 " + loose,
		"<165>1 " + precise + ` cn02 slurmd 8 ID7 [a b="c"] ` + structured,
	}
	var conn net.Conn
	eventually(t, 20*time.Second, "rsyslogd listens", func() (err error) {
		conn, err = net.Dial("tcp", addr)
		return err
	})
	_, err := conn.Write([]byte(strings.Join(lines, "\n") + "\n"))
	if err = errors.Join(err, conn.Close()); err != nil {
		t.Fatal(err)
	}
	for format := range templates {
		var got []string
		eventually(t, 20*time.Second, "rsyslogd writes", func() error {
			b, err := os.ReadFile(filepath.Join(dir, format+".log"))
			if got = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"); len(got) != len(lines) {
				err = errors.Join(err, fmt.Errorf("%d of %d lines", len(got), len(lines)))
			}
			return err
		})
		for i, text := range lines {
			// Scibian's template has no blank where none came. Of a line of RFC 5424
			// rsyslogd makes a tag without a colon, and of another one a line of
			// RFC 5424 with two blanks; ours has one of each.
			if format == "scibian" && strings.HasSuffix(text, loose) || (format == "rfc5424") != strings.HasSuffix(text, structured) {
				continue
			}
			if diff := cmp.Diff(got[i], written(t, format, lineOf(text, now), nil)); diff != "" {
				t.Errorf("%q as %s: %s", text, format, diff)
			}
		}
	}
	end()
	if t.Failed() {
		t.Log(said.String())
	}
}
