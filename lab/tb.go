package lab

import (
	"os"
	"strings"
)

// TB is what the lab needs of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Name() string
	Cleanup(func())
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Require skips the test, saying why, where the machine can't make hosts; in CI
// (the environment variable CI is set) it fails it. LAB=off in the environment
// skips every test that needs hosts.
func Require(t TB) {
	t.Helper()
	if os.Getenv("LAB") == "off" {
		t.Skipf("lab: switched off by LAB=off")
	}
	err := Probe()
	if err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%v", err)
	}
	t.Skipf("%v", err)
}

// NewTest makes a lab for one test, where [Require] allows it, and closes it at
// the test's end; when the test failed, it first logs the end of what every
// process printed.
func NewTest(t TB, o Options) *Lab {
	t.Helper()
	Require(t)
	l, err := New(o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			var logs strings.Builder
			if err := l.DumpLogs(&logs, 30); err != nil {
				t.Logf("%v", err)
			}
			t.Logf("what the hosts' processes printed:\n%s", logs.String())
		}
		if err := l.Close(); err != nil {
			t.Errorf("%v", err)
		}
		if l.dir.keep {
			t.Logf("the lab's directory is kept: %s", l.Dir())
		}
	})
	return l
}
