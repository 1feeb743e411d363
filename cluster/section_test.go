package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const small = `schema: 1
cluster: foobar
domain: hpc.example.com
networks:
  administration: {prefix: 10.1.0.0/24}
roles:
  service: {voters: 3, run: [dns]}
  admin: {}
nodes:
  fbservice[1-3]: {role: service, addresses: {administration: "10.1.0.[1-3]"}}
  fbadmin1: {role: admin, addresses: {administration: 10.1.0.9}}
`

func mustParse(t *testing.T, source string) *File {
	t.Helper()
	f, err := Parse("cluster.yaml", []byte(source), permissive())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

type inner struct {
	Name  string        `yaml:"name"`
	Every time.Duration `yaml:"every"`
}

type common struct {
	Rise int `yaml:"rise"`
}

type settings struct {
	common `yaml:",inline"`

	Text    string              `yaml:"text"`
	Flag    *bool               `yaml:"flag"`
	Small   int8                `yaml:"small"`
	Port    uint16              `yaml:"port"`
	Ratio   float64             `yaml:"ratio"`
	Every   time.Duration       `yaml:"every"`
	Addr    netip.Addr          `yaml:"addr"`
	Listen  []netip.AddrPort    `yaml:"listen"`
	Prefix  netip.Prefix        `yaml:"prefix"`
	Token   SecretRef           `yaml:"token"`
	On      Nodes               `yaml:"on"`
	Also    []string            `yaml:"also"`
	Script  []string            `yaml:"script"`
	Forward map[string][]string `yaml:"forward"`
	Records []inner             `yaml:"records"`
	Sub     *inner              `yaml:"sub"`
	Later   Section             `yaml:"later"`
	Any     any                 `yaml:"any"`
	Plain   int                 // no key
	Skipped int                 `yaml:"-"`
}

const fullSection = small + `dns:
  rise: 3
  text: hello
  flag: true
  small: -128
  port: 65535
  ratio: 1
  every: 1h30m
  addr: fd00::1
  listen: [10.1.0.1:53, "[fd00::1]:53"]
  prefix: 10.0.0.0/8
  token: {file: /etc/holdfast/secrets/token}
  on: ["@admin", "fbservice[2-3]"]
  also: "@service!fbservice1"
  script: [/usr/bin/check, "a[1-2]", -w]
  forward: {".": [192.0.2.53], example.com: "192.0.2.[1-2]"}
  records:
    - {name: a, every: 5s}
    - {name: b}
  sub: {name: c}
  later: {deep: [1, {x: y}]}
  any: {list: [1, 2.5, true, text, null]}
`

func TestDecodeReadsEveryKindOfValue(t *testing.T) {
	got := settings{Records: []inner{{Name: "default"}}, Sub: &inner{Every: time.Minute}, Skipped: 7}
	f := mustParse(t, fullSection)
	if err := f.Section("dns").Decode(&got); err != nil {
		t.Fatal(err)
	}
	yes := true
	want := settings{
		common: common{Rise: 3},
		Text:   "hello", Flag: &yes, Small: -128, Port: 65535, Ratio: 1, Every: 90 * time.Minute,
		Addr:    netip.MustParseAddr("fd00::1"),
		Listen:  []netip.AddrPort{netip.MustParseAddrPort("10.1.0.1:53"), netip.MustParseAddrPort("[fd00::1]:53")},
		Prefix:  netip.MustParsePrefix("10.0.0.0/8"),
		Token:   SecretRef{File: "/etc/holdfast/secrets/token"},
		On:      Nodes{"fbadmin1", "fbservice2", "fbservice3"},
		Also:    []string{"fbservice2", "fbservice3"},
		Script:  []string{"/usr/bin/check", "a[1-2]", "-w"},
		Forward: map[string][]string{".": {"192.0.2.53"}, "example.com": {"192.0.2.1", "192.0.2.2"}},
		Records: []inner{{"a", 5 * time.Second}, {"b", 0}},
		Sub:     &inner{"c", time.Minute},
		Later:   got.Later,
		Any:     map[string]any{"list": []any{int64(1), 2.5, true, "text", nil}},
		Skipped: 7,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(settings{}),
		cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
	if keys := got.Later.Keys(); len(keys) != 1 || keys[0] != "deep" || got.Later.Path() != "dns.later" {
		t.Errorf("the section left for later: %q at %s", keys, got.Later.Path())
	}
}

func TestDecodeNamesEveryMistake(t *testing.T) {
	f := mustParse(t, small+`dns:
  txt: hello
  text: 5
  flag: perhaps
  small: 128
  port: -1
  ratio: .inf
  every: 10
  addr: 10.1.0.1/24
  listen: [10.1.0.1, 10.1.0.1:0]
  prefix: 10.0.0.1/8
  token: {file: token}
  on: fbservice9
  also: "@servise"
  script: /usr/bin/check -w 5
  forward: [192.0.2.53]
  records: {name: a}
  sub: {nmae: c, every: soon}
`)
	var got settings
	err := f.Section("dns").Decode(&got)
	list, ok := errors.AsType[Errors](err)
	if !ok {
		t.Fatalf("error %v, want Errors", err)
	}
	var lines []string
	for _, e := range list {
		_, rest, _ := strings.Cut(e.Error(), "cluster.yaml:")
		lines = append(lines, rest)
	}
	golden(t, "testdata/decode.want", strings.Join(lines, "\n")+"\n")
}

func TestDecodeIntoWhatItCannotFillIsABug(t *testing.T) {
	f := mustParse(t, fullSection)
	if err := f.Section("dns").Decode(settings{}); err == nil {
		t.Error("decoding into no pointer is no error")
	}
	defer func() {
		if recover() == nil {
			t.Error("decoding into a channel does not panic")
		}
	}()
	var bad struct {
		Text chan int `yaml:"text"`
	}
	_ = f.Section("dns").Decode(&bad)
}

func TestSectionThatTheFileLacks(t *testing.T) {
	f := mustParse(t, small)
	s := f.Section("dns")
	got := inner{Name: "default"}
	if err := s.Decode(&got); err != nil || got.Name != "default" || !s.IsZero() {
		t.Errorf("%v, %v, zero %v", got, err, s.IsZero())
	}
	if err := s.Errorf("x", "is wrong"); err.Message != "x: is wrong" {
		t.Errorf("%q", err)
	}
	if s.List() != nil || s.Keys() != nil || !s.At("x").IsZero() {
		t.Error("the zero section has something in it")
	}
}

func TestErrorfStandsAtItsKey(t *testing.T) {
	f := mustParse(t, small+`dns:
  forward:
    ".": [192.0.2.53]
    hpc.example.org: [192.0.2.1, 192.0.2.2]
    hpc: {example.org: x}
  records:
    - {name: a}
    - {name: b}
`)
	tests := []struct{ key, want string }{
		{"", "13:3: dns: wrong"},
		{"forward", "14:5: dns.forward: wrong"},
		{`forward["."]`, `14:10: dns.forward["."]: wrong`},
		{"forward.hpc.example.org[1]", `15:34: dns.forward["hpc.example.org"][1]: wrong`},
		{`forward.hpc["example.org"]`, `16:24: dns.forward.hpc["example.org"]: wrong`},
		{"records[1].name", "19:14: dns.records[1].name: wrong"},
		{"records[2].name", "18:5: dns.records[2].name: wrong"},
		{"nothing", "13:3: dns.nothing: wrong"},
	}
	for _, test := range tests {
		if got := f.Section("dns").Errorf(test.key, "wrong").Error(); got != "cluster.yaml:"+test.want {
			t.Errorf("%s: %s, want %s", test.key, got, test.want)
		}
	}
}

func TestValidatorsErrorsAreMergedInTheOrderOfTheFile(t *testing.T) {
	source := "zzz: 1\n" + small + `services:
  apt: {on: "@service", port: 3142, check: {http: /, evry: 10s}}
dns: {ttl: 5}
api: {x: 1}
`
	validators := map[string]SectionValidator{
		"services": func(f *File, s Section) error {
			return f.Services[0].Check.Errorf("evry", "no check key")
		},
		"dns": func(f *File, s Section) error {
			return errors.Join(s.Errorf("ttl", "one"), fmt.Errorf("wrapped: %w", s.Errorf("", "two")), errors.New("three"))
		},
		"api":  func(f *File, s Section) error { return nil },
		"raft": func(f *File, s Section) error { t.Error("called for a section that the file lacks"); return nil },
	}
	_, err := Parse("c", []byte(source), validators)
	want := strings.Join([]string{
		"c:1:1: zzz: unknown key; known here: schema, cluster, domain, virtual_domain, naming, roles, networks, nodes, vip_defaults, vips, services, api, dns, raft",
		"c:14:60: services.apt.check.evry: no check key",
		"c:15:1: dns: three",
		"c:15:7: dns: two",
		"c:15:12: dns.ttl: one",
	}, "\n")
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Error(diff)
	}
}

func TestValidatorsMaySeeAFileWithMistakesInIt(t *testing.T) {
	called := false
	_, err := Parse("c", []byte("schema: 1\ndns: {on: \"@service\"}\n"), map[string]SectionValidator{
		"dns": func(f *File, s Section) error {
			called = true
			var got settings
			_ = f.Main().Prefix
			return s.Decode(&got)
		},
	})
	if !called || err == nil {
		t.Fatalf("called %v, error %v", called, err)
	}
	if strings.Contains(err.Error(), "unknown role") {
		t.Errorf("a role that could not be read is called unknown: %v", err)
	}
}

func TestSectionsThatSayTheSameAreEqual(t *testing.T) {
	a := mustParse(t, small+"dns: {a: [1, 2], b: {c: d}}\n").Section("dns")
	b := mustParse(t, small+"\n\ndns:\n  b:\n    c: d\n  a:\n    - 1\n    - 2\n").Section("dns")
	c := mustParse(t, small+"dns: {a: [2, 1], b: {c: d}}\n").Section("dns")
	if !a.Equal(b) || a.Equal(c) || a.Equal(Section{}) || !(Section{}).Equal(Section{}) {
		t.Errorf("%v %v %v", a.Equal(b), a.Equal(c), a.Equal(Section{}))
	}
}

func TestListOfSections(t *testing.T) {
	f := mustParse(t, small+`services:
  one: {on: fbadmin1, port: 1, check: {tcp: true}}
  two: {on: fbadmin1, port: 2, check: [{tcp: true}, {http: /}]}
`)
	if n := len(f.Services[0].Check.List()); n != 1 {
		t.Errorf("%d checks, want 1", n)
	}
	checks := f.Services[1].Check.List()
	if len(checks) != 2 || checks[1].Path() != "services.two.check[1]" {
		t.Errorf("%d checks", len(checks))
	}
}

func TestAddressesAndNetworksOfASection(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.0.1": "10.1.0.1:53", "10.1.0.1:5353": "10.1.0.1:5353", "2001:db8::1": "[2001:db8::1]:53",
		"[2001:db8::1]:99": "[2001:db8::1]:99", "::ffff:10.1.0.1": "10.1.0.1:53",
		"10.1.0.1:0": "", "10.1.0": "", "name:53": "", "": "",
	} {
		got, err := ParseAddrPort(text, 53)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v, want %q", text, got, err, want)
		}
	}
	list, mistakes := Section{}.AddrPorts("listen", []string{"10.1.0.1", "x", "10.1.0.1:53", "10.1.0.2"}, 53)
	if len(list) != 2 || len(mistakes) != 2 {
		t.Errorf("%v, %v", list, mistakes)
	}
	networks, mistakes := Section{}.Prefixes("allow", []string{"10.1.0.0/24", "10.1.0.1/24", "fd00::/8"})
	if len(networks) != 2 || len(mistakes) != 1 {
		t.Errorf("%v, %v", networks, mistakes)
	}
}
