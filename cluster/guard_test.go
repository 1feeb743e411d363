package cluster

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Inputs for which the YAML parser alone needs minutes, or that ask for much
// memory, must be refused, or read, in seconds of processor time.
func TestHostileFilesEndSoon(t *testing.T) {
	var deep, keys, wide, tags strings.Builder
	for i := range 500 {
		fmt.Fprintf(&deep, "%sa:\n", strings.Repeat(" ", i))
	}
	for i := range 30_000 {
		fmt.Fprintf(&keys, "  x%d: 1\n", i)
	}
	for i := range 100_000 {
		fmt.Fprintf(&tags, "t%d, ", i)
	}
	for i := range 1000 {
		fmt.Fprintf(&wide, "  s%d: {on: \"@*\", port: 1}\n", i)
	}
	tests := map[string]struct{ source, want string }{
		"flow lists":     {"schema: 1\na: " + strings.Repeat("[", 50_000), "levels inside each other"},
		"flow mappings":  {"schema: 1\na: " + strings.Repeat("{a: ", 50_000), "levels inside each other"},
		"dashes":         {strings.Repeat("- ", 50_000), "levels inside each other"},
		"question marks": {strings.Repeat("? ", 50_000), "levels inside each other"},
		"block mappings": {"schema: 1\n" + deep.String(), "levels inside each other"},
		"documents":      {strings.Repeat("---\na: 1\n", 20_000), "a second YAML document"},
		"keys":           {"schema: 1\na:\n" + keys.String(), "keys in one mapping"},
		"flow keys":      {"schema: 1\na: {" + strings.Join(strings.Fields(strings.ReplaceAll(keys.String(), ": 1", ",")), " ") + "}", "keys in one mapping"},
		"tags":           {small + "services:\n  many: {on: \"@service\", port: 1, tags: [" + tags.String() + "]}\n", "at most 128"},
		"size":           {"schema: 1\n# " + strings.Repeat("x", maxFileSize), "at most 4194304 are read"},
		"node set":       {"schema: 1\nnodes: {\"n[1-99999999]\": {}}", "expands to more than 65536 items"},
		"references": {
			"schema: 1\ncluster: a\ndomain: b\nroles: {r: {voters: 1}}\nnetworks: {n: {prefix: 10.0.0.0/8}}\n" +
				"nodes:\n  n[1-20400]: {role: r, addresses: {n: \"10.1.[0-79].[1-255]\"}}\n" +
				"services:\n" + wide.String(),
			"name more than",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			begin := processorTime(t)
			_, err := Parse("c", []byte(test.source), nil)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %.200v, want %q", err, test.want)
			}
			if took := processorTime(t) - begin; took > 20*time.Second {
				t.Errorf("took %s of a processor", took)
			}
		})
	}
}

// processorTime is what this process has used so far. Unlike the time on the
// wall, it says the same on a machine that is busy with other things.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func TestDocumentMarksAroundTheOneDocumentAreRead(t *testing.T) {
	mustParse(t, "# comment\n---\n"+small+"...\n# end\n")
	if _, err := Parse("c", []byte(small+"...\n"+small), nil); err == nil {
		t.Error("a second document is no error")
	}
	mustParse(t, "\ufeff"+strings.ReplaceAll(small, "\n", "\r\n"))
}
