package vm

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	godebug "runtime/debug"
	"testing"

	"holdfast/lab/vm/debian"
)

// TestBinary builds the test binary of the package whose test runs, for machines
// to which it is exposed: static, without the race detector. What it does there,
// its TestMain decides. It is in the cache, and claimed until the test ends: no
// other process replaces it meanwhile, and no other test may claim it.
func TestBinary(t testing.TB) string {
	t.Helper()
	Require(t)
	binary, unlock, err := testBinary(t.Context())
	if err != nil {
		t.Fatalf("vm: build the test binary: %v", err)
	}
	t.Cleanup(unlock)
	return binary
}

// testBinary builds the test binary of the package in the working directory,
// which is the one whose test runs, and returns its path in the cache. Where
// nothing changed since, that takes a fraction of a second. unlock ends the
// claim on it.
func testBinary(ctx context.Context) (file string, unlock func(), err error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", nil, err
	}
	cache, err := debian.CacheDir()
	if err != nil {
		return "", nil, err
	}
	// Each folder of each working copy has its own.
	sum := sha256.Sum256([]byte(dir))
	file = filepath.Join(cache, "tests", fmt.Sprintf("%s-%x.test", filepath.Base(dir), sum[:6]))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", nil, err
	}
	// A second process waits here until the first is done with the binary.
	unlock, err = debian.Lock(file + ".lock")
	if err != nil {
		return "", nil, err
	}
	args := []string{"test", "-c", "-race=false", "-vet=off", "-o", file}
	if tags := buildTags(); tags != "" {
		args = append(args, "-tags="+tags)
	}
	if err := goCommand(ctx, append(args, ".")...); err != nil {
		unlock()
		return "", nil, err
	}
	return file, unlock, nil
}

// buildTags are those that this process was built with.
func buildTags() string {
	info, ok := godebug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "-tags" {
			return s.Value
		}
	}
	return ""
}
