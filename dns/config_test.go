package dns

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/cluster"
)

func TestMistakesOfTheSectionAreAllNamedWithTheirPlace(t *testing.T) {
	text, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	section := `dns:
  listen: [10.1.0.1, "10.1.0.1:53", nowhere, "10.1.0.2:0"]
  ttl: 1500ms
  negative_ttl: 2h
  zone_ttl: -1s
  forward_timeout: 50ms
  cache: {megabytes: -1, max_ttl: 0s, stale: 1000h}
  rate_limit: -1
  query_log: -1
  zones: [hpc.example.com, lab.example.com, lab.example.com, "a..b"]
  records:
    - "www"
    - "www A 10.1.0"
    - "www SOA a b 1 2 3 4 5"
    - "* A 10.1.0.1"
    - "n[1-3] A 10.1.0.[1-2]"
    - "www 900000 A 10.1.0.1"
    - "www A 10.1.0.1 ; a comment"
  transfer:
    allow: [10.1.0.0/8, nobody]
    notify: [10.1.0.50, "10.1.0.51 nokey"]
    keys:
      short: {algorithm: hmac-md5, secret: {file: /etc/key}}
      none: {}
  services:
    a.b: {ttl: 1s}
    apt: {ttl: 1ms, negative_ttl: 2h}
    NTP: {never_empty: true}
    ntp: {never_empty: true}
  allow_recursion: [10.1.0.1/24, 10.1.0.0/24, all]
  forward:
    ".": []
    example..org: [192.0.2.53]
    example.com: [192.0.2.53, "192.0.2.53:53", 0.0.0.0, 224.0.0.1, example.net]
    EXAMPLE.net.: [192.0.2.53]
    example.net: [192.0.2.53]
    virtual: [10.1.0.3, 10.1.0.101, 127.0.0.1, "127.0.0.1:8600", "10.1.0.3:5353", 10.1.0.31]
`
	_, err = cluster.Parse("cluster.yaml", append(text, section...), map[string]cluster.SectionValidator{Section: ValidateSection})
	if err == nil {
		t.Fatal("accepted")
	}
	want, readErr := os.ReadFile("testdata/bad-section.golden")
	if readErr != nil && !*update {
		t.Fatal(readErr)
	}
	got := err.Error() + "\n"
	if *update {
		if err := os.WriteFile("testdata/bad-section.golden", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUnknownKeyIsRefused(t *testing.T) {
	text, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = cluster.Parse("cluster.yaml", append(text, "dns: {forwards: {}}\n"...), map[string]cluster.SectionValidator{Section: ValidateSection})
	if err == nil || !strings.Contains(err.Error(), "forward") {
		t.Errorf("%v", err)
	}
}

func TestDefaultsOfTheSection(t *testing.T) {
	file := testCluster(t, "")
	got, err := decode(file, file.Section(Section))
	if err != nil {
		t.Fatal(err)
	}
	want := settings{
		zoneTTL: 5 * time.Minute, onlyPassing: true, forwardTimeout: 2 * time.Second,
		forward: map[name][]netip.AddrPort{}, rules: map[string]serviceSection{},
		transfer: transferSettings{keys: map[string]tsigKey{}}, rateLimit: 100, cache: cacheSettings{bytes: 32 << 20, maxTTL: 24 * time.Hour, stale: 72 * time.Hour},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(settings{}, cacheSettings{}, transferSettings{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestExampleOfTheREADME parses the section that the README shows, and finds
// every key that can be read in it.
func TestExampleOfTheREADME(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("README.md has no example")
	}
	file := testCluster(t, example)
	if _, err := newCompiler(file, must(decode(file, file.Section(Section))), "fbservice1"); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"listen", "ttl", "negative_ttl", "zone_ttl", "only_passing", "never_empty", "own_first", "services", "forward", "forward_timeout", "cache", "rate_limit", "records", "zones", "transfer", "allow_recursion", "query_log"} {
		if !strings.Contains(example, "\n  "+key+":") {
			t.Errorf("the example lacks %s", key)
		}
	}
}

func must(s settings, err error) settings {
	if err != nil {
		panic(err)
	}
	return s
}

func TestExamplesOfTheRepositoryAreServed(t *testing.T) {
	text, err := os.ReadFile("../examples/scibian.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := parseFile(t, string(text))
	if _, err := newCompiler(file, must(decode(file, file.Section(Section))), "fbservice1"); err != nil {
		t.Error(err)
	}
}
