package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
	"github.com/hashicorp/go-hclog"

	"holdfast/internal/state"
)

// traefikRound is one refresh of Traefik's catalog provider: the services, and
// of each that is enabled the catalog's instances and the health's, of which it
// takes those at the same place for the same.
func traefikRound(client *consul.Client, opts *consul.QueryOptions) (found []string, err error) {
	const enabled = "traefik.enable=true"
	services, _, err := client.Catalog().Services(opts)
	if err != nil {
		return nil, err
	}
	for _, name := range sortedKeys(services) {
		if !slices.Contains(services[name], enabled) {
			continue
		}
		instances, _, err := client.Catalog().Service(name, enabled, opts)
		if err != nil {
			return nil, err
		}
		healthy, _, err := client.Health().Service(name, enabled, false, opts)
		if err != nil {
			return nil, err
		}
		if len(instances) != len(healthy) {
			return nil, fmt.Errorf("%s: %d instances in the catalog, %d with health", name, len(instances), len(healthy))
		}
		for i, one := range instances {
			if with := healthy[i]; one.ServiceID != with.Service.ID || one.Node != with.Node.Node {
				return nil, fmt.Errorf("%s: at place %d %s of %s would get the health of %s of %s", name, i, one.ServiceID, one.Node, with.Service.ID, with.Node.Node)
			}
			found = append(found, fmt.Sprintf("%s %s:%d %s", one.ServiceID, one.Address, one.ServicePort, healthy[i].Checks.AggregatedStatus()))
		}
	}
	return found, nil
}

func TestTraefikTakesTheHealthOfTheRightInstance(t *testing.T) {
	c := withAgent(t)
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Alive), member("n2", "10.1.0.2", state.Alive), member("n10", "10.1.0.10", state.Alive)})
	for i, name := range []string{"n10", "n2", "n1"} { // not in their order
		r := state.Register{Node: node(name, "10.1.0."+name[1:]), Checks: []state.Check{{ID: state.SerfHealth, Status: state.Passing}}}
		for _, id := range []string{"web-b", "web-a", "web-10", "web-2"} {
			status := state.Passing
			if (i+len(id))%2 == 0 {
				status = state.Critical
			}
			r.Services = append(r.Services, state.Service{ID: id, Name: "web", Port: uint16(80 + i), Tags: []string{"traefik.enable=true"}})
			r.Checks = append(r.Checks, state.Check{ID: "c-" + id, Status: status, ServiceID: id})
		}
		r.Services = append(r.Services, state.Service{ID: "plain", Name: "web", Port: 99})
		c.apply(r)
	}
	rounds := func(dead string) {
		t.Helper()
		for mode, opts := range map[string]*consul.QueryOptions{
			"as it is set": {}, "stale": {AllowStale: true}, "cached": {UseCache: true, AllowStale: true}, "consistent": {RequireConsistent: true},
		} {
			found, err := traefikRound(c.consul(), opts)
			if err != nil || len(found) != 12 {
				t.Errorf("%s: %d instances: %v", mode, len(found), err)
			}
			for _, one := range found {
				if dead != "" && strings.Contains(one, dead) && !strings.HasSuffix(one, "critical") {
					t.Errorf("%s: of a dead node: %s", mode, one)
				}
			}
			if down := slices.ContainsFunc(found, func(s string) bool { return strings.HasSuffix(s, "critical") }); !down {
				t.Errorf("%s: none is critical: %v", mode, found)
			}
		}
	}
	rounds("")
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Alive), member("n2", "10.1.0.2", state.Failed), member("n10", "10.1.0.10", state.Alive)})
	rounds("10.1.0.2:")
}

// Traefik with `watch: true` runs these plans of Consul's own module, and asks
// everything again when one of them fires.
func TestConsulsWatchPlansFireAtChangesAndOverAnIndexThatGoesBack(t *testing.T) {
	c := withAgent(t)
	c.apply(web("n1", "10.1.0.1", state.Passing), web("n2", "10.1.0.2", state.Passing), web("n3", "10.1.0.3", state.Passing))
	var saved strings.Builder
	if _, err := c.store.Snapshot().WriteTo(&saved); err != nil {
		t.Fatal(err)
	}
	fired := map[string]chan any{}
	for _, kind := range []string{"services", "checks", "nodes"} {
		plan, err := watch.Parse(map[string]any{"type": kind})
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan any, 100)
		fired[kind] = results
		plan.Handler = func(_ uint64, result any) { results <- result }
		ended := make(chan error, 1)
		go func() {
			ended <- plan.RunWithClientAndHclog(c.consul(), hclog.New(&hclog.LoggerOptions{Output: io.Discard}))
		}()
		t.Cleanup(func() {
			plan.Stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	fires := func(kind, what string, ok func(any) bool) {
		t.Helper()
		limit := time.After(patience)
		for {
			select {
			case result := <-fired[kind]:
				if ok(result) {
					return
				}
			case <-limit:
				t.Fatalf("%s: not told of %s", kind, what)
			}
		}
	}
	tagged := func(tag string) func(any) bool {
		return func(r any) bool { return slices.Contains(r.(map[string][]string)["web"], tag) }
	}
	critical := func(node string) func(any) bool {
		return func(r any) bool {
			return slices.ContainsFunc(r.([]*consul.HealthCheck), func(h *consul.HealthCheck) bool { return h.Node == node && h.Status == "critical" })
		}
	}
	has := func(node string, there bool) func(any) bool {
		return func(r any) bool {
			return there == slices.ContainsFunc(r.([]*consul.Node), func(n *consul.Node) bool { return n.Node == node })
		}
	}
	fires("services", "the start", func(r any) bool { return r.(map[string][]string)["web"] != nil })
	fires("nodes", "the start", has("n3", true))
	c.apply(web("n1", "10.1.0.1", state.Passing, "traefik.enable=true"))
	fires("services", "a tag", tagged("traefik.enable=true"))
	c.apply(state.UpdateCheck{Node: "n1", Updates: []state.CheckState{{ID: "service:web", Status: state.Critical}}})
	fires("checks", "a check that fails", critical("n1"))

	// The gossip's index is large; the catalog's, when it has caught up, smaller.
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Alive), member("n2", "10.1.0.2", state.Failed)})
	fires("checks", "a node that died", critical("n2"))
	c.apply(state.UpdateCheck{Node: "n2", Updates: []state.CheckState{{ID: state.SerfHealth, Status: state.Critical, Output: "left"}}})
	c.apply(web("n4", "10.1.0.4", state.Critical))
	fires("checks", "a check after the catalog caught up", critical("n4"))
	fires("nodes", "a node", has("n4", true))

	if err := c.store.Restore(strings.NewReader(saved.String())); err != nil {
		t.Fatal(err)
	}
	fires("nodes", "a restored store", has("n4", false))
	c.apply(web("n5", "10.1.0.5", state.Passing))
	fires("nodes", "a change after the restore", has("n5", true))
}

// view asks as a view of consul-template does: stale while the answer is not
// older than two seconds, from anew when the index goes back, and it renders
// only when the data differ.
type view struct {
	fetch    func(*consul.QueryOptions) (any, *consul.QueryMeta, error)
	rendered chan any

	mu    sync.Mutex
	asked []string // "stale" or "leader", by request
}

const viewMaxStale = 2 * time.Second

func (v *view) run(ctx context.Context) error {
	var last uint64
	var data any
	staleAllowed := true
	for ctx.Err() == nil {
		v.mu.Lock()
		v.asked = append(v.asked, map[bool]string{true: "stale", false: "leader"}[staleAllowed])
		v.mu.Unlock()
		opts := &consul.QueryOptions{AllowStale: staleAllowed, WaitIndex: last, WaitTime: time.Minute}
		got, meta, err := v.fetch(opts.WithContext(ctx))
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if staleAllowed && meta.LastContact > viewMaxStale {
			staleAllowed = false
			continue
		}
		staleAllowed = true
		switch {
		case meta.LastIndex == last:
			continue
		case meta.LastIndex < last:
			last = 0
			continue
		}
		last = meta.LastIndex
		if data != nil && reflect.DeepEqual(got, data) {
			continue
		}
		data = got
		v.rendered <- got
	}
	return nil
}

func (v *view) requests() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.asked)
}

// start runs a view until the test ends.
func (v *view) start(t *testing.T) {
	v.rendered = make(chan any, 100)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func (v *view) renders(t *testing.T, what string, want any) {
	t.Helper()
	select {
	case got := <-v.rendered:
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s: rendered %v, want %v", what, got, want)
		}
	case <-time.After(patience):
		t.Fatalf("%s: nothing is rendered", what)
	}
}

func TestConsulTemplateRendersEachChangeOnceAndDoesNotSpin(t *testing.T) {
	c := withAgent(t)
	c.apply(web("n1", "10.1.0.1", state.Passing), web("n2", "10.1.0.2", state.Passing),
		state.KV{Verb: state.Set, Entry: state.Entry{Key: "app/name", Value: []byte("one")}})
	var saved strings.Builder
	if _, err := c.store.Snapshot().WriteTo(&saved); err != nil {
		t.Fatal(err)
	}
	c.store.Touch(time.Now().Add(time.Hour)) // a leader speaks with this replica for as long as the test lasts
	client := c.consul()
	services := &view{fetch: func(o *consul.QueryOptions) (any, *consul.QueryMeta, error) {
		entries, meta, err := client.Health().Service("web", "", true, o)
		addresses := []string{}
		for _, e := range entries {
			addresses = append(addresses, e.Node.Address)
		}
		slices.Sort(addresses)
		return addresses, meta, err
	}}
	key := &view{fetch: func(o *consul.QueryOptions) (any, *consul.QueryMeta, error) {
		pair, meta, err := client.KV().Get("app/name", o)
		if pair == nil {
			return "none", meta, err
		}
		return string(pair.Value), meta, err
	}}
	services.start(t)
	key.start(t)
	services.renders(t, "the start", []string{"10.1.0.1", "10.1.0.2"})
	key.renders(t, "the start", "one")
	c.blocked(2)
	c.apply(web("n3", "10.1.0.3", state.Passing))
	services.renders(t, "a new instance", []string{"10.1.0.1", "10.1.0.2", "10.1.0.3"})
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Failed), member("n2", "10.1.0.2", state.Alive), member("n3", "10.1.0.3", state.Alive)})
	services.renders(t, "a node that died", []string{"10.1.0.2", "10.1.0.3"})
	c.apply(state.UpdateCheck{Node: "n1", Updates: []state.CheckState{{ID: state.SerfHealth, Status: state.Critical, Output: "left"}}})
	c.blocked(2)
	c.apply(state.Deregister{Node: "n2"}) // while the index has gone back
	services.renders(t, "a change after the catalog caught up", []string{"10.1.0.3"})
	c.apply(state.KV{Verb: state.Delete, Entry: state.Entry{Key: "app/name"}})
	key.renders(t, "a key that went", "none")
	c.blocked(2)
	c.store.SetMembers(nil)
	if err := c.store.Restore(strings.NewReader(saved.String())); err != nil {
		t.Fatal(err)
	}
	services.renders(t, "a restored store", []string{"10.1.0.1", "10.1.0.2"})
	key.renders(t, "a restored store", "one")
	c.blocked(2)
	// A change takes one request, one over an index that goes back two more.
	for name, asked := range map[string][]string{"services": services.requests(), "key": key.requests()} {
		if len(asked) > 20 || slices.Contains(asked, "leader") {
			t.Errorf("the view of %s asked %d times: %v", name, len(asked), asked)
		}
	}
}

// A replica that lost its leader long ago is stale to consul-template, which
// then asks for a read by the leader.
func TestConsulTemplateTurnsToTheLeaderWhenTheReplicaIsOld(t *testing.T) {
	c := withAgent(t)
	c.apply(web("n1", "10.1.0.1", state.Passing))
	eventually(t, "the replica is old", func() bool {
		age, _ := c.store.Snapshot().Age(time.Now())
		return age > viewMaxStale
	})
	v := &view{fetch: func(o *consul.QueryOptions) (any, *consul.QueryMeta, error) {
		entries, meta, err := c.consul().Health().Service("web", "", true, o)
		return len(entries), meta, err
	}}
	v.start(t)
	v.renders(t, "the start", 1)
	if asked := v.requests(); len(asked) < 2 || asked[0] != "stale" || asked[1] != "leader" {
		t.Errorf("asked %v", asked)
	}
	c.raft.set(func(r *fakeRaft) {
		if r.barriers == 0 {
			t.Error("the leader was not asked")
		}
	})
}

// What EDF's consult takes apart: the leader is HOST:PORT of a node of the
// list, each node has its serfHealth, and no output is null.
func TestConsultShowsTheLeaderAndEachNodesChecks(t *testing.T) {
	c := withAgent(t)
	c.apply(web("n1", "10.1.0.1", state.Passing), web("n2", "10.1.0.2", state.Critical))
	get := func(path string, to any) {
		t.Helper()
		if code, _, text := c.get(path); code != 200 || json.Unmarshal([]byte(text), to) != nil {
			t.Fatalf("%s: %d %s", path, code, text)
		}
	}
	var leader string
	get("/v1/status/leader", &leader)
	var nodes []struct{ Node, Address string }
	get("/v1/catalog/nodes", &nodes)
	leads := 0
	for _, n := range nodes {
		if host, _, _ := strings.Cut(leader, ":"); host == n.Address {
			leads++
		}
		var checks []struct {
			CheckID, Status string
			Output          *string
		}
		get("/v1/health/node/"+n.Node, &checks)
		own := 0
		for _, one := range checks {
			if one.CheckID == state.SerfHealth {
				own++
			}
			if one.Output == nil || one.Status == "" {
				t.Errorf("%s: %+v", n.Node, one)
			}
		}
		if own != 1 || len(checks) != 2 {
			t.Errorf("%s has %d checks, %d of its own", n.Node, len(checks), own)
		}
	}
	if len(nodes) != 2 || leads != 1 {
		t.Errorf("leader %s, nodes %+v", leader, nodes)
	}
}
