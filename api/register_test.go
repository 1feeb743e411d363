package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/check"
	"holdfast/internal/state"
)

func TestRegistrationsThatAreRefused(t *testing.T) {
	c := newCell(t)
	service := func(fields string) (string, string) {
		return "/v1/agent/service/register", `{"Name":"web",` + fields + `}`
	}
	one := func(fields string) (string, string) {
		return "/v1/agent/check/register", `{"Name":"c",` + fields + `}`
	}
	tests := map[string]struct {
		request func() (path, body string)
		want    string
	}{
		"a script":            {func() (string, string) { return one(`"Args":["/bin/true"],"Interval":"1s"`) }, "Invalid check: script checks come from the cluster file only"},
		"a script, old style": {func() (string, string) { return one(`"script":"/bin/true","Interval":"1s"`) }, "script checks come from the cluster file only"},
		"a script, snake":     {func() (string, string) { return one(`"script_args":["/bin/true"]`) }, "script checks come from the cluster file only"},
		"a service's script":  {func() (string, string) { return service(`"Check":{"ScriptArgs":["/bin/true"]}`) }, "script checks come from the cluster file only"},
		"a container's":       {func() (string, string) { return one(`"DockerContainerID":"f","Shell":"/bin/sh"`) }, "script checks come from the cluster file only"},
		"H2PING":              {func() (string, string) { return one(`"H2PING":"127.0.0.1:1"`) }, "are not offered; use HTTP"},
		"no redirects":        {func() (string, string) { return one(`"DisableRedirects":true`) }, "DisableRedirects is not offered"},
		"an alias of itself":  {func() (string, string) { return one(`"AliasService":"w","ServiceID":"w"`) }, "names its own service"},
		"nothing":             {func() (string, string) { return one(`"Interval":"1s"`) }, "exactly one of http, tcp"},
		"two at once":         {func() (string, string) { return one(`"TTL":"1m","TCP":"127.0.0.1:1"`) }, "exactly one of http, tcp"},
		"too often":           {func() (string, string) { return one(`"TCP":"127.0.0.1:1","Interval":"1ms"`) }, "interval"},
		"a wrong duration":    {func() (string, string) { return one(`"TTL":"soon"`) }, `Request decode failed: duration "soon"`},
		"a wrong status":      {func() (string, string) { return one(`"TTL":"1m","Status":"good"`) }, `Invalid check status "good"`},
		"serfHealth":          {func() (string, string) { return one(`"ID":"serfHealth","TTL":"1m"`) }, "kept by the cluster itself"},
		"one key twice":       {func() (string, string) { return one(`"ServiceID":"a","service_id":"b"`) }, `key "service_id" is given twice`},
		"no name":             {func() (string, string) { return "/v1/agent/check/register", `{"TTL":"1m"}` }, "Missing check name"},
		"a mesh proxy":        {func() (string, string) { return service(`"Kind":"connect-proxy"`) }, "the service mesh"},
		"a sidecar":           {func() (string, string) { return service(`"Connect":{"SidecarService":{}}`) }, "the service mesh"},
		"another partition":   {func() (string, string) { return service(`"Partition":"p"`) }, "only the default namespace and partition"},
		"a name as address":   {func() (string, string) { return service(`"Address":"web.example"`) }, `"web.example" is not an IP address`},
		"every address":       {func() (string, string) { return service(`"Address":"0.0.0.0"`) }, "is not an IP address that others can reach"},
		"a port too high":     {func() (string, string) { return service(`"Port":70000`) }, "Invalid port 70000"},
		"weights too high":    {func() (string, string) { return service(`"Weights":{"Passing":70000}`) }, "Invalid weights"},
		"another's check":     {func() (string, string) { return service(`"Check":{"ServiceID":"x","TTL":"1m"}`) }, `registers a check of service "x"`},
		"no service name":     {func() (string, string) { return "/v1/agent/service/register", `{"ID":"x"}` }, "Missing service name"},
		"no body":             {func() (string, string) { return "/v1/agent/service/register", "" }, "Request decode failed: EOF"},
		"half a body":         {func() (string, string) { return "/v1/agent/service/register", `{"Name":` }, "Request decode failed"},
		"two bodies":          {func() (string, string) { return "/v1/agent/service/register", `{"Name":"a"}{"Name":"b"}` }, "Request decode failed"},
		"no object":           {func() (string, string) { return "/v1/agent/service/register", `[1]` }, "Request decode failed"},
		"no TTL status":       {func() (string, string) { return "/v1/agent/check/update/x", `{"Status":"up"}` }, "Invalid check status: 'up'"},
		"no node":             {func() (string, string) { return "/v1/catalog/register", `{}` }, "Must provide node name"},
		"no node address":     {func() (string, string) { return "/v1/catalog/register", `{"Node":"n"}` }, "Must provide address if SkipNodeUpdate is not set"},
		"another node's": {func() (string, string) {
			return "/v1/catalog/register", `{"Node":"n","Address":"10.0.0.1","Check":{"Node":"m","Name":"c"}}`
		}, `check node "m" does not match node "n"`},
		"no check name":     {func() (string, string) { return "/v1/catalog/register", `{"Node":"n","Address":"10.0.0.1","Check":{}}` }, "Must provide a CheckID or a Name"},
		"deregister nobody": {func() (string, string) { return "/v1/catalog/deregister", `{}` }, "Must provide node"},
	}
	for name, test := range tests {
		path, body := test.request()
		code, _, text := c.do("PUT", path, strings.NewReader(body))
		if code != 400 || !strings.Contains(text, test.want) {
			t.Errorf("%s: %d %q, want 400 %q", name, code, text, test.want)
		}
	}
	if len(c.agent.services) != 0 || len(c.agent.checks) != 0 {
		t.Errorf("something was registered: %+v %+v", c.agent.services, c.agent.checks)
	}
	for _, body := range []string{`{"Node":"n","Address":"10.0.0.1","Datacenter":"elsewhere"}`} {
		if code, _, text := c.do("PUT", "/v1/catalog/register", strings.NewReader(body)); code != 500 || text != "No path to datacenter" {
			t.Errorf("another datacenter: %d %q", code, text)
		}
	}
}

func TestRegistrationInConsulsOtherSpellings(t *testing.T) {
	c := newCell(t)
	body := `{"name":"web","PORT":80,"enable_tag_override":false,"tagged_addresses":{"lan":{"address":"10.0.0.1"}},"checks":[
		{"ttl":30000000000,"deregister_critical_service_after":"2m","Meta_Is_Unknown":1},
		{"http":"http://127.0.0.1/","interval":"5s","success_before_passing":2,"tls_skip_verify":false,"header":{"X_Y":["z"]}}]}`
	if code, _, text := c.do("PUT", "/v1/agent/service/register", strings.NewReader(body)); code != 200 {
		t.Fatalf("%d %q", code, text)
	}
	ttl, http := c.agent.made[0], c.agent.made[1]
	if ttl.TTL != 30*time.Second || ttl.DeregisterAfter != 2*time.Minute || ttl.ID != "service:web:1" {
		t.Errorf("TTL check %+v", ttl)
	}
	if http.Interval != 5*time.Second || http.Rise != 2 || http.Header["X_Y"][0] != "z" {
		t.Errorf("HTTP check %+v; what is below a key keeps its spelling", http)
	}
}

func TestChecksOfEveryKindAreRegistered(t *testing.T) {
	for body, want := range map[string]check.Definition{
		`{"Name":"c","UDP":"127.0.0.1:514","Interval":"5s"}`:                                   {UDP: "127.0.0.1:514"},
		`{"Name":"c","GRPC":"127.0.0.1:9/web.Service","Interval":"5s"}`:                        {GRPC: "127.0.0.1:9/web.Service"},
		`{"Name":"c","GRPC":"h:9","GRPCUseTLS":true,"TLSServerName":"x","Interval":"5s"}`:      {GRPC: "h:9", GRPCTLS: true, TLS: check.TLS{ServerName: "x"}},
		`{"Name":"c","grpc":"h:9","grpc_use_tls":true,"tls_skip_verify":true,"interval":"5s"}`: {GRPC: "h:9", GRPCTLS: true, TLS: check.TLS{SkipVerify: true}},
		`{"Name":"c","AliasNode":"n","AliasService":"db","Interval":"5s"}`:                     {Alias: &check.Alias{Node: "n", Service: "db"}},
		`{"Name":"c","alias_service":"db","Interval":"5s"}`:                                    {Alias: &check.Alias{Service: "db"}},
	} {
		c := newCell(t)
		if code, _, text := c.do("PUT", "/v1/agent/check/register", strings.NewReader(body)); code != 200 {
			t.Errorf("%s: %d %q", body, code, text)
			continue
		}
		want.ID, want.Name, want.Interval, want.Initial = "c", "c", 5*time.Second, state.Critical
		if diff := cmp.Diff(want.WithDefaults(), c.agent.made[0].WithDefaults()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", body, diff)
		}
	}
}

func TestAgentsErrorsKeepTheirMeaning(t *testing.T) {
	c := newCell(t)
	for code, err := range map[int]error{
		http.StatusConflict:            state.ErrConflict,
		http.StatusBadRequest:          state.ErrInvalid,
		http.StatusInternalServerError: errors.New("disk full"),
	} {
		c.agent.err = err
		got, _, text := c.do("PUT", "/v1/agent/service/register", strings.NewReader(`{"Name":"web"}`))
		if got != code || !strings.Contains(text, err.Error()) {
			t.Errorf("%v: %d %q, want %d", err, got, text, code)
		}
	}
}

// A body from the network gives a registration that is sound, or an error.
func FuzzRegistrations(f *testing.F) {
	for _, body := range []string{
		`{"Name":"web","Port":80,"Check":{"HTTP":"http://127.0.0.1/","Interval":"10s"}}`,
		`{"name":"web","checks":[{"ttl":"30s"},{"tcp":"127.0.0.1:80","interval":1000000000}]}`,
		`{"Name":"c","script_args":["/bin/sh"]}`, `{"Name":"c","TTL":"1m","Status":"passing"}`,
		`{"Node":"n","Address":"10.0.0.1","Service":{"Service":"s"},"Checks":[{"Name":"c","Status":"critical"}]}`,
		`null`, `{"Check":null,"Checks":[null]}`, `{"a_b":1,"ab":2}`, "{\"Name\":\"\xff\"}",
	} {
		f.Add([]byte(body))
	}
	store := state.New()
	f.Fuzz(func(t *testing.T, data []byte) {
		var service serviceRegistration
		if decodeStrict(data, &service) == nil {
			svc, checks, err := service.service()
			if err == nil && (svc.Name == "" || svc.ID == "") {
				t.Errorf("a service without a name: %+v", svc)
			}
			for _, d := range checks {
				if err := d.Validate(); err != nil || len(d.Script) > 0 || d.ServiceID != svc.ID || d.ID == "" {
					t.Errorf("check %+v: %v", d, err)
				}
			}
		}
		var single checkRegistration
		if decodeStrict(data, &single) == nil {
			if d, err := single.definition(); err == nil && (len(d.Script) > 0 || d.Validate() != nil) {
				t.Errorf("check %+v", d)
			}
		}
		var registration catalogRegistration
		if json.Unmarshal(data, &registration) == nil {
			if command, err := registration.command(store.Snapshot()); err == nil && (command.Node.Name == "" || !command.Node.Address.IsValid()) {
				t.Errorf("node %+v", command.Node)
			}
		}
	})
}
