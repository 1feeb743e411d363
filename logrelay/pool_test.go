package logrelay

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestTheNextAddressTakesOverAndTheFirstIsGoneBackTo, from scripts: "f" the
// address in use fails, "t" it takes lines, "s" the first was tried beside and
// failed, a number of minutes that pass; "?" is whose turn it is.
func TestTheNextAddressTakesOverAndTheFirstIsGoneBackTo(t *testing.T) {
	for _, test := range []struct {
		size         int
		script, want string
	}{
		{1, "? f ? f ?", "0 0 0"},
		{3, "? f ? f ?", "0 1 2"},
		{3, "f f f ?", "0"},                          // all failed: anew
		{3, "f ? 1 ?", "1 0"},                        // back after a minute
		{2, "f 1 ? f ? 1 ? 1 ?", "0 1 1 0"},          // two minutes the second time
		{2, "f 1 ? t f ? 1 ?", "0 1 0"},              // but it took lines: one
		{2, "f 1 s ? 1 ? 1 ?", "1 1 0"},              // tried beside the work
		{2, "f 9 s 9 s 9 s 9 s 16 s 32 s 59 ?", "1"}, // once an hour in the end
		{2, "f 9 s 9 s 9 s 9 s 16 s 32 s 60 ?", "0"},
	} {
		p := pool{size: test.size, least: firstReturn}
		now := time.Unix(0, 0)
		var turns []string
		for word := range strings.FieldsSeq(test.script) {
			switch word {
			case "f":
				p.failed(now)
			case "t":
				p.took()
			case "s":
				p.still(now)
			case "?":
				turns = append(turns, itoa(p.turn(now)))
			default:
				minutes, err := time.ParseDuration(word + "m")
				if err != nil {
					t.Fatal(err)
				}
				now = now.Add(minutes)
			}
		}
		if diff := cmp.Diff(test.want, strings.Join(turns, " ")); diff != "" {
			t.Errorf("%s: %s", test.script, diff)
		}
	}
}
