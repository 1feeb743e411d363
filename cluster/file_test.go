package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func loadExample(t *testing.T, name string) *File {
	t.Helper()
	f, err := Load(filepath.Join("..", "examples", name), permissive())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestReferenceClusterIsReadAsTheGuideDescribesIt(t *testing.T) {
	f := loadExample(t, "scibian.yaml")
	if f.Name != "foobar" || f.Domain != "hpc.example.com" || f.VirtualDomain != "virtual" || f.Schema != Schema {
		t.Errorf("%s %s %s %d", f.Name, f.Domain, f.VirtualDomain, f.Schema)
	}
	if main := f.Main(); main.Name != "administration" || main.Prefix.String() != "10.1.0.0/24" || main.Hostname != "{node}" {
		t.Errorf("main network %+v", main)
	}
	servers := f.Servers()
	if got := Fold(nodeNames(servers)); got != "fbservice[1-4]" || f.Voters() != 3 {
		t.Errorf("servers %s, %d voters", got, f.Voters())
	}
	n := f.Node("fbservice3")
	want := map[string]string{
		"administration": "10.1.0.3 fbservice3 aa:bb:cc:dd:ee:04", "management": "10.2.0.3 mgtfbservice3 ",
		"wan": "10.3.0.3 wanfbservice3 ", "lowlatency": "10.4.0.3 opafbservice3 ",
	}
	got := map[string]string{}
	for network, a := range n.Addresses {
		got[network] = fmt.Sprintf("%s %s %s", a, n.Hostnames[network], n.MAC[network])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if b := n.BMC; b.Address.String() != "10.2.0.103" || b.Hostname != "bmcfbservice3" || b.Credentials.File == "" {
		t.Errorf("BMC %+v", b)
	}
	v := f.VIP("dns3")
	if v.Address.String() != "10.1.0.103" || v.VRID != 163 || v.Hostname != "vipfbservice3" || v.Prefer != "fbservice3" ||
		Fold(v.Members) != "fbservice[1-4]" || v.Advertise != 2*time.Second || v.Version != 3 {
		t.Errorf("VIP %+v", v)
	}
	ports := map[string]uint16{"apt": 3142, "secret": 1216, "web-boot": 3138, "http-live": 3137, "logs": 20514, "tftp": 69, "ntp": 123}
	for _, svc := range f.ServicesOn("fbservice1") {
		if port, ok := ports[svc.Name]; ok && port != svc.Port {
			t.Errorf("%s on port %d, want %d", svc.Name, svc.Port, port)
		}
		delete(ports, svc.Name)
		if svc.Check.IsZero() {
			t.Errorf("%s has no check", svc.Name)
		}
	}
	if len(ports) != 0 {
		t.Errorf("missing on fbservice1: %v", ports)
	}
	if services := f.ServicesOn("fbcn01"); services != nil {
		t.Errorf("a compute node has services: %v", services)
	}
	if r := f.Role("compute"); r.Agent || f.Role("batch") == nil || !f.Role("batch").Agent || f.Role("x") != nil {
		t.Errorf("role %+v", r)
	}
}

func TestFileExpandsNodeSets(t *testing.T) {
	f := loadExample(t, "scibian.yaml")
	for set, want := range map[string]string{
		"@service!fbservice2":   "fbservice[1,3-4]",
		"@*&fbcn[01-02],@admin": "fbadmin1,fbcn[01-02]",
		"fbservice9":            `error: unknown node fbservice9; did you mean "fbservice1"?`,
		"@nobody":               "error: unknown role @nobody; known here: @admin, @service, @frontend, @batch, @compute",
	} {
		names, err := f.Expand(set)
		got := Fold(names)
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", set, got, want)
		}
	}
}

func TestNodeFindsItself(t *testing.T) {
	f := loadExample(t, "scibian.yaml")
	for _, hostname := range []string{"fbservice1", "FBservice1", "fbservice1.hpc.example.com", "fbservice1.HPC.example.com."} {
		if n, err := f.Self(hostname); err != nil || n.Name != "fbservice1" {
			t.Errorf("%s: %v, %v", hostname, n, err)
		}
	}
	for hostname, hint := range map[string]string{
		"fbservcie1":             `did you mean "fbservice1"?`,
		"debian":                 "--node",
		"":                       "--node",
		"fbservice1.example.org": "domain",
	} {
		if n, err := f.Self(hostname); err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("%s: %v, %v", hostname, n, err)
		}
	}
}

func TestExpandedTruthIsAClusterFileOfTheSameMeaning(t *testing.T) {
	good, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil || len(good) == 0 {
		t.Fatalf("no files: %v", err)
	}
	examples, _ := filepath.Glob("../examples/*.yaml")
	for _, path := range append(good, examples...) {
		f, err := Load(path, permissive())
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		checkRoundTrip(t, f)
	}
}

// checkRoundTrip writes the expanded truth and reads it back.
func checkRoundTrip(t *testing.T, f *File) {
	t.Helper()
	var b bytes.Buffer
	if err := f.WriteYAML(&b); err != nil {
		t.Fatal(err)
	}
	again, err := Parse("expanded", b.Bytes(), permissive())
	if err != nil {
		t.Fatalf("%s: the expanded file does not parse: %v\n%s", f.Path, err, b.String())
	}
	if change := Diff(f, again); !change.IsEmpty() {
		t.Fatalf("%s: the expanded file means something else: %+v\n%s", f.Path, change, b.String())
	}
	b.Reset()
	if err := f.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b.Bytes()) {
		t.Fatalf("%s: not JSON: %s", f.Path, b.String())
	}
}

func TestExpandedForms(t *testing.T) {
	f, err := Load("testdata/good/every-key.yaml", permissive())
	if err != nil {
		t.Fatal(err)
	}
	var asYAML, asJSON bytes.Buffer
	if err := f.WriteYAML(&asYAML); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/good/every-key.expanded.want", asYAML.String())
	if err := f.WriteJSON(&asJSON); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/good/every-key.json.want", asJSON.String())
}

func TestDiffSaysWhatChangedInWords(t *testing.T) {
	base := small + `services:
  apt: {on: "@service", port: 3142}
  rgw: {on: "fbservice[1-2]", port: 7480, check: {http: /, every: 10s}}
dns: {forward: {".": [192.0.2.53]}}
`
	replace := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(base) }
	tests := map[string]struct {
		source   string
		sections string
		details  []string
	}{
		"nothing but another way to write it": {
			source: "# comment\n" + replace("fbservice[1-3]: {role: service, addresses: {administration: \"10.1.0.[1-3]\"}}",
				"fbservice[1-2]: {role: service, addresses: {administration: \"10.1.0.[1-2]\"}}\n  fbservice3: {role: service, addresses: {administration: 10.1.0.3}}"),
		},
		"service": {
			source:   replace("port: 3142", "port: 3143", "every: 10s", "every: 5s", "fbservice[1-2]", "fbservice[2-3]"),
			sections: "services",
			details: []string{
				"services.apt.port: 3142 → 3143",
				"services.rgw.on: fbservice[1-2] → fbservice[2-3]",
				"services.rgw.check.every: 10s → 5s",
			},
		},
		"new nodes": {
			source:   base + "", // replaced below
			sections: "nodes",
			details:  []string{"nodes: fbx[1-3] added"},
		},
		"servers": {
			source:   replace("10.1.0.[1-3]", "10.1.0.[1-2,5]"),
			sections: "nodes servers",
			details:  []string{"nodes.fbservice3.addresses.administration: 10.1.0.3 → 10.1.0.5"},
		},
		"sections": {
			source:   replace("dns: {forward: {\".\": [192.0.2.53]}}", "api: {x: 1}", "cluster: foobar", "cluster: foobar\nvirtual_domain: v"),
			sections: "domain dns api",
			details:  []string{"virtual_domain: virtual → v", "dns: removed", "api: added"},
		},
	}
	more := tests["new nodes"]
	more.source = replace("nodes:\n", "nodes:\n  fbx[1-3]: {role: admin, addresses: {administration: \"10.1.0.[51-53]\"}}\n")
	tests["new nodes"] = more
	before := mustParse(t, base)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			change := Diff(before, mustParse(t, test.source))
			if got := strings.Join(change.Sections, " "); got != test.sections {
				t.Errorf("sections %q, want %q", got, test.sections)
			}
			if diff := cmp.Diff(test.details, change.Details); diff != "" {
				t.Error(diff)
			}
		})
	}
	if change := Diff(nil, before); !change.Has("nodes") || !change.Has("servers") {
		t.Errorf("from nothing: %+v", change)
	}
}

func TestSingleNodeNeedsNoFile(t *testing.T) {
	for host, want := range map[string]string{
		"laptop": "laptop", "Build_Host.example.com": "build-host", "": "localhost", "-x-": "x", "ünï": "n", "123": "123",
		strings.Repeat("a", 70): strings.Repeat("a", 63), "null": "null",
	} {
		for _, addr := range []string{"10.0.0.7", "fd00::7", "fe80::1%eth0", "0.0.0.0", "::ffff:10.0.0.7", "127.0.0.1"} {
			f := Single(host, netip.MustParseAddr(addr))
			if len(f.Servers()) != 1 || f.Servers()[0].Name != want || f.Voters() != 1 {
				t.Errorf("%s %s: servers %v", host, addr, f.Servers())
			}
			if a := f.Nodes[0].Addresses[f.Main().Name]; !f.Main().Prefix.Contains(a) {
				t.Errorf("%s: address %s", addr, a)
			}
			if n, err := f.Self(host); err != nil || n.Name != want {
				t.Errorf("%s is not found in its own cluster: %v, %v", host, n, err)
			}
		}
	}
	if f := Single("x", netip.Addr{}); f.Nodes[0].Addresses["main"].String() != "127.0.0.1" {
		t.Errorf("without an address: %v", f.Nodes[0])
	}
}
