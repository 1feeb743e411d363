package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParse holds the loader to its promises: it never panics, its mistakes
// have places in the order of the file, and what it accepts can be expanded,
// written, and read back with the same meaning.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml", "../examples/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range files {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	validators := permissive()
	validators["dns"] = func(file *File, s Section) error {
		var got settings
		_ = s.Errorf("forward[0].x", "x")
		return s.Decode(&got)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 16<<10 {
			return // more only takes longer
		}
		file, err := Parse("fuzz", data, validators)
		if err != nil {
			checkErrors(t, data, err)
			return
		}
		if len(file.Nodes) > 200 || len(file.Services)+len(file.VIPs) > 50 {
			return
		}
		if _, err := file.Self(file.Nodes[0].Name); err != nil {
			t.Fatal(err)
		}
		checkRoundTrip(t, file)
	})
}

func checkErrors(t *testing.T, data []byte, err error) {
	list, ok := errors.AsType[Errors](err)
	if !ok || len(list) == 0 {
		t.Fatalf("error %v, want Errors", err)
	}
	lines := strings.Count(strings.ReplaceAll(string(data), "\r", "\n"), "\n") + 1
	for i, e := range list {
		if e.Line > lines+1 || i > 0 && e.Line < list[i-1].Line {
			t.Fatalf("%v in a file of %d lines, after %v", e, lines, list[max(0, i-1)])
		}
		if strings.Contains(e.Message, "%!") && !strings.Contains(string(data), "%!") {
			t.Fatalf("bad format: %s", e.Message)
		}
	}
}
