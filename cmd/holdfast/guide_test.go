package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestCommandsOfTheGuideAreTaken: each line of its blocks, and each command in its
// text that has more than names of commands, as a shell gives it to the program.
// It fails for an argument too many, a flag without its value, or one of another
// command, where TestCommandsThatDocumentsShowExist looks at names alone.
func TestCommandsOfTheGuideAreTaken(t *testing.T) {
	text, err := os.ReadFile("../../docs/guide.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile("(?m)^ *holdfast .*$").FindAllString(string(text), -1)
	for _, span := range regexp.MustCompile("`holdfast [^`\n]+`").FindAllString(string(text), -1) {
		lines = append(lines, strings.Split(strings.Trim(span, "`"), " && ")...)
	}
	taken := 0
	for _, line := range lines {
		words := shellWords(line)
		if words[0] != "holdfast" {
			continue
		}
		tree, err := kong.New(&cli{}, kong.Name("holdfast"), kong.Exit(func(int) {}), kong.Vars{"version": version})
		if err != nil {
			t.Fatal(err)
		}
		_, err = tree.Parse(words[1:])
		// A command that is only spoken of lacks its arguments.
		if err != nil && !(strings.HasPrefix(err.Error(), "expected ") || strings.HasPrefix(err.Error(), "missing ")) {
			t.Errorf("%s: %v", strings.TrimSpace(line), err)
		}
		if err == nil {
			taken++
		}
	}
	if taken < 40 {
		t.Errorf("only %d commands were taken", taken)
	}
	if got := shellWords(` holdfast a 'b c' "d"   # e`); !slices.Equal(got, []string{"holdfast", "a", "b c", "d"}) {
		t.Errorf("words: %q", got)
	}
}

// shellWords splits a line as a shell does, up to a comment.
func shellWords(line string) (words []string) {
	for _, m := range regexp.MustCompile(`#.*|'([^']*)'|"([^"]*)"|[^\s'"]+`).FindAllStringSubmatch(line, -1) {
		if m[0][0] == '#' {
			break
		}
		words = append(words, strings.Trim(m[0], `'"`))
	}
	return words
}
