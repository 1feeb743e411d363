package api

import (
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"holdfast/internal/state"
)

// rack is web on a node with metadata in node and service.
func rack(name, address, number string, tags ...string) state.Register {
	r := web(name, address, state.Passing, tags...)
	r.Node.Meta = map[string]string{"rack": number}
	r.Services[0].Meta = map[string]string{"version": "v" + number}
	return r
}

func TestConsulClientFilters(t *testing.T) {
	c := newCell(t)
	c.apply(rack("n1", "10.1.0.1", "1", "ssd"), rack("n2", "10.1.0.2", "2"), web("n3", "10.1.0.3", state.Critical, "ssd"))
	client := c.consul()
	for expression, want := range map[string]string{
		`Node.Meta.rack == "1"`:                             "n1",
		`"ssd" in Service.Tags`:                             "n1 n3",
		`Service.Meta.version != "v2" and Service.Port==80`: "n1 n3",
		`not (Node.Node == n1)`:                             "n2 n3",
		`Service.Tags is empty`:                             "n2",
		`Node.Address matches "^10\\.1\\.0\\.[12]$"`:        "n1 n2",
		`any Checks as k { k.Status == "critical" }`:        "n3",
	} {
		var got []string
		found, _, err := client.Health().Service("web", "", false, &consul.QueryOptions{Filter: expression})
		for _, i := range found {
			got = append(got, i.Node.Node)
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("health, %s: %v, %v, want %s", expression, got, err, want)
		}
	}
	by := func(expression string) *consul.QueryOptions { return &consul.QueryOptions{Filter: expression} }
	nodes, _, err := client.Catalog().Nodes(by(`Meta.rack == "2"`))
	if err != nil || len(nodes) != 1 || nodes[0].Node != "n2" {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
	services, _, err := client.Catalog().Service("web", "", by(`NodeMeta.rack == "2"`))
	if err != nil || len(services) != 1 || services[0].Node != "n2" {
		t.Errorf("catalog service: %+v, %v", services, err)
	}
	names, _, err := client.Catalog().Services(by(`ServiceMeta.version == "v1"`))
	if err != nil || len(names) != 1 || !slices.Equal(names["web"], []string{"ssd"}) {
		t.Errorf("catalog services: %+v, %v", names, err)
	}
	if names, _, err := client.Catalog().Services(by(`ServiceName == other`)); err != nil || len(names) != 0 {
		t.Errorf("catalog services: %+v, %v", names, err)
	}
	checks, _, err := client.Health().State("any", by(`CheckID == "serfHealth" and Node != n1`))
	if err != nil || len(checks) != 2 {
		t.Errorf("checks: %+v, %v", checks, err)
	}
	if _, err := client.Agent().ServicesWithFilter(`Service == web`); err != nil {
		t.Errorf("agent services: %v", err)
	}
}

// A filtered query waits, too, and a change of what it does not show is none
// of its business only as far as Consul goes: the index is the list's.
func TestAFilteredQueryWakesWhenItsListChanges(t *testing.T) {
	c := newCell(t)
	c.apply(rack("n1", "10.1.0.1", "1"))
	got := make(chan int, 1)
	go func() {
		names, _, err := c.consul().Catalog().Services(&consul.QueryOptions{Filter: `NodeMeta.rack == "2"`, WaitIndex: 1, WaitTime: time.Minute})
		if err != nil {
			t.Error(err)
		}
		got <- len(names)
	}()
	c.apply(rack("n2", "10.1.0.2", "2"))
	select {
	case n := <-got:
		if n != 1 {
			t.Errorf("%d names", n)
		}
	case <-time.After(patience):
		t.Fatal("the query was not woken")
	}
}

func TestFiltersThatAreWrongAreRefused(t *testing.T) {
	c := newCell(t)
	c.apply(rack("n1", "10.1.0.1", "1"))
	for name, test := range map[string]struct{ path, filter, want string }{
		"syntax":           {"/v1/health/service/web", `Node.Node ==`, "Failed to create boolean expression evaluator"},
		"unknown field":    {"/v1/health/service/web", `Node.Nothing == "x"`, "Invalid filter"},
		"elsewhere":        {"/v1/kv/a", `Key == "a"`, "not offered here"},
		"too long":         {"/v1/catalog/nodes", `Node == "` + strings.Repeat("x", maxFilter) + `"`, "at most 2048"},
		"deep parentheses": {"/v1/catalog/nodes", strings.Repeat("(", 900) + "Node == x" + strings.Repeat(")", 900), "Failed to create"},
	} {
		began := processorTime(t)
		code, _, text := c.get(test.path + "?filter=" + url.QueryEscape(test.filter))
		if code != 400 || !strings.Contains(text, test.want) {
			t.Errorf("%s: %d %q, want 400 %q", name, code, text, test.want)
		}
		if took := processorTime(t) - began; took > 2*time.Second {
			t.Errorf("%s: took %s of a processor", name, took)
		}
	}
	// A key that a map does not have is no error: nodes differ.
	if code, _, text := c.get("/v1/catalog/nodes?filter=" + url.QueryEscape(`Meta.room == "a"`)); code != 200 || text != "[]" {
		t.Errorf("metadata that nobody has: %d %q", code, text)
	}
}

// processorTime is what this process has used so far: a parser that runs away
// uses it up, and a machine that is busy with other things does not.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func FuzzFilter(f *testing.F) {
	f.Add(`Node.Meta.rack == "1" and not ("ssd" in Service.Tags)`)
	f.Add(`((((a`)
	f.Fuzz(func(t *testing.T, expression string) {
		began := processorTime(t)
		made, err := parseFilter(expression, "/v1/health/service/")
		if err == nil && made != nil {
			made.keep(instanceJSON{})
		}
		if took := processorTime(t) - began; took > 5*time.Second {
			t.Errorf("took %s of a processor", took)
		}
	})
}
