package cluster

import (
	"path/filepath"
	"testing"
)

// permissive takes every section as it is.
func permissive() map[string]SectionValidator {
	return map[string]SectionValidator{"dns": nil, "api": nil, "raft": nil}
}

func TestExamplesLoad(t *testing.T) {
	files, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, path := range files {
		f, err := Load(path, permissive())
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if len(f.Servers()) == 0 || f.Voters() == 0 {
			t.Errorf("%s: no servers", path)
		}
	}
}
