package site

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Build builds the program into dir and returns its path. The environment
// variable HOLDFAST_BINARY names one that is built already.
func Build(ctx context.Context, dir string) (string, error) {
	if path := os.Getenv("HOLDFAST_BINARY"); path != "" {
		return path, nil
	}
	return build(ctx, filepath.Join(dir, "holdfast"))
}

// RunTests runs the tests of a package, a testing.M, after it has put the path of
// the program under test into binary. It gives the exit status.
func RunTests(m interface{ Run() int }, binary *string) (status int) {
	dir, err := os.MkdirTemp("", "holdfast-test-")
	if err == nil {
		defer os.RemoveAll(dir)
		*binary, err = Build(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// ClockJump is when, after its start, the clock of a program of Build1970 is
// set forward by a day.
const ClockJump = 5 * time.Second

// BuildFuture builds a program of a later version, as far as an upgrade can
// tell: it reads one feature level more than the one under test, with a command
// more (internal/state/level_future.go). All other parts are the same. The
// environment variable HOLDFAST_FUTURE_BINARY names one that is built already.
func BuildFuture(ctx context.Context, dir string) (string, error) {
	if path := os.Getenv("HOLDFAST_FUTURE_BINARY"); path != "" {
		return path, nil
	}
	return build(ctx, filepath.Join(dir, "holdfast-future"), "-tags", "holdfast_future")
}

// Build1970 builds a program whose wall clock runs from the first minute of
// 1970 at the build, as that of a machine without a clock battery does, and is
// set forward by a day some seconds after the start, as by a time daemon: no
// namespace can set the real-time clock, so the standard library's time.Now
// is built with an offset. All other parts are the same.
func Build1970(ctx context.Context, dir string) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("site: go env GOROOT: %w", err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src/time/time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	const call = "\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(source), call) != 1 {
		return "", fmt.Errorf("site: %s reads the clock in an unknown way", original)
	}
	// Whole days, so that the build cache serves a day's runs.
	offset := time.Now().Truncate(24 * time.Hour).Unix()
	changed := strings.Replace(string(source), call, fmt.Sprintf(
		"%s\tsec -= %d\n\tif mono-startNano > %d {\n\t\tsec += 24 * 60 * 60\n\t}\n", call, offset, ClockJump.Nanoseconds()), 1)
	replacement := filepath.Join(dir, "time.go")
	if err := os.WriteFile(replacement, []byte(changed), 0o600); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: replacement}})
	if err != nil {
		return "", err
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		return "", err
	}
	return build(ctx, filepath.Join(dir, "holdfast-1970"), "-overlay", overlayFile)
}

func build(ctx context.Context, path string, flags ...string) (string, error) {
	args := append(append([]string{"build"}, flags...), "-o", path, "holdfast/cmd/holdfast")
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as the product is built
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("site: go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return path, nil
}
