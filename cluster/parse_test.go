package cluster

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// permissive takes every section as it is.
func permissive() map[string]SectionValidator {
	return map[string]SectionValidator{"dns": nil, "api": nil, "raft": nil}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update rewrites it):\n%s", path, diff)
	}
}

func TestMistakesAreNamedWithTheirPlaceAndTheirRemedy(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(filepath.Base(path), data, permissive())
			list, ok := errors.AsType[Errors](err)
			if !ok {
				t.Fatalf("error %v, want Errors", err)
			}
			for i := 1; i < len(list); i++ {
				a, b := list[i-1], list[i]
				if a.Line > b.Line || a.Line == b.Line && a.Column > b.Column {
					t.Errorf("not in the order of the file: %v before %v", a, b)
				}
			}
			golden(t, strings.TrimSuffix(path, "yaml")+"want", err.Error()+"\n")
		})
	}
}

// A validator sees what was read of a file with mistakes. It must not find
// the same mistakes again under another name.
func TestValidatorsSeeNoGapsWhereMistakesWereNoted(t *testing.T) {
	const source = `schema: 1
cluster: small
domain: small.example.com
networks:
  lan: {prefix: 192.0.2.0/24}
roles:
  service: {voters: 1}
nodes:
  node[1-2]: {role: service, addresses: {lan: "192.0.2.[11-13]"}}
  node3: {role: service}
services:
  web: {on: "@service", port: http, check: {tcp: true}}
  apt: {on: node3}
`
	called := false
	_, err := Parse("c", []byte(source), map[string]SectionValidator{"services": func(f *File, _ Section) error {
		called = true
		for _, svc := range f.Services {
			for _, name := range svc.On {
				if addr := f.Node(name).Addresses[f.Main().Name]; !addr.IsValid() || svc.Port == 0 {
					t.Errorf("%s on %s: address %s, port %d", svc.Name, name, addr, svc.Port)
				}
			}
		}
		return nil
	}})
	if list, _ := errors.AsType[Errors](err); !called || len(list) != 4 {
		t.Errorf("called: %v; mistakes, want four:\n%v", called, err)
	}
}
