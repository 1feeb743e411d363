package lb

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"holdfast/cluster"
	"holdfast/internal/kernel/ipvs"
)

func parse(t *testing.T, more string) (*cluster.File, error) {
	t.Helper()
	text, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return cluster.Parse("cluster.yaml", append(text, more...), map[string]cluster.SectionValidator{Section: ValidateSection})
}

func settings(t *testing.T, more, node string) Settings {
	t.Helper()
	file, err := parse(t, more)
	if err != nil {
		t.Fatal(err)
	}
	s, err := SettingsFrom(file, node)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The README's example works beside the cluster file that the guide shows.
func TestExampleOfTheREADME(t *testing.T) {
	text, err := os.ReadFile("README.md")
	site, err2 := os.ReadFile("../examples/scibian.yaml")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(text)
	if example == nil {
		t.Fatal("the README has no example")
	}
	file, err := cluster.Parse("README.md", append(site, example[1]...), map[string]cluster.SectionValidator{Section: ValidateSection, "vips": nil, "dns": nil})
	if err != nil {
		t.Fatal(err)
	}
	s, err := SettingsFrom(file, "fbfront1")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Services) != 2 || s.Sync.Addr.String() != "10.1.0.11" || s.Services[0].Persistence != 10*time.Minute {
		t.Errorf("read as %+v", s)
	}
}

func TestWhatIsNotSaidHasDefaults(t *testing.T) {
	s := settings(t, "lb: {services: {ssh: {vip: front, port: 22}}}\n", "front1")
	v := s.Services[0]
	if v.Scheduler != "wlc" || v.Protocol != ipvs.TCP || v.Quorum != 1 || !v.Director || s.Handover != time.Second || s.Sync.Addr.String() != "10.3.0.1" {
		t.Errorf("read as %+v of %+v", v, s)
	}
	if len(v.Servers) != 2 || v.Servers[1].Addr.String() != "10.3.0.2" || v.Servers[1].Check.TCP != "10.3.0.2:22" || v.Servers[1].Check.ID != "ssh front2" {
		t.Errorf("servers %+v", v.Servers)
	}
}

func TestANodeHearsOfWhatItServesOrDirects(t *testing.T) {
	const text = "lb: {services: {ssh: {vip: front, port: 22, servers: \"front[1-3]\"}, web: {vip: front, port: 80}}}\n"
	for node, want := range map[string][]bool{"front1": {true, true}, "front3": {false}, "cn1": {}} {
		s := settings(t, text, node)
		if len(s.Services) != len(want) {
			t.Errorf("%s hears of %+v", node, s.Services)
			continue
		}
		for i, director := range want {
			if s.Services[i].Director != director {
				t.Errorf("%s directs %s: %v", node, s.Services[i].Name, !director)
			}
		}
	}
}

func TestMistakesInTheSectionAreAllReported(t *testing.T) {
	const wrong = `lb:
  sync: {network: nowhere, id: 256}
  handover: 11s
  services:
    a: {vip: back, port: 22}
    b: {vip: front, port: 0, protocol: sctp, scheduler: dh, granularity: 33, quorum: 3, persistence: 1500ms}
    c: {vip: front, port: 80, weights: {front3: 1, front2: 0}, fallback: true, sorry: "fd00::1", lower: 2, upper: 1}
    d: {vip: front, port: 81, servers: "front1,cn1", quorum: 1, hysteresis: 1}
    e: {vip: front, port: 82, check: {tcp: true, every: 1ms}}
    f: {vip: front, port: 83}
    g: {vip: front, port: 83}
`
	_, err := parse(t, wrong)
	if err == nil {
		t.Fatal("no mistake was found")
	}
	for _, want := range []string{
		`lb.sync.network: there is no network "nowhere"`, "lb.sync.id: 256 is out of range: 1 to 255", "lb.handover: 11s is out of range: 0 to 10s",
		`lb.services.a.vip: there is no VIP "back"`, "lb.services.b.port: 0 is out of range: 1 to 65535",
		`lb.services.b.protocol: "sctp" is not known`, `lb.services.b.scheduler: "dh" is not known`,
		"lb.services.b.granularity: 33 is out of range: 0 to 32", "lb.services.b.persistence: 1.5s is no whole number of seconds",
		"lb.services.b.quorum: 3 with a hysteresis of 0 is never there", "lb.services.c.weights.front3: front3 is no server of it",
		"lb.services.c.weights.front2: 0 is out of range: 1 to 65535", "lb.services.c.fallback: wlc has none",
		"lb.services.c.sorry: fd00::1 is of another family", "lb.services.c.lower: 2 is more than upper, 1",
		"lb.services.d.servers: cn1 has no address", "lb.services.d.hysteresis: 1 is out of range: 0 to 0",
		"lb.services.e.check.every", "lb.services.g: tcp/10.3.0.100:83 is the service f already",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the errors lack %q", want)
		}
	}
	if strings.Count(err.Error(), "lb.services.e.check.every") != 1 {
		t.Error("a check's mistake is told for each server")
	}
	if t.Failed() {
		t.Log(err)
	}
}
