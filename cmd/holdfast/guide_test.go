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
// command, and in a block also for an argument too few, where TestCommandsThatDocumentsShowExist looks at names alone.
func TestCommandsOfTheGuideAreTaken(t *testing.T) {
	text, err := os.ReadFile("../../docs/guide.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks, spans := commandsOf(string(text))
	taken := 0
	for i, line := range slices.Concat(blocks, spans) {
		ok, err := judge(line, i < len(blocks))
		if err != nil {
			t.Errorf("%s: %v", strings.TrimSpace(line), err)
		}
		if ok {
			taken++
		}
	}
	if taken < 40 {
		t.Errorf("only %d commands were taken", taken)
	}
	const short = "holdfast kv get" // its key is missing
	if _, err := judge(short, true); err == nil {
		t.Errorf("%q may stand in a block", short)
	}
	if ok, err := judge(short, false); ok || err != nil {
		t.Errorf("%q in the text: %v, %v", short, ok, err)
	}
	if got := shellWords(` holdfast a 'b c' "d"   # e`); !slices.Equal(got, []string{"holdfast", "a", "b c", "d"}) {
		t.Errorf("words: %q", got)
	}
}

// commandsOf are the commands of a document's blocks, and those in its text.
func commandsOf(text string) (blocks, spans []string) {
	blocks = regexp.MustCompile("(?m)^ *holdfast .*$").FindAllString(text, -1)
	for _, span := range regexp.MustCompile("`holdfast [^`\n]+`").FindAllString(text, -1) {
		spans = append(spans, strings.Split(strings.Trim(span, "`"), " && ")...)
	}
	return blocks, spans
}

// judge tells whether the program takes a line, and what is wrong with it. A command
// that the text only speaks of lacks its arguments; one in a block is to be typed.
func judge(line string, block bool) (taken bool, err error) {
	words := shellWords(line)
	if words[0] != "holdfast" {
		return false, nil
	}
	tree, err := kong.New(&cli{}, kong.Name("holdfast"), kong.Exit(func(int) {}), kong.Vars{"version": version})
	if err != nil {
		return false, err
	}
	_, err = tree.Parse(words[1:])
	if err != nil && !block && (strings.HasPrefix(err.Error(), "expected ") || strings.HasPrefix(err.Error(), "missing ")) {
		return false, nil
	}
	return err == nil, err
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
