package ntpproxy

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/cluster"
)

func TestMistakesInTheSectionAreAllReported(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(text), "ntp:\n")
	const wrong = `ntp:
  listen: [10.1.0.1, "10.1.0.1:123", nowhere]
  allow: [192.0.2.1/24]
  deny: [all]
  limit: {interval: 0s, burst: 0}
  stratum: 16
  agree: 0s
  keep: never
  sources: ["ntp1.example.org", "a b", "ntp2:0"]
  agreeing: 4
  step: 0s
  slew: 101ms
  growth: 1s
  orphan: 15
  hold: ["a b"]
  leap: {mode: never, shape: square, list: list, insert: 2026-12-30}
  poll: {min: -5, max: 18}
`
	_, err = cluster.Parse("cluster.yaml", []byte(head+wrong), map[string]cluster.SectionValidator{Section: ValidateSection})
	if err == nil {
		t.Fatal("no mistake was found")
	}
	for _, want := range []string{
		"ntp.listen[1]: 10.1.0.1:123 stands here twice", `ntp.listen[2]: "nowhere" is no address`,
		`ntp.allow[0]: "192.0.2.1/24" is no network`, `ntp.deny[0]: "all" is no network`,
		"ntp.limit.interval: 0s is out of range: 1ms to 1h0m0s", "ntp.limit.burst: 0 is out of range: 1 to 1000",
		"ntp.stratum: 16 is out of range: 2 to 15", "ntp.agree: 0s is out of range: 100µs to 10s",
		`ntp.keep: "never" is none of auto, serve, discipline`, `ntp.sources[1]: "a b" is no HOST or HOST:PORT`, `ntp.sources[2]: "ntp2:0" is no HOST`,
		"ntp.agreeing: 4 is out of range: 1 to the number of sources, 3", "ntp.step: 0s is out of range",
		"ntp.slew: 101ms is out of range: 500µs to 100ms, each second",
		"ntp.growth: 1s is out of range: 1ns to 500µs", "ntp.orphan: 15 is out of range: 5 to 13", `ntp.hold[0]: "a b" is no service's name`,
		`ntp.leap.mode: "never" is none of kernel, smear, upstream`, `ntp.leap.shape: "square" is none of linear, cosine`,
		`ntp.leap.list: "list" is no absolute path`, `ntp.leap.insert: "2026-12-30" is not the last day of a month`,
		"ntp.poll.min: -5 is out of range: -4 to 17", "ntp.poll.max: 18 is out of range: poll.min, -5, to 17",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the errors lack %q:\n%v", want, err)
		}
	}
}

func TestFileWithoutTheSectionServesTheClusterAlone(t *testing.T) {
	text, _ := os.ReadFile(filepath.Join("testdata", "cluster.yaml"))
	head, _, _ := strings.Cut(string(text), "ntp:\n")
	file := parseFile(t, head)
	set, err := decode(file, file.Section(Section))
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]class{"10.1.0.200": member, "127.0.0.1": member, "::1": member, "192.0.2.1": denied, "2001:db8:1::7": member} {
		if got := set.access.class(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is %v, want %v", addr, got, want)
		}
	}
	if set.limit.Burst < 8 || set.stratum != defaultStratum {
		t.Errorf("burst %d does not let an iburst through; stratum %d", set.limit.Burst, set.stratum)
	}
}

// The README's example is what an admin copies.
func TestExampleInTheREADMEIsValid(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(readme), "```yaml\n")
	example, _, _ := strings.Cut(after, "```")
	text, _ := os.ReadFile(filepath.Join("testdata", "cluster.yaml"))
	head, _, _ := strings.Cut(string(text), "ntp:\n")
	file := parseFile(t, head+example)
	keys := file.Section(Section).Keys()
	slices.Sort(keys)
	if diff := cmp.Diff([]string{"agree", "agreeing", "allow", "deny", "growth", "hold", "keep", "leap", "limit", "listen", "orphan", "poll", "slew", "sources", "step", "stratum"}, keys); diff != "" {
		t.Errorf("keys of the example (-want +got):\n%s", diff)
	}
}
