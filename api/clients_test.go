package api

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
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
		case <-time.After(patience):
			t.Fatalf("%s: not woken", name)
		}
		c.blocked(0)
	}
}

// targets are what Prometheus knows of a service at a time.
type targets struct {
	Source  string
	Labels  map[string]string
	Targets []map[string]string
}

// TestPrometheusFindsItsTargets runs Prometheus's own discovery, from the Go
// module proxy: Debian builds its Prometheus without it. It is a module of its
// own, so that nothing of it comes near the product.
func TestPrometheusFindsItsTargets(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a part of Prometheus")
	}
	binary := filepath.Join(t.TempDir(), "promsd")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".")
	build.Dir = "testdata/promsd"
	if out, err := build.CombinedOutput(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("build Prometheus's discovery: %v\n%s", err, out)
		}
		t.Skipf("build Prometheus's discovery: %v\n%s", err, out)
	}
	c := withAgent(t)
	c.apply(web("n1", "10.1.0.1", state.Passing, "metrics"), web("n2", "10.1.0.2", state.Passing, "metrics"))
	command := exec.CommandContext(t.Context(), binary, strings.TrimPrefix(c.url, "http://"), "metrics")
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	updates := make(chan targets, 100)
	go func() {
		defer close(updates)
		for lines := json.NewDecoder(out); ; {
			var found targets
			if lines.Decode(&found) != nil {
				return
			}
			updates <- found
		}
	}()
	t.Cleanup(func() {
		_ = command.Process.Kill()
		for range updates {
		}
		_ = command.Wait()
	})
	// until waits for targets that satisfy a condition; each as "address health".
	until := func(what string, done func(addresses []string) bool) {
		t.Helper()
		limit := time.After(2 * patience)
		for {
			select {
			case found, ok := <-updates:
				if !ok {
					t.Fatalf("Prometheus's discovery ended before %s", what)
				}
				var addresses []string
				for _, target := range found.Targets {
					addresses = append(addresses, target["__address__"]+" "+target["__meta_consul_health"])
				}
				slices.Sort(addresses)
				if found.Labels["__meta_consul_service"] == "web" && done(addresses) {
					return
				}
			case <-limit:
				t.Fatalf("Prometheus did not see %s", what)
			}
		}
	}
	until("both instances", func(a []string) bool {
		return slices.Equal(a, []string{"10.1.0.1:80 passing", "10.1.0.2:80 passing"})
	})
	c.apply(web("n3", "10.1.0.3", state.Passing, "metrics"))
	until("a new instance", func(a []string) bool { return slices.Contains(a, "10.1.0.3:80 passing") })
	c.apply(web("n1", "10.1.0.1", state.Critical, "metrics"))
	until("one that fails", func(a []string) bool { return slices.Contains(a, "10.1.0.1:80 critical") })
	c.apply(state.Deregister{Node: "n2"})
	until("one that went", func(a []string) bool { return len(a) == 2 && !slices.Contains(a, "10.1.0.2:80 passing") })
}
