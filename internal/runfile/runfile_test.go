package runfile

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestLinesOfAnotherLifeAreToldApart: of another boot, and of another namespace.
// What can't be read is counted, whosever it is.
func TestLinesOfAnotherLifeAreToldApart(t *testing.T) {
	f := File{filepath.Join(t.TempDir(), "file"), Origin{"boot", 4}}
	var ours, others []string
	read := func() int {
		t.Helper()
		ours, others = nil, nil
		broken, err := f.Read(2, func(words []string, mine bool) bool {
			if mine {
				ours = append(ours, fmt.Sprint(words))
			} else {
				others = append(others, fmt.Sprint(words))
			}
			return words[0] != "nonsense"
		})
		if err != nil {
			t.Fatal(err)
		}
		return broken
	}
	if broken := read(); broken != 0 || ours != nil {
		t.Errorf("no file: %v, %d broken", ours, broken)
	}
	if err := f.Write([]string{"a 1", "b 2"}); err != nil {
		t.Fatal(err)
	}
	if broken := read(); broken != 0 || !slices.Equal(ours, []string{"[a 1]", "[b 2]"}) || others != nil {
		t.Errorf("what was written: %v and others' %v, %d broken", ours, others, broken)
	}
	text := "boot 4 a 1\nother 4 b 2\nboot 5 c 3\nboot four d 4\nboot 4 e\nboot 4 nonsense 5\nboot 4 f 6 7\nboot 4 g 8"
	if err := Replace(f.Path, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if broken := read(); broken != 4 || !slices.Equal(ours, []string{"[a 1]", "[nonsense 5]", "[g 8]"}) || !slices.Equal(others, []string{"[b 2]", "[c 3]"}) {
		t.Errorf("ours %v, others' %v, %d broken", ours, others, broken)
	}
	if left, err := os.ReadDir(filepath.Dir(f.Path)); err != nil || len(left) != 1 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}

func TestHereIsThisBoot(t *testing.T) {
	one, err := Here()
	if err != nil {
		t.Fatal(err)
	}
	if two, err := Here(); err != nil || one != two || one.Boot == "" || one.NetNS == 0 {
		t.Errorf("%v and %v, %v", one, two, err)
	}
}
