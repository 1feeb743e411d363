package logrelay

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
		eventually(t, 10*time.Second, "the lines come", func() error {
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
