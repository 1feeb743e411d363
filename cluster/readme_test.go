package cluster

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func readme(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestReadmesExampleIsAClusterFile(t *testing.T) {
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(readme(t), -1)
	if len(blocks) == 0 {
		t.Fatal("no example")
	}
	for _, block := range blocks {
		if _, err := Parse("README.md", []byte(block[1]), permissive()); err != nil {
			t.Error(err)
		}
	}
}

func TestReadmeDescribesEveryKey(t *testing.T) {
	p := &problems{file: "every-key.yaml", asked: map[string]bool{}}
	data, err := os.ReadFile("testdata/good/every-key.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parse(p, data, permissive()); err != nil {
		t.Fatal(err)
	}
	text := readme(t)
	for _, key := range slices.Sorted(maps.Keys(p.asked)) {
		if !strings.Contains(text, "`"+key+"`") && key != "file" {
			t.Errorf("%s is not described", key)
		}
	}
	if len(p.asked) < 40 {
		t.Errorf("only %d keys were asked for; does every-key.yaml lack some?", len(p.asked))
	}
}

// What the README shows as mistakes must be what the loader says of this file.
func TestReadmesMistakesAreReal(t *testing.T) {
	const source = `schema: 1
cluster: foobar
domain: hpc.example.com
networks: {administration: {prefix: 10.1.0.0/24}, wan: {prefix: 10.3.0.0/24}}
roles: {service: {voters: 3}}
nodes:
  fbservice[1-4]:
    role: service
    addresses:

      # The README speaks of lines 12 and 14.
      administration: "10.1.0.[1-4]"

      wam: "10.3.0.[1-4]"
vips:
  web: {network: administration, address: 10.1.0.2, vrid: 1, members: "@service"}
`
	_, err := Parse("cluster.yaml", []byte(source), nil)
	if err == nil {
		t.Fatal("no mistakes")
	}
	text := readme(t)
	for line := range strings.Lines(err.Error()) {
		_, message, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if !strings.Contains(text, message) {
			t.Errorf("the README does not show %q", message)
		}
	}
}
