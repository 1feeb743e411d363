package archtest

import (
	"maps"
	"os"
	"path"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func TestTreeIsAsTheArchitectureSays(t *testing.T) {
	root := os.DirFS("../..")
	violations, err := Check(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range violations {
		t.Error(v)
	}
}

// tree is a source tree that breaks no rule, and what is added to it.
func tree(files map[string]string) fstest.MapFS {
	root := fstest.MapFS{}
	good := goodFiles()
	maps.Copy(good, files)
	if good["docs/ARCHITECTURE.md"] == "" {
		good["docs/ARCHITECTURE.md"] = layoutOf(good)
	}
	for name, text := range good {
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return root
}

func goodFiles() map[string]string {
	return map[string]string{
		"go.mod":                       "module holdfast\n\ngo 1.26\n",
		"Makefile":                     ".PHONY: test\nVAR := 1\ntest: deps ## all\n\t@true\n",
		"README.md":                    "Run `make test`, read [this](dns/README.md#metrics) and [that](https://go.dev).\n",
		"cmd/holdfast/main.go":         "package main\nimport (\"holdfast/dns\"; \"holdfast/vrrp\"; \"os\")\nfunc main() { os.Exit(1) }\n",
		"dns/service.go":               "package dns\nimport (\"holdfast/internal/state\"; \"holdfast/dns/zone\"; \"github.com/miekg/dns\")\n",
		"dns/config.go":                "package dns\nimport \"holdfast/cluster\"\n",
		"dns/README.md":                "# dns\n",
		"dns/DESIGN.md":                "# dns\n",
		"dns/zone/zone.go":             "package zone\n",
		"dns/dns_test.go":              "package dns\nimport (\"os/exec\"; \"holdfast/lab\")\n",
		"vrrp/vrrp.go":                 "package vrrp\nimport \"holdfast/internal/kernel/link\"\n",
		"internal/kernel/link/l.go":    "package link\nimport (\"golang.org/x/sys/unix\"; \"github.com/vishvananda/netlink\")\n",
		"internal/kernel/command/c.go": "package command\nimport \"os/exec\"\n",
		"lab/lab.go":                   "package lab\nimport (\"os/exec\"; \"golang.org/x/sys/unix\")\n",
		"dns/testdata/bad.go":          "package bad\nfunc init() {}\n",
		"dns/virtual_test.go": "package dns\nimport (\"testing\"; \"testing/synctest\"; \"time\")\n" +
			"func TestX(t *testing.T) { synctest.Test(t, func(t *testing.T) { time.Sleep(time.Hour); helper() }) }\n" +
			"func helper() { time.Sleep(time.Hour) }\n",
	}
}

// layoutOf is an architecture that has every folder.
func layoutOf(files map[string]string) string {
	var b strings.Builder
	b.WriteString("# It\n\n## Layout\n\n```\n")
	for name := range files {
		if strings.HasSuffix(name, ".go") && path.Dir(name) != "dns/testdata" {
			b.WriteString(path.Dir(name) + "   a line on it\n      and another\n")
		}
	}
	b.WriteString("```\n\n## Imports\n\n```\nno layout\n```\n")
	return b.String()
}

func TestGoodTreeHasNoViolation(t *testing.T) {
	got, err := Check(tree(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Violation(nil), got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestBadFileIsFound(t *testing.T) {
	long := "package dns\n" + strings.Repeat("//\n", maxLines)
	for _, c := range []struct {
		name, file, text string
		want             string // the one violation; its beginning
	}{
		{"a service imports another", "dns/x.go", "package dns\n\nimport \"holdfast/vrrp\"\n",
			"dns/x.go:3: imports holdfast/vrrp: services never import each other"},
		{"a part of a service imports another", "dns/zone/x.go", "package zone\nimport \"holdfast/vrrp\"\n",
			"dns/zone/x.go:2: imports holdfast/vrrp: services never import each other"},
		{"a service's test imports another", "dns/x_test.go", "package dns\nimport \"holdfast/vrrp\"\n",
			"dns/x_test.go:2: imports holdfast/vrrp: services never import each other"},
		{"what is shared imports a service", "internal/check/x.go", "package check\nimport \"holdfast/dns\"\n",
			"internal/check/x.go:2: imports holdfast/dns: what the services share"},
		{"cluster imports a service", "cluster/x.go", "package cluster\nimport \"holdfast/dns\"\n",
			"cluster/x.go:2: imports holdfast/dns: what the services share"},
		{"state imports ours", "internal/state/x.go", "package state\nimport \"holdfast/cluster\"\n",
			"internal/state/x.go:2: imports holdfast/cluster: the schema and the kernel's packages are leaves"},
		{"a kernel package imports another", "internal/kernel/ipvs/x.go", "package ipvs\nimport \"holdfast/internal/kernel/link\"\n",
			"internal/kernel/ipvs/x.go:2: imports holdfast/internal/kernel/link: the schema and the kernel's packages are leaves"},
		{"dns changes the kernel", "dns/x.go", "package dns\nimport \"holdfast/internal/kernel/link\"\n",
			"dns/x.go:2: imports holdfast/internal/kernel/link: only vrrp, lb"},
		{"cmd is imported", "dns/x.go", "package dns\nimport \"holdfast/cmd/holdfast\"\n",
			"dns/x.go:2: imports holdfast/cmd/holdfast: cmd is where things are wired"},
		{"the product imports the lab", "dns/x.go", "package dns\nimport \"holdfast/lab\"\n",
			"dns/x.go:2: imports holdfast/lab: the lab, the chaos tests"},
		{"netlink elsewhere", "vrrp/x.go", "package vrrp\nimport nl \"github.com/vishvananda/netlink/nl\"\n",
			"vrrp/x.go:2: imports github.com/vishvananda/netlink/nl: system calls and netlink"},
		{"x/sys elsewhere", "internal/run/x.go", "package run\nimport \"golang.org/x/sys/unix\"\n",
			"internal/run/x.go:2: imports golang.org/x/sys/unix: system calls and netlink"},
		{"exec elsewhere", "discovery/x.go", "package discovery\nimport \"os/exec\"\n",
			"discovery/x.go:2: imports os/exec: programs are run through"},
		{"raft elsewhere", "discovery/x.go", "package discovery\nimport \"github.com/hashicorp/raft\"\n",
			"discovery/x.go:2: imports github.com/hashicorp/raft: Raft and its log"},
		{"serf elsewhere", "raftstore/x.go", "package raftstore\nimport \"github.com/hashicorp/serf/serf\"\n",
			"raftstore/x.go:2: imports github.com/hashicorp/serf/serf: gossip is"},
		{"miekg/dns elsewhere", "api/x_test.go", "package api\nimport \"github.com/miekg/dns\"\n",
			"api/x_test.go:2: imports github.com/miekg/dns: DNS messages"},
		{"a long file", "dns/x.go", long, "dns/x.go: 501 lines: a file has at most 500"},
		{"init", "dns/x.go", "package dns\n\nfunc init() {}\n", "dns/x.go:3: func init: nothing happens at import"},
		{"os.Exit", "dns/x.go", "package dns\nimport \"os\"\nfunc f() { os.Exit(1) }\n",
			"dns/x.go:3: ends the process: a library returns an error"},
		{"log.Fatal by another name", "dns/x.go", "package dns\nimport l \"log\"\nvar f = func() { l.Fatalf(\"\") }\n",
			"dns/x.go:3: ends the process: a library returns an error"},
		{"a test sleeps", "dns/x_test.go", "package dns\nimport (\"testing\"; \"time\")\nfunc TestY(t *testing.T) {\n\ttime.Sleep(1)\n}\n",
			"dns/x_test.go:4: time.Sleep: a test polls"},
		{"a test sleeps outside of the bubble", "dns/x_test.go", "package dns\nimport (\"testing\"; \"testing/synctest\"; \"time\")\n" +
			"func TestY(t *testing.T) {\n\ttime.Sleep(1)\n\tsynctest.Test(t, nil)\n}\n",
			"dns/x_test.go:4: time.Sleep: a test polls"},
		{"a service without documents", "lb/service.go", "package lb\n", "lb: has service.go and no README.md"},
		{"a dead link", "lb/README.md", "# lb\n\nSee [why](DESIGN.md).\n", "lb/README.md:3: links to DESIGN.md: there is no such file"},
		{"a layout with a folder that is not there", "docs/ARCHITECTURE.md", strings.Replace(layoutOf(goodFiles()), "```\n", "```\nntpproxy  soon\n", 1),
			"docs/ARCHITECTURE.md:6: has ntpproxy in its layout: there is no such folder"},
		{"a layout that lacks a folder", "docs/ARCHITECTURE.md", strings.ReplaceAll(layoutOf(goodFiles()), "internal/kernel/command ", "      "),
			"docs/ARCHITECTURE.md: has no internal/kernel/command in its layout: say in a line"},
		{"a target that is none", "docs/x.md", "Run `make rain`.\n", "docs/x.md:1: says make rain: the Makefile has no such target"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Check(tree(map[string]string{c.file: c.text}))
			if err != nil {
				t.Fatal(err)
			}
			if len(got) == 0 {
				t.Fatal("nothing found")
			}
			if !strings.HasPrefix(got[0].String(), c.want) {
				t.Errorf("found %s\nwant  %s", got[0], c.want)
			}
			if extra := got[1:]; len(extra) > 0 && c.file != "lb/service.go" {
				t.Errorf("and more than the one that is there: %v", extra)
			}
		})
	}
}

func TestGeneratedFileMayBeLong(t *testing.T) {
	text := "// Code generated by x. DO NOT EDIT.\n\npackage dns\n" + strings.Repeat("//\n", maxLines)
	got, err := Check(tree(map[string]string{"dns/x.go": text}))
	if err != nil || len(got) > 0 {
		t.Errorf("found %v, %v", got, err)
	}
}

func TestFileThatDoesNotParseIsAnError(t *testing.T) {
	if _, err := Check(tree(map[string]string{"dns/x.go": "package"})); err == nil {
		t.Error("no error")
	}
}
