package discovery

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
)

// sections says how the cluster file is read with our part of it.
func sections() map[string]cluster.SectionValidator {
	return map[string]cluster.SectionValidator{
		"services": func(f *cluster.File, _ cluster.Section) error { return ValidateServices(f) },
		"dns":      func(*cluster.File, cluster.Section) error { return nil },
	}
}

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheExampleOfTheREADMEWorks(t *testing.T) {
	example := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(readme(t))
	if example == nil {
		t.Fatal("README.md has no example")
	}
	file, err := cluster.Parse("README.md", []byte(example[1]), sections())
	if err != nil {
		t.Fatal(err)
	}
	for node, want := range map[string][]string{
		"fbservice1": {"service:apt", "service:backup", "service:front", "service:logs", "service:queue", "service:tftp"},
		"fbservice2": {"service:apt", "service:logs", "service:portal:1", "service:portal:2"},
	} {
		definitions, err := ServicesFrom(file, node)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := idle(t, withServices(newBed(t).config(1), definitions...))
		if diff := cmp.Diff(want, checkIDs(a)); diff != "" {
			t.Errorf("checks of %s (-want +got):\n%s", node, diff)
		}
	}
	definitions, _ := ServicesFrom(file, "fbservice3")
	for _, d := range definitions {
		if d.Service.Name == "apt" && d.Checks[0].HTTP != "http://10.1.0.3:3142/" {
			t.Errorf("apt on fbservice3 is probed at %s", d.Checks[0].HTTP)
		}
	}
}

func TestTheREADMENamesEveryMetricAndCondition(t *testing.T) {
	text := readme(t)
	registry := prometheus.NewRegistry()
	m := newMetrics(registry)
	m.syncRuns.WithLabelValues("ok")
	m.commands.WithLabelValues(bySync, "ok")
	m.joins.WithLabelValues("ok")
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.Contains(text, "`"+f.GetName()+"`") {
			t.Errorf("metric %s is missing", f.GetName())
		}
	}
	for _, c := range []string{conditionSkew, conditionAlone, conditionConflict, conditionSplit, conditionRegistrations} {
		if !strings.Contains(text, "`"+c+"`") {
			t.Errorf("condition %s is missing", c)
		}
	}
}

func TestTheExamplesHaveValidServices(t *testing.T) {
	paths, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, path := range paths {
		if _, err := cluster.Load(path, sections()); err != nil {
			t.Errorf("%v", err)
		}
	}
}

func TestAMistakeInACheckIsReportedOnceWithItsPlace(t *testing.T) {
	text := `schema: 1
cluster: foobar
domain: hpc.example.com
networks:
  main: {prefix: 10.1.0.0/24}
roles:
  service: {voters: 3, run: [dns]}
nodes:
  fbservice[1-3]: {role: service, addresses: {main: "10.1.0.[1-3]"}}
services:
  apt:  {on: "@service", port: 3142, check: {http: /, every: 1ms}}
  logs: {on: "@service", port: 20514, check: {tcp: true, rise: -1}}
  good: {on: "@service", port: 1, check: {tcp: true}}
`
	_, err := cluster.Parse("cluster.yaml", []byte(text), sections())
	want := "cluster.yaml:11:62: services.apt.check.every: 1ms is not within 100ms to 24h0m0s\n" +
		"cluster.yaml:12:64: services.logs.check.rise: -1 is not within 1 to 100"
	if err == nil || err.Error() != want {
		t.Errorf("error\n%v\nwant\n%s", err, want)
	}
	if _, err := ServicesFrom(cluster.Single("a", address1), "b"); err == nil {
		t.Error("an unknown node has services")
	}
}
