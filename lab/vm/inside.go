package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/lab/vm/channel"
)

const (
	// insideTime is how long a test may take in the machine, unless go test's
	// own limit comes earlier.
	insideTime = 10 * time.Minute

	// deadlineMargin is what is left for the end of a test that took too long.
	deadlineMargin = 10 * time.Second
)

// IsInside says whether this process runs in a machine of this package, in a
// lab host there too.
func IsInside() bool {
	line, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(strings.Fields(string(line)), channel.Mark)
}

// Inside runs the test body in a virtual machine of its own. On the host it
// boots the machine, builds the package's test binary for it (static, without
// the race detector) and runs there this one test; what it prints is printed,
// how it ends is how t ends, and body isn't called. In the machine it calls
// body. Tests that can share a kernel are subtests in one body, and so share
// the boot.
//
// In the machine the working directory is the package's, files are the host's
// and can be written without being changed, PATH has the host's programs, and
// package lab makes hosts. There is no go command, and of the environment only
// what begins with HOLDFAST_, LAB_ or CI. A machine that is switched on sees
// what was built before; TestMain runs in the machine once more.
func Inside(t *testing.T, o Options, body func(t *testing.T)) {
	t.Helper()
	if IsInside() {
		body(t)
		return
	}
	binary := TestBinary(t)
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	module, err := moduleRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	o.Expose = append(slices.Clone(o.Expose), binary, module)
	m := NewTest(t, o)
	ctx, cancel := context.WithDeadline(t.Context(), insideDeadline(t))
	defer cancel()
	verdict := &verdictWriter{t: t}
	p, err := m.Start(Cmd{
		Args:   insideArgs(ctx, binary, t.Name()),
		Env:    insideEnvironment(),
		Dir:    dir,
		Stdout: verdict,
		Stderr: verdict,
	})
	if err != nil {
		t.Fatal(err)
	}
	err = p.waitOrKill(ctx)
	verdict.flush()
	switch {
	case err != nil && errors.Is(err, ErrOff):
		t.Fatalf("%v\nthe end of its console:\n%s", err, m.console.last(30))
	case err != nil:
		t.Fatal(err)
	case verdict.skipped:
		t.Skip("skipped in the machine")
	case !verdict.passed:
		t.Fatalf("the test binary has no test %s: is it behind a build tag, or does TestMain not call Run?", t.Name())
	}
}

func insideDeadline(t *testing.T) time.Time {
	end := time.Now().Add(insideTime)
	if limit, ok := t.Deadline(); ok {
		limit = limit.Add(-deadlineMargin)
		if limit.Before(end) {
			return limit
		}
	}
	return end
}

// insideArgs are those of the test binary. It gets a time limit shorter than
// ours, so that it ends with a trace of what it was waiting for.
func insideArgs(ctx context.Context, binary, name string) []string {
	args := []string{binary, "-test.run=" + exactly(name), "-test.v", "-test.count=1"}
	if end, ok := ctx.Deadline(); ok {
		args = append(args, fmt.Sprintf("-test.timeout=%s", max(time.Second, time.Until(end)-deadlineMargin).Round(time.Second)))
	}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	return args
}

// exactly is the pattern of -test.run for one test or subtest.
func exactly(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

func insideEnvironment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return !strings.HasPrefix(v, "HOLDFAST_") && !strings.HasPrefix(v, "LAB_") && !strings.HasPrefix(v, "CI=")
	})
}

// moduleRoot is the directory of go.mod: tests read files of other folders.
func moduleRoot(dir string) (string, error) {
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("vm: no go.mod in %s or above", dir)
		}
	}
}

// verdictWriter passes on what the test in the machine prints, by lines, and
// reads its verdict.
type verdictWriter struct {
	t               *testing.T
	pending         []byte
	passed, skipped bool
}

func (v *verdictWriter) Write(p []byte) (int, error) {
	v.pending = append(v.pending, p...)
	for {
		line, rest, ok := bytes.Cut(v.pending, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		v.line(string(line))
		v.pending = rest
	}
}

func (v *verdictWriter) flush() {
	if len(v.pending) > 0 {
		v.line(string(v.pending))
		v.pending = nil
	}
}

func (v *verdictWriter) line(line string) {
	fmt.Fprintln(v.t.Output(), line)
	word, ok := strings.CutPrefix(strings.TrimSpace(line), "--- ")
	if !ok {
		return
	}
	word, ok = strings.CutSuffix(strings.SplitN(word, " (", 2)[0], ": "+v.t.Name())
	if !ok {
		return
	}
	v.passed, v.skipped = v.passed || word == "PASS", v.skipped || word == "SKIP"
}
