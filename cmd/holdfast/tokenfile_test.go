package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAnEmptyTokenFileIsNotAMissingOne: each has a message of its own, and no
// server is asked without a token by who names a file for it. It fails where the
// file's emptiness is taken for no --token-file at all.
func TestAnEmptyTokenFileIsNotAMissingOne(t *testing.T) {
	n := &node{dir: t.TempDir()}
	empty, blank, missing := filepath.Join(n.dir, "empty"), filepath.Join(n.dir, "blank"), filepath.Join(n.dir, "missing")
	for path, text := range map[string]string{empty: "", blank: " \n\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range [][]string{
		{"join", "127.0.0.1", "--pki", n.dir, "--config", filepath.Join(n.dir, "cluster.yaml")},
		{"status", "--server", "http://127.0.0.1:1"}, // who asks finds nobody, which is another status
	} {
		for path, want := range map[string]string{
			empty:   empty + " is there and has no token in it (0 bytes)",
			blank:   blank + " is there and has no token in it (3 bytes)",
			missing: missing + ": no such file",
		} {
			out := n.expect(t, exitUsage, want, append(command, "--token-file", path)...)
			if strings.Contains(out, "give --token-file") {
				t.Errorf("%s: it is said that no file was given: %s", path, out)
			}
		}
	}
}
