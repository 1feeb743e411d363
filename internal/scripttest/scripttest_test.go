package scripttest

import (
	"fmt"
	"strings"
	"testing"
)

// TestAScriptThatGivesSomethingElseIsNotTheSameText: what stands below the dashes
// is no part of what is played, and comments are no commands.
func TestAScriptThatGivesSomethingElseIsNotTheSameText(t *testing.T) {
	block := func(commands string, checked bool) string {
		var out []string
		Commands(commands, func(words []string) {
			if checked {
				out = append(out, fmt.Sprint(len(words), " words"))
			}
		})
		return WithResults(commands, out)
	}
	const right = "# two and one\na b\nc\n----\n2 words\n1 words\n\nalone\n"
	if got := Play(right, block); got != right {
		t.Errorf("a script that is right gives %q", got)
	}
	if got := Play(strings.Replace(right, "1 words", "7 words\nand more", 1), block); got != right {
		t.Errorf("a script that is wrong gives %q", got)
	}
	if n := Commands("# nothing\n\n", func([]string) {}); n != 0 {
		t.Errorf("%d commands in a comment", n)
	}
}
