// Package scripttest plays scripts, which are tests that a person reads like
// minutes of a meeting: paragraphs of commands, a line of dashes, and what they
// give. A script is right when playing it gives the same text.
package scripttest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Block plays the commands of one paragraph, lines without the dashes, and gives
// the paragraph as it should stand in the script. checked: dashes stood below
// them there.
type Block func(commands string, checked bool) string

// Files plays every script whose path matches a pattern, each as a test of its
// name. begin makes what plays a script from its beginning. With update scripts
// are rewritten instead of compared.
func Files(t *testing.T, pattern string, update bool, begin func(*testing.T) Block) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := Play(string(text), begin(t))
			if update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(strings.Split(string(text), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("%s (-want +got); -update rewrites it:\n%s", path, diff)
			}
		})
	}
}

// Play plays a script and gives it as it should be.
func Play(text string, block Block) string {
	var out []string
	for paragraph := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		commands, _, checked := strings.Cut(paragraph, "\n----")
		out = append(out, block(commands, checked))
	}
	return strings.Join(out, "\n\n") + "\n"
}

// Commands calls run with the words of each command. Lines that begin with # are
// for the reader. It tells how many there were.
func Commands(commands string, run func(words []string)) (n int) {
	for line := range strings.SplitSeq(commands, "\n") {
		if line != "" && line[0] != '#' {
			run(strings.Fields(line))
			n++
		}
	}
	return n
}

// WithResults puts what commands gave below them, and nothing there when they
// gave nothing.
func WithResults(commands string, results []string) string {
	if len(results) == 0 {
		return commands
	}
	return commands + "\n----\n" + strings.Join(results, "\n")
}
