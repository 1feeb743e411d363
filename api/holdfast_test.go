package api

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

func (c *cell) client() *Client {
	c.t.Helper()
	client, err := NewClient(ClientConfig{Socket: c.socket})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	return client
}

func TestStatusTellsTheWholeStory(t *testing.T) {
	c := newCell(t)
	c.apply(state.SetCluster{Cluster: state.Cluster{ID: "uuid", Name: "foobar"}}, web("n1", "10.1.0.1", state.Passing, "blue"), web("n2", "10.1.0.2", state.Passing))
	n1, n2 := member("n1", "10.1.0.1", state.Alive), member("n2", "10.1.0.2", state.Alive)
	c.store.SetMembers([]state.Member{n1, n2})
	seen := func(node string, exact bool) func() bool {
		return func() bool {
			since, is := c.server.watch.memberSince(node)
			return !since.IsZero() && is == exact
		}
	}
	eventually(t, "the members are seen", seen("n2", true))
	c.apply(state.UpdateCheck{Node: "n1", Updates: []state.CheckState{{ID: "service:web", Status: state.Critical, Output: "connection refused"}}})
	eventually(t, "the failing check is seen", func() bool {
		c.server.watch.mu.Lock()
		defer c.server.watch.mu.Unlock()
		return c.server.watch.checks["n1"]["service:web"].value == state.Critical
	})
	n2.ConfigSum = "bbbb"
	c.store.SetMembers([]state.Member{n1, n2})

	got, err := c.client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := Status{
		Cluster: "foobar", ClusterID: "uuid", Node: "n1", Version: "1.2.3",
		Leader:  &LeaderStatus{Name: "n1", Address: "10.1.0.1:8300"},
		Replica: ReplicaStatus{Index: 4, Confirmed: true},
		Raft:    c.raft.Status().Servers,
		Members: []MemberStatus{
			{Name: "n1", Address: "10.1.0.1", Liveness: state.Alive, Server: true, Version: "1.2.3", ConfigSum: "aaaa"},
			{Name: "n2", Address: "10.1.0.2", Liveness: state.Alive, Server: true, Version: "1.2.3", ConfigSum: "bbbb"},
		},
		Services: []ServiceStatus{{
			Name: "web", Tags: []string{"blue"}, Passing: 1,
			Instances: []InstanceStatus{
				{Node: "n1", ID: "web", Address: "10.1.0.1", Port: 80, Status: state.Critical},
				{Node: "n2", ID: "web", Address: "10.1.0.2", Port: 80, Status: state.Passing},
			},
		}},
		Failing:    []FailingCheck{{Node: "n1", ID: "service:web", Name: "web is up", Service: "web", Status: state.Critical, Output: "connection refused"}},
		Conditions: c.server.conditions(),
		ConfigSum:  "aaaa",
		ConfigSkew: true,
	}
	ignore := cmp.Options{
		cmpopts.IgnoreFields(Status{}, "Time"), cmpopts.IgnoreFields(ReplicaStatus{}, "Age"),
		cmpopts.IgnoreFields(MemberStatus{}, "Since"), cmpopts.IgnoreFields(InstanceStatus{}, "Since"), cmpopts.IgnoreFields(FailingCheck{}, "Since"),
	}
	if diff := cmp.Diff(want, got, ignore); diff != "" {
		t.Errorf("status: %s", diff)
	}
	failing, instance := got.Failing[0].Since, got.Services[0].Instances[0].Since
	if failing == nil || !failing.Exact || instance == nil || !instance.Time.Equal(failing.Time) {
		t.Errorf("failing since %+v, the instance since %+v", failing, instance)
	}
	c.raft.set(func(r *fakeRaft) { r.leader = "" })
	if got, err = c.client().Status(t.Context()); err != nil || got.Leader != nil {
		t.Errorf("without a leader: %+v, %v", got.Leader, err)
	}
}

func TestStatusShowsADeadNodeBeforeTheCatalogDoes(t *testing.T) {
	c := newCell(t)
	c.apply(web("n1", "10.1.0.1", state.Passing), web("n2", "10.1.0.2", state.Passing))
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Alive), member("n2", "10.1.0.2", state.Alive)})
	eventually(t, "n2 is seen", func() bool { at, _ := c.server.watch.memberSince("n2"); return !at.IsZero() })
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Alive), member("n2", "10.1.0.2", state.Failed)})
	eventually(t, "n2's death is seen", func() bool {
		c.server.watch.mu.Lock()
		defer c.server.watch.mu.Unlock()
		return c.server.watch.members["n2"].value == state.Failed
	})
	got := c.server.Status()
	died, _ := c.server.watch.memberSince("n2")
	if len(got.Failing) != 1 || got.Failing[0].ID != state.SerfHealth || got.Failing[0].Since == nil || !got.Failing[0].Since.Time.Equal(died) {
		t.Errorf("failing: %+v, died %v", got.Failing, died)
	}
	web := got.Services[0]
	if web.Passing != 1 || web.Instances[1].Status != state.Critical || !web.Instances[1].Since.Time.Equal(died) {
		t.Errorf("service: %+v", web)
	}
}

func TestWhatWasSoBeforeWeLookedIsNotExact(t *testing.T) {
	c := newCell(t, func(_ *Config, deps *Deps) {
		reg := web("n1", "10.1.0.1", state.Critical)
		if err := deps.State.(*state.Store).Apply(1, reg); err != nil {
			t.Fatal(err)
		}
	})
	eventually(t, "the check is seen", func() bool { at, _ := c.server.watch.checkSince("n1", "service:web"); return !at.IsZero() })
	if _, exact := c.server.watch.checkSince("n1", "service:web"); exact {
		t.Error("a check that failed before we looked has an exact time")
	}
	c.raft.index = 1
	c.apply(state.Deregister{Node: "n1"})
	eventually(t, "the node is forgotten", func() bool { at, _ := c.server.watch.checkSince("n1", "service:web"); return at.IsZero() })
}

// A change right after the start has a time that is exact. It fails where the
// first look comes at some time after the start.
func TestWhoFollowsHasLookedOnce(t *testing.T) {
	store := state.New()
	if err := store.Apply(1, web("n1", "10.1.0.1", state.Critical)); err != nil {
		t.Fatal(err)
	}
	w := newWatcher(store, time.Now)
	defer w.follow()()
	if since, exact := w.checkSince("n1", "service:web"); since.IsZero() || exact {
		t.Errorf("at first a check is so since %v, exact: %v", since, exact)
	}
}

func TestClientDoesWhatTheCommandLineNeeds(t *testing.T) {
	c := newCell(t)
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Alive)})
	c.apply(web("n1", "10.1.0.1", state.Passing))
	client, ctx := c.client(), t.Context()

	if members, err := client.Members(ctx); err != nil || len(members) != 1 || members[0].Name != "n1" {
		t.Errorf("members: %+v, %v", members, err)
	}
	if services, err := client.Services(ctx); err != nil || len(services) != 1 || services[0].Passing != 1 {
		t.Errorf("services: %+v, %v", services, err)
	}
	if conditions, err := client.Conditions(ctx); err != nil || len(conditions) != 1 || conditions[0].Name != "config.skew" {
		t.Errorf("conditions: %+v, %v", conditions, err)
	}
	if status, err := client.RaftStatus(ctx); err != nil || !cmp.Equal(status, c.raft.Status()) {
		t.Errorf("raft: %v %s", err, cmp.Diff(c.raft.Status(), status))
	}
	if report, err := client.ConfigStatus(ctx); err != nil || report.Config.Sum != "aaaa" || report.Sums["n1"] != "aaaa" || report.Skew {
		t.Errorf("config: %+v, %v", report, err)
	}
	report, err := client.ConfigReload(ctx)
	if err != nil || !report.Changed || report.Sum != "bbbb" || !slices.Equal(report.Restart, []string{"networks"}) {
		t.Errorf("reload: %+v, %v", report, err)
	}
	for what, err := range map[string]error{
		"remove": client.RemovePeer(ctx, "n2"), "transfer": client.TransferLeader(ctx, ""), "join": client.Join(ctx, "10.1.0.2:8301"),
		"force-leave": client.ForceLeave(ctx, "n2"), "leave": client.Leave(ctx),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !slices.Equal(c.raft.removed, []string{"n2"}) || !slices.Equal(c.raft.transferred, []string{""}) || c.agent.left != 1 {
		t.Errorf("done: %+v %+v", c.raft.removed, c.agent)
	}
	var metrics bytes.Buffer
	if err := client.Metrics(ctx, &metrics); err != nil || !strings.Contains(metrics.String(), "holdfast_admin_requests_total{") {
		t.Errorf("metrics: %v %.100s", err, metrics.String())
	}
}

func TestClientKeepsKeys(t *testing.T) {
	c := newCell(t)
	client, ctx := c.client(), t.Context()
	const key = "a b/%2F/ü?x=1#y"
	if _, err := client.KVGet(ctx, key, ReadDefault); !NotFound(err) || !strings.Contains(err.Error(), "there is no key") {
		t.Errorf("a key that is not there: %v", err)
	}
	if list, err := client.KVList(ctx, "", ReadStale); err != nil || len(list) != 0 {
		t.Errorf("an empty list: %v, %v", list, err)
	}
	zero, nine := uint64(0), uint64(9)
	if done, err := client.KVPut(ctx, key, []byte("v"), KVWrite{Flags: 7, CAS: &zero}); err != nil || !done {
		t.Fatalf("put: %v, %v", done, err)
	}
	if done, err := client.KVPut(ctx, key, []byte("w"), KVWrite{CAS: &zero}); err != nil || done {
		t.Errorf("cas of a key that exists: %v, %v", done, err)
	}
	want := KVEntry{Key: key, Value: []byte("v"), Flags: 7, CreateIndex: 1, ModifyIndex: 1}
	if got, err := client.KVGet(ctx, key, ReadConsistent); err != nil || !cmp.Equal(want, got) {
		t.Errorf("get: %v %s", err, cmp.Diff(want, got))
	}
	if list, err := client.KVList(ctx, "a ", ReadDefault); err != nil || len(list) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
	if done, err := client.KVDelete(ctx, key, false, &nine); err != nil || done {
		t.Errorf("delete with another index: %v, %v", done, err)
	}
	if done, err := client.KVDelete(ctx, "a", true, nil); err != nil || !done {
		t.Errorf("delete a tree: %v, %v", done, err)
	}
	if list, err := client.KVList(ctx, "", ReadDefault); err != nil || len(list) != 0 {
		t.Errorf("after deleting: %v, %v", list, err)
	}
	c.raft.set(func(r *fakeRaft) { r.proposeErr = state.ErrNoLeader })
	if _, err := client.KVPut(ctx, "a", nil, KVWrite{}); !NoLeader(err) {
		t.Errorf("without a leader: %v", err)
	}
}

func TestClientSavesWholeSnapshotsOnly(t *testing.T) {
	c := newCell(t)
	c.apply(web("n1", "10.1.0.1", state.Passing))
	client, ctx := c.client(), t.Context()
	var saved bytes.Buffer
	if err := client.SnapshotSave(ctx, &saved, false); err != nil {
		t.Fatal(err)
	}
	if err := client.SnapshotRestore(ctx, bytes.NewReader(saved.Bytes())); err != nil || !bytes.Equal(c.raft.restored, saved.Bytes()) {
		t.Errorf("restore: %v", err)
	}
	before := c.store.Snapshot().Version()
	if err := client.SnapshotRestore(ctx, bytes.NewReader(saved.Bytes()[:saved.Len()-1])); err == nil || c.store.Snapshot().Version() != before {
		t.Errorf("a truncated snapshot was taken: %v", err)
	}
	c.raft.set(func(r *fakeRaft) { r.saveErr = errors.New("disk on fire") })
	if err := client.SnapshotSave(ctx, &bytes.Buffer{}, false); err == nil {
		t.Error("half a snapshot was taken for the whole")
	}
	c.raft.set(func(r *fakeRaft) { r.saveErr, r.leader = nil, "" })
	if err := client.SnapshotSave(ctx, &bytes.Buffer{}, false); !NoLeader(err) {
		t.Errorf("without a leader: %v", err)
	}
	saved.Reset()
	if err := client.SnapshotSave(ctx, &saved, true); err != nil || saved.Len() == 0 {
		t.Errorf("stale, without a leader: %v", err)
	}
}

func TestReloadOfABadFileTellsEveryMistake(t *testing.T) {
	c := newCell(t)
	c.file.err = cluster.Errors{{File: "cluster.yaml", Line: 3, Column: 1, Message: "one"}, {File: "cluster.yaml", Line: 9, Column: 2, Message: "two"}}
	_, err := c.client().ConfigReload(t.Context())
	var refused *Error
	if !errors.As(err, &refused) || refused.Status != 400 || !strings.Contains(refused.Text, "cluster.yaml:3:1: one\ncluster.yaml:9:2: two") {
		t.Errorf("error %v", err)
	}
}

func TestClientSaysWhatIsWrong(t *testing.T) {
	for _, test := range []struct {
		config ClientConfig
		want   string
	}{
		{ClientConfig{}, "give a socket or a URL"},
		{ClientConfig{Socket: "/s", URL: "https://n1:8501"}, "give a socket or a URL"},
		{ClientConfig{URL: "fbservice1:8501"}, "is no URL of an agent"},
		{ClientConfig{URL: "ftp://n1"}, "is no URL of an agent"},
		{ClientConfig{URL: "https://n1:8501"}, "needs the cluster's authority"},
	} {
		if _, err := NewClient(test.config); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.config, err, test.want)
		}
	}
	client, err := NewClient(ClientConfig{Socket: "/nowhere/core.sock"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.Status(t.Context())
	if diff := cmp.Diff("is holdfast running? (socket /nowhere/core.sock: no such file or directory)", err.Error()); diff != "" {
		t.Error(diff)
	}
	if got := (&Error{Status: 404}).Error(); got != "the agent answered 404 Not Found" {
		t.Errorf("an error without a text: %q", got)
	}
}

func TestMetricsAreSound(t *testing.T) {
	c := newCell(t)
	c.get("/v1/catalog/nodes")
	c.get("/v1/nothing")
	problems, err := testutil.GatherAndLint(c.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %+v, %v", problems, err)
	}
	if got := c.counted(c.server.metrics.requests, "/v1/catalog/nodes", "GET", "200"); got != 1 {
		t.Errorf("%d requests counted", got)
	}
	if got := c.counted(c.server.metrics.requests, "other", "GET", "404"); got != 1 {
		t.Errorf("%d requests to nowhere counted", got)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	families, err := c.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if !strings.Contains(string(readme), "`"+family.GetName()) && strings.HasPrefix(family.GetName(), "holdfast_api_") {
			t.Errorf("README.md does not list %s", family.GetName())
		}
	}
}

func TestReadmeListsEveryPathAndItsExampleParses(t *testing.T) {
	data, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	readme := string(data)
	for _, r := range routes() {
		if !strings.Contains(readme, "`"+r.path) {
			t.Errorf("README.md does not list %s", r.path)
		}
	}
	for _, m := range notOffered() {
		if !strings.Contains(readme, "`"+m.prefix) {
			t.Errorf("README.md does not list %s as not offered", m.prefix)
		}
	}
	_, rest, found := strings.Cut(readme, "```yaml\n")
	example, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("README.md has no example")
	}
	if _, err := parse(clusterFile(example)); err != nil {
		t.Errorf("the example of README.md: %v", err)
	}
}

func TestAnswersWithoutContentAreEmptyListsNotNull(t *testing.T) {
	c := newCell(t, func(_ *Config, deps *Deps) {
		deps.Conditions = func() []health.Condition { return nil }
		deps.Raft = noServers{deps.Raft}
	})
	for path, want := range map[string]string{
		"/v1/holdfast/status":     `"raft":[]`,
		"/v1/holdfast/raft":       `"servers":[]`,
		"/v1/holdfast/conditions": `[]`,
	} {
		if _, _, text := c.get(path); !strings.Contains(text, want) || strings.Contains(text, `"conditions":null`) {
			t.Errorf("%s: no %s in %s", path, want, text)
		}
	}
}

// noServers is a store before it was formed.
type noServers struct{ Raft }

func (noServers) Status() state.RaftStatus { return state.RaftStatus{State: "follower"} }

func TestClientTellsABrokenConnectionFromAnAgentThatIsNotThere(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	server.Listener.Close()
	var err error
	if server.Listener, err = net.Listen("tcp", ownLoopback()+":0"); err != nil { // nobody has the port afterwards
		t.Fatal(err)
	}
	server.Start()
	client, err := NewClient(ClientConfig{URL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var unreachable *UnreachableError
	if _, err := client.KVPut(t.Context(), "a", nil, KVWrite{}); errors.As(err, &unreachable) || !strings.Contains(err.Error(), "is not known") {
		t.Errorf("the agent died while it wrote: %v", err)
	}
	server.Close()
	if _, err := client.KVPut(t.Context(), "a", nil, KVWrite{}); !errors.As(err, &unreachable) {
		t.Errorf("nobody is there: %v", err)
	}
	for _, far := range []string{"http://fbservice1:8500", "http://10.1.0.1:8500"} {
		if _, err := NewClient(ClientConfig{URL: far, Token: "secret"}); err == nil || !strings.Contains(err.Error(), "loopback only") {
			t.Errorf("the token would go to %s in plain text: %v", far, err)
		}
	}
}

func TestOperationsOfTheStoreAreAskedForByName(t *testing.T) {
	c := newCell(t)
	client := c.client()
	var got string
	if err := client.StoreOperation(t.Context(), "demote", url.Values{"server": {"n2"}}, true, &got); err != nil || got != "demote n2 true" {
		t.Errorf("%q, %v", got, err)
	}
	if err := client.StoreOperation(t.Context(), "peers", nil, false, &got); err != nil || got != "peers  false" {
		t.Errorf("%q, %v", got, err)
	}
	var refused *Error
	if err := client.StoreOperation(t.Context(), "refused", nil, true, &got); !errors.As(err, &refused) || refused.Status != http.StatusBadRequest || !strings.Contains(refused.Text, "because") {
		t.Errorf("%v, want the reason of the refusal", err)
	}
}
