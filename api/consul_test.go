package api

import (
	"bytes"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	consul "github.com/hashicorp/consul/api"

	"holdfast/internal/check"
	"holdfast/internal/state"
)

// Every test of this file drives the server with Consul's own client.

func TestConsulClientReadsTheCatalog(t *testing.T) {
	c := newCell(t)
	c.apply(web("n1", "10.1.0.1", state.Passing, "blue", "fast"), web("n2", "10.1.0.2", state.Critical, "blue"))
	catalog := c.consul().Catalog()

	nodes, meta, err := catalog.Nodes(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &consul.Node{
		ID: "id-n1", Node: "n1", Address: "10.1.0.1", Datacenter: "foobar", Meta: map[string]string{"room": "a"},
		TaggedAddresses: map[string]string{"lan": "10.1.0.1", "wan": "10.1.0.1", "lan_ipv4": "10.1.0.1"},
		CreateIndex:     1, ModifyIndex: 1,
	}
	if len(nodes) != 2 || !cmp.Equal(nodes[0], want) {
		t.Errorf("nodes: %s", cmp.Diff(want, nodes[0]))
	}
	if meta.LastIndex != 2 || !meta.KnownLeader || meta.LastContact > time.Minute {
		t.Errorf("meta %+v", meta)
	}
	if nodes, _, err = catalog.Nodes(&consul.QueryOptions{NodeMeta: map[string]string{"room": "b"}}); err != nil || len(nodes) != 0 {
		t.Errorf("nodes of another room: %v, %v", nodes, err)
	}

	names, _, err := catalog.Services(nil)
	if diff := cmp.Diff(map[string][]string{"web": {"blue", "fast"}}, names); diff != "" || err != nil {
		t.Errorf("services: %v %s", err, diff)
	}
	names, _, err = catalog.Services(&consul.QueryOptions{NodeMeta: map[string]string{"room": "b"}})
	if err != nil || len(names) != 0 {
		t.Errorf("services of another room: %v, %v", names, err)
	}

	found, _, err := catalog.ServiceMultipleTags("WEB", []string{"Blue", "fast"}, nil)
	if err != nil || len(found) != 1 || found[0].Node != "n1" || found[0].ServicePort != 80 || found[0].ServiceID != "web" {
		t.Errorf("instances: %+v, %v", found, err)
	}
	one, _, err := catalog.Node("n2", nil)
	if err != nil || one.Node.Address != "10.1.0.2" || one.Services["web"].Port != 80 {
		t.Errorf("node: %+v, %v", one, err)
	}
	if one, _, err = catalog.Node("n9", nil); err != nil || one != nil {
		t.Errorf("a node that is not there: %+v, %v", one, err)
	}
	flat, _, err := catalog.NodeServiceList("n1", nil)
	if err != nil || len(flat.Services) != 1 || flat.Services[0].Weights.Passing != 1 {
		t.Errorf("node services: %+v, %v", flat, err)
	}
	if flat, _, err = catalog.NodeServiceList("n9", nil); err != nil || flat.Node != nil || len(flat.Services) != 0 {
		t.Errorf("services of a node that is not there: %+v, %v", flat, err)
	}
	if all, err := catalog.Datacenters(); err != nil || !slices.Equal(all, []string{"foobar"}) {
		t.Errorf("datacenters: %v, %v", all, err)
	}
}

func TestConsulClientRegistersANodeFromOutside(t *testing.T) {
	c := newCell(t)
	catalog := c.consul().Catalog()
	registration := &consul.CatalogRegistration{
		Node: "nas", Address: "10.1.0.200", NodeMeta: map[string]string{"external": "yes"},
		Service: &consul.AgentService{ID: "nfs1", Service: "nfs", Port: 2049, Tags: []string{"home"}},
		Check:   &consul.AgentCheck{CheckID: "nfs-up", Name: "answers", Status: "passing", ServiceID: "nfs1"},
	}
	if _, err := catalog.Register(registration, nil); err != nil {
		t.Fatal(err)
	}
	entries, _, err := c.consul().Health().Service("nfs", "home", true, nil)
	if err != nil || len(entries) != 1 || entries[0].Checks[0].CheckID != "nfs-up" || entries[0].Node.Meta["external"] != "yes" {
		t.Fatalf("instances: %+v, %v", entries, err)
	}
	// Another service, without repeating the node.
	second := &consul.CatalogRegistration{Node: "nas", SkipNodeUpdate: true, Service: &consul.AgentService{Service: "smb", Port: 445}}
	if _, err := catalog.Register(second, nil); err != nil {
		t.Fatal(err)
	}
	if node, _, _ := catalog.Node("nas", nil); node.Node.Meta["external"] != "yes" || len(node.Services) != 2 {
		t.Errorf("the node was changed: %+v", node)
	}
	for _, step := range []struct {
		dereg *consul.CatalogDeregistration
		left  int
	}{
		{&consul.CatalogDeregistration{Node: "nas", CheckID: "nfs-up"}, 2},
		{&consul.CatalogDeregistration{Node: "nas", ServiceID: "nfs1"}, 1},
	} {
		if _, err := catalog.Deregister(step.dereg, nil); err != nil {
			t.Fatal(err)
		}
		if node, _, _ := catalog.Node("nas", nil); len(node.Services) != step.left {
			t.Errorf("after %+v: %+v", step.dereg, node.Services)
		}
	}
	if _, err := catalog.Deregister(&consul.CatalogDeregistration{Node: "nas"}, nil); err != nil {
		t.Fatal(err)
	}
	if node, _, _ := catalog.Node("nas", nil); node != nil {
		t.Errorf("the node is still there: %+v", node)
	}
}

func TestConsulClientReadsHealth(t *testing.T) {
	c := newCell(t)
	c.apply(web("n1", "10.1.0.1", state.Passing, "blue"), web("n2", "10.1.0.2", state.Warning), web("n3", "10.1.0.3", state.Critical))
	api := c.consul().Health()

	all, _, err := api.Service("web", "", false, nil)
	if err != nil || len(all) != 3 {
		t.Fatalf("all: %d, %v", len(all), err)
	}
	if got := all[0]; got.Checks.AggregatedStatus() != "passing" || len(got.Checks) != 2 || got.Service.Address != "" || got.Node.Address != "10.1.0.1" {
		t.Errorf("first instance: %+v", got)
	}
	passing, meta, err := api.Service("web", "", true, nil)
	if err != nil || len(passing) != 1 || passing[0].Node.Node != "n1" || meta.LastIndex != 3 {
		t.Errorf("passing: %+v, %+v, %v", passing, meta, err)
	}
	if tagged, _, _ := api.ServiceMultipleTags("web", []string{"blue"}, false, nil); len(tagged) != 1 {
		t.Errorf("tagged: %+v", tagged)
	}
	checks, _, err := api.Node("n3", nil)
	if err != nil || len(checks) != 2 || checks[1].Status != "critical" || checks[1].ServiceName != "web" || checks[1].Type != "http" {
		t.Errorf("node: %+v, %v", checks, err)
	}
	if checks, _, err = api.Node("n9", nil); err != nil || checks == nil || len(checks) != 0 {
		t.Errorf("a node that is not there: %+v, %v", checks, err)
	}
	if checks, _, err = api.Checks("web", nil); err != nil || len(checks) != 3 {
		t.Errorf("checks: %+v, %v", checks, err)
	}
	for name, want := range map[string]int{"any": 6, "passing": 4, "warning": 1, "critical": 1} {
		checks, _, err := api.State(name, nil)
		if err != nil || len(checks) != want {
			t.Errorf("state %s: %d checks, want %d: %v", name, len(checks), want, err)
		}
	}
}

func TestConsulClientKeepsServicesOfThisNode(t *testing.T) {
	c := newCell(t)
	agent := c.consul().Agent()
	err := agent.ServiceRegister(&consul.AgentServiceRegistration{
		ID: "apt/1", Name: "apt", Port: 3142, Tags: []string{"cache"}, Address: "10.1.0.1", Meta: map[string]string{"v": "1"},
		Weights: &consul.AgentWeights{Passing: 5, Warning: 1},
		Checks: consul.AgentServiceChecks{
			{
				HTTP: "https://127.0.0.1:3142/", Method: "HEAD", Header: map[string][]string{"X-A": {"b"}}, Interval: "10s", Timeout: "500ms",
				TLSServerName: "apt", TLSSkipVerify: true, SuccessBeforePassing: 2, FailuresBeforeCritical: 3, Status: "passing", Notes: "n",
			},
			{CheckID: "apt-ttl", Name: "reports", TTL: "30s", DeregisterCriticalServiceAfter: "90m"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []check.Definition{
		{
			ID: "service:apt/1:1", Name: "Service 'apt' check", Notes: "n", ServiceID: "apt/1", HTTP: "https://127.0.0.1:3142/", Method: "HEAD",
			Header: map[string][]string{"X-A": {"b"}}, TLS: check.TLS{ServerName: "apt", SkipVerify: true},
			Interval: 10 * time.Second, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3, Initial: state.Passing,
		},
		{ID: "apt-ttl", Name: "reports", ServiceID: "apt/1", TTL: 30 * time.Second, Initial: state.Critical, DeregisterAfter: 90 * time.Minute},
	}
	if diff := cmp.Diff(want, c.agent.made); diff != "" {
		t.Errorf("checks: %s", diff)
	}
	wantService := state.Service{
		ID: "apt/1", Name: "apt", Port: 3142, Tags: []string{"cache"}, Address: netip.MustParseAddr("10.1.0.1"),
		Meta: map[string]string{"v": "1"}, Weights: state.Weights{Passing: 5, Warning: 1},
	}
	if diff := cmp.Diff([]state.Service{wantService}, c.agent.services, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("service: %s", diff)
	}

	services, err := agent.Services()
	if err != nil || services["apt/1"].Service != "apt" || services["apt/1"].Datacenter != "foobar" || services["apt/1"].Weights.Passing != 5 {
		t.Errorf("services: %+v, %v", services, err)
	}
	one, meta, err := agent.Service("apt/1", nil)
	if err != nil || one.ContentHash == "" || one.ContentHash != meta.LastContentHash {
		t.Errorf("service: %+v, %+v, %v", one, meta, err)
	}
	for _, report := range [][2]string{{"pass", "passing"}, {"warn", "warning"}, {"fail", "critical"}} {
		step, want := report[0], report[1]
		if err := agent.UpdateTTL("apt-ttl", "said "+step, step); err != nil {
			t.Fatal(err)
		}
		checks, err := agent.Checks()
		if err != nil || checks["apt-ttl"].Status != want || checks["apt-ttl"].Output != "said "+step || checks["apt-ttl"].Node != "n1" {
			t.Errorf("after %s: %+v, %v", step, checks["apt-ttl"], err)
		}
	}
	status, info, err := agent.AgentHealthServiceByID("apt/1")
	if err != nil || status != "critical" || info.AggregatedStatus != "critical" || len(info.Checks) != 2 {
		t.Errorf("health by ID: %s, %+v, %v", status, info, err)
	}
	if err := agent.WarnTTL("apt-ttl", "slow"); err != nil {
		t.Fatal(err)
	}
	if status, list, err := agent.AgentHealthServiceByName("apt"); err != nil || status != "warning" || len(list) != 1 {
		t.Errorf("health by name: %s, %+v, %v", status, list, err)
	}
	if err := agent.PassTTL("apt-ttl", ""); err != nil {
		t.Fatal(err)
	}
	if status, _, err := agent.AgentHealthServiceByName("apt"); err != nil || status != "passing" {
		t.Errorf("health by name: %s, %v", status, err)
	}
	if status, info, err := agent.AgentHealthServiceByID("no"); err != nil || status != "critical" || info != nil {
		t.Errorf("health of a service that is not there: %s, %+v, %v", status, info, err)
	}

	if err := agent.ServiceDeregister("apt/1"); err != nil {
		t.Fatal(err)
	}
	err = agent.ServiceDeregister("apt/1")
	if err == nil || !strings.Contains(err.Error(), `404 (Unknown service ID "apt/1"`) {
		t.Errorf("deregistering twice: %v", err)
	}
}

func TestConsulClientKeepsChecksOfThisNode(t *testing.T) {
	c := newCell(t)
	agent := c.consul().Agent()
	err := agent.CheckRegister(&consul.AgentCheckRegistration{
		ID: "disk", Name: "disk space", Notes: "of /var", AgentServiceCheck: consul.AgentServiceCheck{TTL: "1m"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.FailTTL("disk", "full"); err != nil {
		t.Fatal(err)
	}
	checks, err := agent.Checks()
	if err != nil || checks["disk"].Status != "critical" || checks["disk"].Output != "full" || checks["disk"].Notes != "of /var" {
		t.Errorf("checks: %+v, %v", checks["disk"], err)
	}
	if err := agent.CheckDeregister("disk"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"deregister": agent.CheckDeregister("disk"), "update": agent.UpdateTTL("disk", "", "pass"),
	} {
		if err == nil || !strings.Contains(err.Error(), `404 (Unknown check ID "disk"`) {
			t.Errorf("%s a check that is gone: %v", what, err)
		}
	}
	err = agent.CheckRegister(&consul.AgentCheckRegistration{
		Name: "orphan", ServiceID: "no", AgentServiceCheck: consul.AgentServiceCheck{TCP: "127.0.0.1:1", Interval: "1s"},
	})
	if err == nil || !strings.Contains(err.Error(), `400 (Invalid check: ServiceID "no" does not exist`) {
		t.Errorf("a check of no service: %v", err)
	}
	err = agent.CheckRegister(&consul.AgentCheckRegistration{
		Name: "tcp", AgentServiceCheck: consul.AgentServiceCheck{TCP: "127.0.0.1:1", Interval: "1s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.UpdateTTL("tcp", "", "pass"); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("a report on a check that is probed: %v", err)
	}
}

func TestConsulClientKnowsTheAgentAndItsMembers(t *testing.T) {
	c := newCell(t)
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Alive), member("n2", "10.1.0.2", state.Failed)})
	agent := c.consul().Agent()
	if name, err := agent.NodeName(); err != nil || name != "n1" {
		t.Errorf("node name %q, %v", name, err)
	}
	self, err := agent.Self()
	if err != nil || self["Config"]["Datacenter"] != "foobar" || self["Member"]["Name"] != "n1" {
		t.Errorf("self: %+v, %v", self, err)
	}
	members, err := agent.Members(false)
	if err != nil || len(members) != 2 {
		t.Fatalf("members: %+v, %v", members, err)
	}
	if m := members[1]; m.Status != 4 || m.Addr != "10.1.0.2" || m.Port != 8301 || !m.IsConsulServer() || m.Tags["build"] != "1.2.3" {
		t.Errorf("member: %+v", m)
	}
	if members, err := agent.Members(true); err != nil || len(members) != 0 {
		t.Errorf("WAN members: %+v, %v", members, err)
	}
	metrics, err := agent.Metrics()
	if err != nil || len(metrics.Counters) == 0 || !strings.HasPrefix(metrics.Counters[0].Name, "holdfast_") {
		t.Errorf("metrics: %+v, %v", metrics, err)
	}
	if code, _, text := c.get("/v1/agent/metrics?format=prometheus"); code != 200 || !strings.Contains(text, "\nholdfast_api_requests_total{") {
		t.Errorf("metrics for Prometheus: %d %.200s", code, text)
	}
}

func TestConsulClientOperatesOverTheAdminSocket(t *testing.T) {
	c := newCell(t)
	agent, operator := c.admin().Agent(), c.admin().Operator()
	steps := map[string]error{
		"join":           agent.Join("10.1.0.2:8301", false),
		"force-leave":    agent.ForceLeave("n2"),
		"leave":          agent.Leave(),
		"reload":         agent.Reload(),
		"remove by ID":   operator.RaftRemovePeerByID("id-n2", nil),
		"remove by addr": operator.RaftRemovePeerByAddress("10.1.0.1:8300", nil),
	}
	for what, err := range steps {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !slices.Equal(c.agent.joined, []string{"10.1.0.2:8301"}) || !slices.Equal(c.agent.forced, []string{"n2"}) || c.agent.left != 1 {
		t.Errorf("the agent was told %+v", c.agent)
	}
	slices.Sort(c.raft.removed)
	if !slices.Equal(c.raft.removed, []string{"id-n1", "id-n2"}) || c.file.sum != "bbbb" {
		t.Errorf("removed %v, config %s", c.raft.removed, c.file.sum)
	}
	if err := agent.Join("10.9.9.9", false); err == nil {
		t.Error("joining nobody is no error")
	}
	if answer, err := operator.RaftLeaderTransfer("id-n2", nil); err != nil || !answer.Success || !slices.Equal(c.raft.transferred, []string{"id-n2"}) {
		t.Errorf("transfer: %+v, %v", answer, err)
	}
	config, err := operator.RaftGetConfiguration(nil)
	want := []*consul.RaftServer{
		{ID: "id-n1", Node: "n1", Address: "10.1.0.1:8300", Leader: true, Voter: true, ProtocolVersion: "3", LastIndex: 42},
		{ID: "id-n2", Node: "(unknown)", Address: "10.1.0.2:8300", ProtocolVersion: "3"},
	}
	if diff := cmp.Diff(want, config.Servers); diff != "" || err != nil {
		t.Errorf("configuration: %v %s", err, diff)
	}
	if leader, err := c.admin().Status().Leader(); err != nil || leader != "10.1.0.1:8300" {
		t.Errorf("leader %q, %v", leader, err)
	}
	if peers, err := c.admin().Status().Peers(); err != nil || !slices.Equal(peers, []string{"10.1.0.1:8300", "10.1.0.2:8300"}) {
		t.Errorf("peers %v, %v", peers, err)
	}
}

func TestConsulClientSavesAndRestoresASnapshot(t *testing.T) {
	c := newCell(t)
	c.apply(state.KV{Verb: state.Set, Entry: state.Entry{Key: "a", Value: []byte("then")}})
	saved, _, err := c.admin().Snapshot().Save(nil)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(saved)
	saved.Close()
	if err != nil {
		t.Fatal(err)
	}
	c.apply(state.KV{Verb: state.Set, Entry: state.Entry{Key: "a", Value: []byte("now")}})
	if err := c.admin().Snapshot().Restore(nil, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if pair, _, err := c.consul().KV().Get("a", nil); err != nil || string(pair.Value) != "then" {
		t.Errorf("after the restore: %+v, %v", pair, err)
	}
	if err := c.admin().Snapshot().Restore(nil, bytes.NewReader(data[:len(data)/2])); err == nil {
		t.Error("half a snapshot was taken")
	}
}
