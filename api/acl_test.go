package api

import (
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"holdfast/internal/admin"
	"holdfast/internal/state"
)

// tokenFor makes a token with rules, by the admin socket.
func (c *cell) tokenFor(rules string) string {
	c.t.Helper()
	acl := c.admin().ACL()
	policy, _, err := acl.PolicyCreate(&consul.ACLPolicy{Name: "p" + strings.ReplaceAll(c.nextName(), ".", "-"), Rules: rules}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	made, _, err := acl.TokenCreate(&consul.ACLToken{Description: "of a test", Policies: []*consul.ACLTokenPolicyLink{{ID: policy.ID}}}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return made.SecretID
}

func (c *cell) nextName() string {
	return time.Now().Format("150405.000000000")
}

// as is the real client with a token, over plain HTTP on loopback.
func (c *cell) as(secret string) *consul.Client {
	c.t.Helper()
	config := consul.DefaultConfig()
	config.Address, config.Token = strings.TrimPrefix(c.url, "http://"), secret
	client, err := consul.NewClient(config)
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

// overSocket makes a request as root.
func (c *cell) overSocket(request *http.Request) (int, string) {
	c.t.Helper()
	response, err := admin.Client(c.socket).Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func denied(err error) bool { return err != nil && strings.Contains(err.Error(), "Permission denied") }

func TestConsulsClientKeepsTokensAndPolicies(t *testing.T) {
	c := newCell(t)
	acl := c.admin().ACL()
	boot, _, err := acl.Bootstrap()
	if err != nil || boot.SecretID == "" || len(boot.Policies) != 1 || boot.Policies[0].Name != "global-management" {
		t.Fatalf("bootstrap: %+v, %v", boot, err)
	}
	if _, _, err := acl.Bootstrap(); err == nil || !strings.Contains(err.Error(), "ACL bootstrap no longer allowed") {
		t.Errorf("a second bootstrap: %v", err)
	}
	manager := c.as(boot.SecretID).ACL()
	policy, _, err := manager.PolicyCreate(&consul.ACLPolicy{Name: "web", Rules: `key_prefix "web/" { policy = "write" }`}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := manager.PolicyCreate(&consul.ACLPolicy{Name: "web"}, nil); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("a second policy of the name: %v", err)
	}
	byName, _, err := manager.PolicyReadByName("web", nil)
	if err != nil || byName == nil || byName.ID != policy.ID || byName.Rules != policy.Rules {
		t.Errorf("by name: %+v, %v", byName, err)
	}
	made, _, err := manager.TokenCreate(&consul.ACLToken{Policies: []*consul.ACLTokenPolicyLink{{Name: "web"}}, ExpirationTTL: time.Hour}, nil)
	if err != nil || made.SecretID == "" || made.ExpirationTime == nil {
		t.Fatalf("a token: %+v, %v", made, err)
	}
	self, _, err := c.as(made.SecretID).ACL().TokenReadSelf(nil)
	if err != nil || self.AccessorID != made.AccessorID || self.SecretID != made.SecretID {
		t.Errorf("its own token: %+v, %v", self, err)
	}
	clone, _, err := manager.TokenClone(made.AccessorID, "copy", nil)
	if err != nil || clone.SecretID == made.SecretID || clone.Description != "copy" || len(clone.Policies) != 1 {
		t.Errorf("a clone: %+v, %v", clone, err)
	}
	made.Description = "changed"
	if changed, _, err := manager.TokenUpdate(made, nil); err != nil || changed.Description != "changed" {
		t.Errorf("an update: %+v, %v", changed, err)
	}
	list, _, err := manager.TokenList(nil)
	if err != nil || len(list) != 3 {
		t.Fatalf("tokens: %+v, %v", list, err)
	}
	for _, entry := range list {
		if entry.SecretID != hiddenSecret {
			t.Errorf("the list shows the secret of %s", entry.AccessorID)
		}
	}
	policy.Rules = `key_prefix "other/" { policy = "write" }`
	if _, _, err := manager.PolicyUpdate(policy, nil); err != nil {
		t.Error(err)
	}
	if _, err := c.as(clone.SecretID).KV().Put(&consul.KVPair{Key: "web/a"}, nil); !denied(err) {
		t.Errorf("what the policy does not say any more: %v", err)
	}
	if _, err := c.as(clone.SecretID).KV().Put(&consul.KVPair{Key: "other/a"}, nil); err != nil {
		t.Errorf("what the policy says now: %v", err)
	}
	if _, err := manager.PolicyDelete(policy.ID, nil); err != nil {
		t.Error(err)
	}
	if _, err := c.as(clone.SecretID).KV().Put(&consul.KVPair{Key: "other/a"}, nil); !denied(err) {
		t.Errorf("a policy that was removed: %v", err)
	}
	if _, err := manager.TokenDelete(clone.AccessorID, nil); err != nil {
		t.Error(err)
	}
	if _, _, err := c.as(clone.SecretID).KV().Get("other/a", nil); err == nil || !strings.Contains(err.Error(), "ACL not found") {
		t.Errorf("a token that was removed: %v", err)
	}
	if _, err := manager.PolicyDelete(managementID, nil); err == nil {
		t.Error("the management policy was removed")
	}
}

func TestSecretsOfTokensAreNotInTheStore(t *testing.T) {
	c := newCell(t)
	secret := c.tokenFor(`key "a" { policy = "read" }`)
	var snapshot strings.Builder
	if _, err := c.store.Snapshot().WriteTo(&snapshot); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(snapshot.String(), secret) {
		t.Error("a snapshot holds the secret")
	}
}

// A program that may write keys over loopback must not make itself a token
// that may do more.
func TestLoopbackMakesNoTokens(t *testing.T) {
	c := newCell(t)
	if _, _, err := c.consul().ACL().Bootstrap(); !denied(err) {
		t.Errorf("bootstrap over loopback: %v", err)
	}
	if _, _, err := c.consul().ACL().TokenCreate(&consul.ACLToken{}, nil); !denied(err) {
		t.Errorf("a token over loopback: %v", err)
	}
	if _, _, err := c.consul().ACL().TokenList(nil); !denied(err) {
		t.Errorf("tokens over loopback: %v", err)
	}
}

func TestEveryPathAsksTokensForSomething(t *testing.T) {
	c := withAgent(t)
	c.apply(web("n1", "10.1.0.1", state.Passing), web("n2", "10.1.0.2", state.Passing),
		state.KV{Verb: state.Set, Entry: state.Entry{Key: "a/b", Value: []byte("secret-value")}},
		state.CreateSession{Session: state.Session{ID: "s1", Node: "n1"}})
	c.store.SetMembers([]state.Member{member("n1", "10.1.0.1", state.Alive)})
	if err := c.consul().Agent().ServiceRegister(&consul.AgentServiceRegistration{Name: "web", Check: &consul.AgentServiceCheck{CheckID: "ttl", TTL: "10s"}}); err != nil {
		t.Fatal(err)
	}
	secret := c.tokenFor(``)
	// Those that a token without any right may ask, and what they say nothing of.
	harmless := map[string]bool{
		"/v1/catalog/datacenters": true, "/v1/status/leader": true, "/v1/status/peers": true, "/v1/acl/token/self": true,
	}
	rest := map[string]string{
		"/v1/agent/service/": "web", "/v1/agent/service/deregister/": "web", "/v1/agent/service/maintenance/": "web?enable=true",
		"/v1/agent/health/service/name/": "web", "/v1/agent/health/service/id/": "web", "/v1/agent/check/update/": "ttl",
		"/v1/agent/check/deregister/": "ttl", "/v1/agent/check/pass/": "ttl", "/v1/agent/check/warn/": "ttl", "/v1/agent/check/fail/": "ttl",
		"/v1/catalog/service/": "web", "/v1/catalog/node/": "n1", "/v1/catalog/node-services/": "n1",
		"/v1/health/service/": "web", "/v1/health/node/": "n1", "/v1/health/checks/": "web", "/v1/health/state/": "any", explainPath: "web",
		"/v1/kv/": "a/b", "/v1/session/destroy/": "s1", "/v1/session/renew/": "s1", "/v1/session/info/": "s1", "/v1/session/node/": "n1",
	}
	bodies := map[string]string{
		"/v1/agent/service/register": `{"Name":"web"}`, "/v1/agent/check/register": `{"Name":"c","TTL":"10s"}`,
		"/v1/catalog/register":   `{"Node":"n9","Address":"10.1.0.9","Service":{"Service":"web"}}`,
		"/v1/catalog/deregister": `{"Node":"n1"}`, "/v1/agent/check/update/": `{"Status":"passing"}`, "/v1/session/create": `{"Node":"n1"}`,
		"/v1/txn": `[{"KV":{"Verb":"get","Key":"a/b"}}]`,
	}
	before := c.store.Snapshot().Index()
	for _, r := range routes() {
		for method := range r.methods {
			code, header, text := c.do(method, r.path+rest[r.path], strings.NewReader(bodies[r.path]), "X-Consul-Token", secret)
			switch {
			case code == 403 && strings.Contains(text, "Permission denied"):
			case harmless[r.path] && code == 200:
			case (r.path == joinPath || r.path == joinCAPath) && code == 404: // off here; it asks for a token of its own
			case code == 200 && method == "GET" && slices.Contains([]string{"[]", "{}", "null", `{"Node":null,"Services":[]}`}, text):
				if strings.HasPrefix(r.path, "/v1/catalog/") && header.Get("X-Consul-Results-Filtered-By-ACLs") != "true" {
					t.Errorf("%s %s: an answer does not say that something is missing", method, r.path)
				}
			default:
				t.Errorf("%s %s: %d %.200s", method, r.path, code, text)
			}
		}
	}
	if c.store.Snapshot().Index() != before {
		t.Error("a token without rights changed the store")
	}
	for _, args := range []string{"?recurse", "?keys"} {
		if code, _, text := c.get("/v1/kv/a/"+args, "X-Consul-Token", secret); code == 200 && text != "[]" || strings.Contains(text, "a/b") {
			t.Errorf("%s: %d %s", args, code, text)
		}
	}
	if code, _, _ := c.do("DELETE", "/v1/kv/?recurse", http.NoBody, "X-Consul-Token", secret); code != 403 {
		t.Errorf("all keys removed: %d", code)
	}
	if got := c.counted(c.server.metrics.refused, "acl"); got < 20 {
		t.Errorf("%d refusals counted", got)
	}
}

func TestTokensGiveWhatTheirPoliciesSay(t *testing.T) {
	c := withAgent(t)
	c.apply(web("n1", "10.1.0.1", state.Passing), web("n2", "10.1.0.2", state.Passing))
	db := state.Register{Node: node("n1", "10.1.0.1"), Services: []state.Service{{ID: "db", Name: "db", Port: 5432}},
		Checks: []state.Check{{ID: "service:db", Name: "db", Status: state.Passing, ServiceID: "db"}}}
	c.apply(db)
	web := c.as(c.tokenFor(`
		service "web" { policy = "write" }
		node "n1" { policy = "read" }
		key_prefix "web/" { policy = "write" }
		session "n1" { policy = "write" }
		agent "n1" { policy = "read" }
		operator = "read"`))
	found, meta, err := web.Health().Service("web", "", true, nil)
	if err != nil || len(found) != 1 || found[0].Node.Node != "n1" || !meta.ResultsFilteredByACLs {
		t.Errorf("web, of which only one node may be seen: %+v %+v %v", found, meta, err)
	}
	if found, _, err := web.Health().Service("db", "", false, nil); err != nil || len(found) != 0 {
		t.Errorf("db: %+v %v", found, err)
	}
	if names, _, err := web.Catalog().Services(nil); err != nil || len(names) != 1 {
		t.Errorf("services: %v %v", names, err)
	}
	if err := web.Agent().ServiceRegister(&consul.AgentServiceRegistration{ID: "w2", Name: "web", Port: 81, Check: &consul.AgentServiceCheck{CheckID: "w2", TTL: "10s"}}); err != nil {
		t.Errorf("register web: %v", err)
	}
	if err := web.Agent().UpdateTTL("w2", "", "pass"); err != nil {
		t.Errorf("its check: %v", err)
	}
	if err := web.Agent().ServiceRegister(&consul.AgentServiceRegistration{Name: "db"}); !denied(err) {
		t.Errorf("register db: %v", err)
	}
	if err := c.consul().Agent().ServiceRegister(&consul.AgentServiceRegistration{ID: "theirs", Name: "db", Check: &consul.AgentServiceCheck{CheckID: "theirs", TTL: "10s"}}); err != nil {
		t.Fatal(err)
	}
	if err := web.Agent().ServiceRegister(&consul.AgentServiceRegistration{ID: "theirs", Name: "web"}); !denied(err) {
		t.Errorf("web in the place of db: %v", err)
	}
	if err := web.Agent().CheckRegister(&consul.AgentCheckRegistration{ID: "theirs", Name: "x", ServiceID: "w2", AgentServiceCheck: consul.AgentServiceCheck{TTL: "10s"}}); !denied(err) {
		t.Errorf("a check in the place of db's: %v", err)
	}
	if err := web.Agent().EnableNodeMaintenance("x"); !denied(err) {
		t.Errorf("maintenance of the node: %v", err)
	}
	if _, err := web.Catalog().Register(&consul.CatalogRegistration{Node: "n1", SkipNodeUpdate: true, Service: &consul.AgentService{ID: "db", Service: "web"}}, nil); !denied(err) {
		t.Errorf("web in the place of db in the catalog: %v", err)
	}
	if _, err := web.Catalog().Deregister(&consul.CatalogDeregistration{Node: "n1", ServiceID: "db"}, nil); !denied(err) {
		t.Errorf("db removed: %v", err)
	}
	if _, err := web.KV().DeleteTree("", nil); !denied(err) {
		t.Errorf("all keys removed: %v", err)
	}
	if ok, _, _, err := web.KV().Txn(consul.KVTxnOps{{Verb: consul.KVSet, Key: "web/a", Value: []byte("1")}}, nil); err != nil || !ok {
		t.Errorf("a transaction: %v", err)
	}
	if _, _, _, err := web.KV().Txn(consul.KVTxnOps{{Verb: consul.KVSet, Key: "web/a"}, {Verb: consul.KVSet, Key: "db/a"}}, nil); !denied(err) {
		t.Errorf("a transaction on others' keys: %v", err)
	}
	if _, _, err := web.Session().Create(&consul.SessionEntry{Node: "n2"}, nil); !denied(err) {
		t.Errorf("a session on another node: %v", err)
	}
	id, _, err := web.Session().CreateNoChecks(&consul.SessionEntry{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ok, _, err := web.KV().Acquire(&consul.KVPair{Key: "web/lock", Session: id}, nil); err != nil || !ok {
		t.Errorf("its lock: %t %v", ok, err)
	}
	if _, err := web.Operator().RaftGetConfiguration(nil); err != nil {
		t.Errorf("Raft's servers: %v", err)
	}
	if err := web.Operator().RaftRemovePeerByID("id-n2", nil); !denied(err) {
		t.Errorf("a server removed: %v", err)
	}
	if _, _, err := web.Snapshot().Save(nil); !denied(err) {
		t.Errorf("a snapshot: %v", err)
	}
}

// A query that waits has the rights of the moment when it is answered.
func TestAQueryThatWaitsLosesItsRightsWithItsToken(t *testing.T) {
	c := newCell(t)
	c.apply(state.KV{Verb: state.Set, Entry: state.Entry{Key: "a", Value: []byte("one")}})
	secret := c.tokenFor(`key "a" { policy = "read" }`)
	client := c.as(secret)
	_, meta, err := client.KV().Get("a", nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, _, err := client.KV().Get("a", &consul.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute})
		ended <- err
	}()
	c.blocked(1)
	self, _, err := client.ACL().TokenReadSelf(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.admin().ACL().TokenDelete(self.AccessorID, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "ACL not found") {
			t.Errorf("the query of a token that was removed: %v", err)
		}
	case <-time.After(patience):
		t.Error("the query of a token that was removed goes on")
	}
}

func TestTokensEndWithTheirTime(t *testing.T) {
	now := time.Now()
	c := newCell(t, func(_ *Config, deps *Deps) { deps.Now = func() time.Time { return now } })
	acl := c.admin().ACL()
	made, _, err := acl.TokenCreate(&consul.ACLToken{ExpirationTTL: time.Hour, Policies: []*consul.ACLTokenPolicyLink{{ID: readOnlyID}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := acl.TokenCreate(&consul.ACLToken{ExpirationTTL: time.Second}, nil); err == nil {
		t.Error("a token of a second")
	}
	client := c.as(made.SecretID)
	if _, _, err := client.Catalog().Nodes(&consul.QueryOptions{AllowStale: true}); err != nil {
		t.Error(err)
	}
	now = now.Add(time.Hour)
	if _, _, err := client.Catalog().Nodes(&consul.QueryOptions{AllowStale: true}); err == nil || !strings.Contains(err.Error(), "ACL not found") {
		t.Errorf("after its time: %v", err)
	}
	now = now.Add(2 * time.Hour)
	c.store.Touch(now)
	if _, _, err := acl.TokenCreate(&consul.ACLToken{}, nil); err != nil {
		t.Fatal(err)
	}
	if all := tokens(c.store.Snapshot()); len(all) != 1 {
		t.Errorf("%d tokens are kept, one of which ended long ago", len(all))
	}
}

func TestAnUnknownTokenIsRefusedOnceThereAreTokens(t *testing.T) {
	c := newCell(t)
	if _, _, err := c.as("whatever-the-client-sends").Catalog().Nodes(nil); err != nil {
		t.Errorf("without any token in the store: %v", err)
	}
	c.tokenFor(`operator = "read"`)
	if _, _, err := c.as("whatever-the-client-sends").Catalog().Nodes(nil); err == nil || !strings.Contains(err.Error(), "403 (ACL not found") {
		t.Errorf("with tokens in the store: %v", err)
	}
	if _, _, err := c.consul().Catalog().Nodes(nil); err != nil {
		t.Errorf("loopback without a token: %v", err)
	}
	if got := c.counted(c.server.metrics.refused, "token"); got != 1 {
		t.Errorf("%d counted", got)
	}
}

func TestAddressesThatAreNotLoopbackDenyByDefault(t *testing.T) {
	server := trust(t, t.TempDir()+"/ca", "foobar", "n1", "server")
	c := newCell(t, func(config *Config, deps *Deps) {
		config.HTTPS = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
		deps.TLS = server.ServerOptional()
		deps.Admin = func(*http.Request) bool { return false }
	})
	secret := c.tokenFor(`key "a" { policy = "read" }`)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: withCertificate(server.Client(""), nil)}}
	defer client.CloseIdleConnections()
	for name, test := range map[string]struct {
		path, token string
		code        int
	}{
		"no token":                         {"/v1/status/leader", "", 403},
		"an unknown one":                   {"/v1/status/leader", "x", 403},
		"what the token may":               {"/v1/kv/a", secret, 404},
		"what the token may not":           {"/v1/kv/b", secret, 403},
		"what is no more than a path":      {"/v1/nothing", "", 403},
		"a path that is not there, a name": {"/v1/nothing", secret, 404},
	} {
		request, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+c.server.Addresses()[1].String()+test.path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if test.token != "" {
			request.Header.Set("X-Consul-Token", test.token)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != test.code {
			t.Errorf("%s: %d, want %d", name, response.StatusCode, test.code)
		}
	}
}

func TestTokensThatWouldMeanMoreThanTheySayAreRefused(t *testing.T) {
	c := newCell(t)
	for body, want := range map[string]string{
		`{"Roles":[{"Name":"x"}]}`:                            "roles, identities",
		`{"Policies":[{"Name":"none"}]}`:                      "no such ACL policy",
		`{"SecretID":"short"}`:                                "not a valid UUID",
		`{"AccessorID":"short"}`:                              "not a valid UUID",
		`{"Namespace":"other"}`:                               "default namespace",
		`{"Description":"` + strings.Repeat("d", 1025) + `"}`: "at most 1024",
	} {
		request, err := http.NewRequestWithContext(t.Context(), "PUT", admin.BaseURL+"/v1/acl/token", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		code, text := c.overSocket(request)
		if code != 400 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s, want %q", body, code, text, want)
		}
	}
	for body, want := range map[string]string{
		`{"Name":"a b"}`:                               "Only alphanumeric",
		`{"Name":"a","Rules":"key"}`:                   "Failed to parse ACL rules: line 1",
		`{"Name":"a","ID":"x"}`:                        "Cannot specify the ID",
		`{"Name":"a","Datacenters":["x"]}`:             "Datacenters are not offered",
		`{"Name":"builtin-x","Namespace":"other"}`:     "default namespace",
		`{"Name":"global-management","Rules":""}`:      "already exists",
		`{"Name":"a","Rules":"query_prefix \"\" { }"}`: "has no policy",
	} {
		request, err := http.NewRequestWithContext(t.Context(), "PUT", admin.BaseURL+"/v1/acl/policy", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		code, text := c.overSocket(request)
		if code != 400 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s, want %q", body, code, text, want)
		}
	}
}
