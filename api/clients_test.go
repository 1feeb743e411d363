package api

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/internal/state"
)

// debianPython is the interpreter that sees Debian's modules.
const debianPython = "/usr/bin/python3"

// python runs a script of testdata that ends with OK, against a cell.
func python(t *testing.T, c *cell, script string, args ...string) {
	t.Helper()
	if probe := exec.Command(debianPython, "-c", "import consul, patroni.dcs.consul"); probe.Run() != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("python3-consul and patroni are not installed: hack/deps")
		}
		t.Skip("python3-consul and patroni are not installed: hack/deps")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, debianPython, append([]string{"testdata/" + script, strings.TrimPrefix(c.url, "http://")}, args...)...)
	var said strings.Builder
	command.Stderr = &said
	out, err := command.Output()
	if err != nil || strings.TrimSpace(string(out)) != "OK" {
		t.Errorf("%s: %v\n%s%s", script, err, out, said.String())
	}
}

func TestPatroniElectsAndKeepsItsLeader(t *testing.T) {
	python(t, withAgent(t), "patroni_node.py")
}

func TestDebiansPythonConsulWorks(t *testing.T) {
	python(t, withAgent(t), "pyconsul.py", "n1")
}

// What Prometheus, Traefik and consul-template ask, with the parameters they
// give. (Debian builds its Prometheus without the discovery of Consul.)
func TestRequestsOfPrometheusTraefikAndConsulTemplateFollowChanges(t *testing.T) {
	c := withAgent(t)
	c.apply(state.KV{Verb: state.Set, Entry: state.Entry{Key: "app/name", Value: []byte("one")}})
	for name, pattern := range map[string]struct {
		path   string
		change state.Command
		want   string
	}{
		"prometheus's services":      {"/v1/catalog/services?node-meta=room:a&stale=", web("n3", "10.1.0.3", state.Passing, "metrics"), "metrics"},
		"prometheus's instances":     {"/v1/health/service/web?tag=metrics&node-meta=room:a&stale=", web("n4", "10.1.0.4", state.Passing, "metrics"), "10.1.0.4"},
		"traefik's services":         {"/v1/catalog/services?stale=&passing=", rack("n5", "10.1.0.5", "1", "traefik.enable=true"), "traefik.enable=true"},
		"traefik's instances":        {"/v1/health/service/web?passing=1&stale=", web("n6", "10.1.0.6", state.Passing), "10.1.0.6"},
		"consul-template's key":      {"/v1/kv/app/name?stale=", state.KV{Verb: state.Set, Entry: state.Entry{Key: "app/name", Value: []byte("two")}}, "dHdv"},
		"consul-template's tree":     {"/v1/kv/app/?recurse=&stale=", state.KV{Verb: state.Set, Entry: state.Entry{Key: "app/port", Value: []byte("80")}}, "app/port"},
		"consul-template's instance": {"/v1/health/service/web?stale=&near=_agent", web("n7", "10.1.0.7", state.Passing), "10.1.0.7"},
		"consul-template's nodes":    {"/v1/catalog/nodes?stale=", web("n8", "10.1.0.8", state.Passing), "n8"},
		"consul-template's node":     {"/v1/catalog/node/n9?stale=", web("n9", "10.1.0.9", state.Passing), "10.1.0.9"},
	} {
		_, header, _ := c.get(pattern.path)
		index := header.Get("X-Consul-Index")
		answer := make(chan string, 1)
		go func() {
			_, _, text := c.get(pattern.path + "&wait=60000ms&index=" + index)
			answer <- text
		}()
		c.blocked(1)
		c.apply(pattern.change)
		select {
		case text := <-answer:
			if !strings.Contains(text, pattern.want) {
				t.Errorf("%s: woken with %s, without %s", name, text, pattern.want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: not woken", name)
		}
		c.blocked(0)
	}
}
