package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/state"
)

// serviceRegistration is the body of /v1/agent/service/register. What would
// change the meaning of a registration and is not offered is refused, not
// ignored; TaggedAddresses, Locality and EnableTagOverride (which Patroni sets,
// and nobody here changes another agent's tags) are hints, and are ignored.
type serviceRegistration struct {
	ID         string
	Name       string
	Tags       []string
	Address    string
	Port       int
	Meta       map[string]string
	Weights    *weightsJSON
	Check      *checkRegistration
	Checks     []checkRegistration
	Kind       string
	SocketPath string
	Ports      []json.RawMessage
	Proxy      any
	Connect    any
	Namespace  string
	Partition  string
}

// checkRegistration is the body of /v1/agent/check/register and a check of a
// service's registration.
type checkRegistration struct {
	ID        string
	CheckID   string
	Name      string
	Notes     string
	ServiceID string

	HTTP          string
	Method        string
	Header        map[string][]string
	Body          string
	TLSServerName string
	TLSSkipVerify bool
	TCP           string
	UDP           string
	GRPC          string
	GRPCUseTLS    bool
	AliasNode     string
	AliasService  string
	TTL           duration

	Interval                       duration
	Timeout                        duration
	SuccessBeforePassing           int
	FailuresBeforeCritical         int
	Status                         string
	DeregisterCriticalServiceAfter duration

	// Refused.
	Args, ScriptArgs  []string
	Script, Shell     string
	DockerContainerID string
	H2PING, OSService string
	TCPUseTLS         bool
	DisableRedirects  bool
	Namespace         string
}

// duration is how Consul's JSON gives one: "10s", or a number of nanoseconds.
type duration time.Duration

// UnmarshalJSON takes both forms.
func (d *duration) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	text := strings.Trim(string(data), `"`)
	if text == "" {
		return nil
	}
	if ns, err := strconv.ParseInt(text, 10, 64); err == nil {
		*d = duration(ns)
		return nil
	}
	parsed, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("duration %s: want a text such as \"10s\"", data)
	}
	*d = duration(parsed)
	return nil
}

// UnmarshalJSON takes Consul's snake_case spellings too.
func (r *serviceRegistration) UnmarshalJSON(data []byte) error {
	type plain serviceRegistration
	folded, err := foldKeys(data)
	if err != nil {
		return err
	}
	return json.Unmarshal(folded, (*plain)(r))
}

// UnmarshalJSON takes Consul's snake_case spellings too.
func (r *checkRegistration) UnmarshalJSON(data []byte) error {
	type plain checkRegistration
	folded, err := foldKeys(data)
	if err != nil {
		return err
	}
	return json.Unmarshal(folded, (*plain)(r))
}

// foldKeys takes the underscores out of an object's keys, not out of what is
// below them: encoding/json then finds them whatever their case. A key that is
// given in two spellings is an error.
func foldKeys(data []byte) ([]byte, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(data, &object); err != nil {
		return nil, err
	}
	folded := make(map[string]json.RawMessage, len(object))
	for _, key := range sortedKeys(object) {
		plain := strings.ToLower(strings.ReplaceAll(key, "_", ""))
		if _, twice := folded[plain]; twice {
			return nil, fmt.Errorf("key %q is given twice, in two spellings", key)
		}
		folded[plain] = object[key]
	}
	return json.Marshal(folded)
}

// service translates the registration and its checks.
func (r *serviceRegistration) service() (state.Service, []check.Definition, error) {
	if err := r.refuse(); err != nil {
		return state.Service{}, nil, err
	}
	svc, err := buildService(r.ID, r.Name, r.Tags, r.Address, r.Port, r.Meta, r.Weights)
	if err != nil {
		return state.Service{}, nil, err
	}
	bodies := r.Checks
	if r.Check != nil {
		bodies = append(bodies[:len(bodies):len(bodies)], *r.Check)
	}
	checks := make([]check.Definition, 0, len(bodies))
	for n, body := range bodies {
		if body.ServiceID != "" && body.ServiceID != svc.ID {
			return state.Service{}, nil, fault(http.StatusBadRequest, "Invalid check: service %q registers a check of service %q", svc.ID, body.ServiceID)
		}
		body.ServiceID = svc.ID
		if body.id() == "" { // Consul's names
			body.CheckID = "service:" + svc.ID
			if len(bodies) > 1 {
				body.CheckID += ":" + strconv.Itoa(n+1)
			}
		}
		if body.Name == "" {
			body.Name = "Service '" + svc.Name + "' check"
		}
		definition, err := body.definition()
		if err != nil {
			return state.Service{}, nil, err
		}
		checks = append(checks, definition)
	}
	return svc, checks, nil
}

func (r *serviceRegistration) refuse() error {
	switch {
	case r.Kind != "" || r.Proxy != nil || r.Connect != nil:
		return fault(http.StatusBadRequest, "Invalid service: the service mesh (Kind, Proxy, Connect) is not offered")
	case r.SocketPath != "" || len(r.Ports) > 0:
		return fault(http.StatusBadRequest, "Invalid service: SocketPath and Ports are not offered: give Address and Port")
	case otherThanDefault(r.Namespace) || otherThanDefault(r.Partition):
		return fault(http.StatusBadRequest, "Invalid service: there is only the default namespace and partition")
	}
	return nil
}

func otherThanDefault(name string) bool { return name != "" && name != "default" }

func (r *checkRegistration) id() string {
	if r.ID != "" {
		return r.ID
	}
	return r.CheckID
}

// scriptRefused says why the API makes no script checks: whoever may write to
// it could run what he likes as the agent's user.
const scriptRefused = "Invalid check: script checks come from the cluster file only"

func (r *checkRegistration) refuse() error {
	switch {
	case len(r.Args) > 0 || len(r.ScriptArgs) > 0 || r.Script != "" || r.Shell != "" || r.DockerContainerID != "":
		return fault(http.StatusBadRequest, scriptRefused)
	case r.H2PING != "" || r.OSService != "" || r.TCPUseTLS:
		return fault(http.StatusBadRequest, "Invalid check: H2PING, OS service and TCP-with-TLS checks are not offered; use HTTP, gRPC, TCP, UDP or TTL")
	case r.DisableRedirects:
		return fault(http.StatusBadRequest, "Invalid check: DisableRedirects is not offered: redirects are followed, but never to another server")
	case otherThanDefault(r.Namespace):
		return fault(http.StatusBadRequest, "Invalid check: there is only the default namespace")
	}
	return nil
}

// definition translates the check and checks it.
func (r *checkRegistration) definition() (check.Definition, error) {
	if err := r.refuse(); err != nil {
		return check.Definition{}, err
	}
	initial, err := parseStatus(r.Status, state.Critical)
	if err != nil {
		return check.Definition{}, err
	}
	var alias *check.Alias
	if r.AliasNode != "" || r.AliasService != "" {
		alias = &check.Alias{Node: r.AliasNode, Service: r.AliasService}
	}
	definition := check.Definition{
		UDP: r.UDP, GRPC: r.GRPC, GRPCTLS: r.GRPCUseTLS, Alias: alias,
		ID: r.id(), Name: r.Name, Notes: r.Notes, ServiceID: r.ServiceID,
		TCP: r.TCP, HTTP: r.HTTP, Method: r.Method, Header: r.Header, Body: r.Body,
		TLS: check.TLS{ServerName: r.TLSServerName, SkipVerify: r.TLSSkipVerify},
		TTL: time.Duration(r.TTL), Interval: time.Duration(r.Interval), Timeout: time.Duration(r.Timeout),
		Rise: r.SuccessBeforePassing, Fall: r.FailuresBeforeCritical,
		Initial: initial, DeregisterAfter: time.Duration(r.DeregisterCriticalServiceAfter),
	}
	if definition.ID == "" {
		definition.ID = r.Name
	}
	if err := definition.Validate(); err != nil {
		return check.Definition{}, fault(http.StatusBadRequest, "Invalid check: %v", err)
	}
	return definition, nil
}
