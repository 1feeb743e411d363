package api

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"holdfast/api/acl"
)

// endpoint is one method of a path.
type endpoint struct {
	needs Access // of callers without a token of their own
	rule  rule   // of callers with one
	serve func(*Server, *call) error
}

// methods maps HTTP methods to endpoints.
type methods map[string]endpoint

// route is a path, or with a slash at its end all paths that begin with it;
// what follows is call.rest, and may hold slashes (keys and service IDs do).
type route struct {
	path    string
	methods methods
}

func get(r rule, serve func(*Server, *call) error) methods {
	return methods{"GET": {Read, r, serve}}
}

func put(needs Access, r rule, serve func(*Server, *call) error) methods {
	return methods{"PUT": {needs, r, serve}}
}

// old is put for paths that Consul took GET on before its version 1.0, and
// that Debian's python3-consul still asks that way.
func old(r rule, serve func(*Server, *call) error) methods {
	return methods{"PUT": {Write, r, serve}, "GET": {Write, r, serve}}
}

// routes is the API. The README's table is checked against it.
func routes() []route {
	return slices.Concat(agentRoutes(), catalogRoutes(), storeRoutes(), operatorRoutes(), aclRoutes(), ownRoutes())
}

func agentRoutes() []route {
	return []route{
		{"/v1/agent/self", get(onThis(acl.Agent, acl.Read), (*Server).agentSelf)},
		{"/v1/agent/members", get(inside, (*Server).agentMembers)},
		{"/v1/agent/services", get(inside, (*Server).agentServices)},
		{"/v1/agent/service/register", put(Write, inside, (*Server).registerService)},
		{"/v1/agent/service/deregister/", old(onService(acl.Write), (*Server).deregisterService)},
		{"/v1/agent/service/maintenance/", put(Write, onService(acl.Write), (*Server).agentServiceMaintenance)},
		{"/v1/agent/maintenance", put(Write, onThis(acl.Node, acl.Write), (*Server).agentMaintenance)},
		{"/v1/agent/service/", get(onService(acl.Read), (*Server).agentService)},
		{"/v1/agent/checks", get(inside, (*Server).agentChecks)},
		{"/v1/agent/check/register", put(Write, inside, (*Server).registerCheck)},
		{"/v1/agent/check/deregister/", old(onCheck, (*Server).deregisterCheck)},
		{"/v1/agent/check/pass/", old(onCheck, (*Server).passCheck)},
		{"/v1/agent/check/warn/", old(onCheck, (*Server).warnCheck)},
		{"/v1/agent/check/fail/", old(onCheck, (*Server).failCheck)},
		{"/v1/agent/check/update/", put(Write, onCheck, (*Server).updateCheck)},
		{"/v1/agent/health/service/name/", get(on(acl.Service, acl.Read), (*Server).agentHealthByName)},
		{"/v1/agent/health/service/id/", get(onService(acl.Read), (*Server).agentHealthByID)},
		{"/v1/agent/join/", put(Operate, onThis(acl.Agent, acl.Write), (*Server).join)},
		{"/v1/agent/leave", put(Operate, onThis(acl.Agent, acl.Write), (*Server).leave)},
		{"/v1/agent/force-leave/", put(Operate, to(acl.Operator, acl.Write), (*Server).forceLeave)},
		{"/v1/agent/reload", put(Operate, onThis(acl.Agent, acl.Write), (*Server).agentReload)},
		{"/v1/agent/monitor", methods{"GET": {Operate, onThis(acl.Agent, acl.Read), (*Server).agentMonitor}}},
		{"/v1/event/fire/", put(Write, on(acl.Event, acl.Write), (*Server).eventFire)},
		{"/v1/event/list", get(inside, (*Server).eventList)},
		{"/v1/agent/metrics", get(onThis(acl.Agent, acl.Read), (*Server).agentMetrics)},
	}
}

func catalogRoutes() []route {
	return []route{
		{"/v1/catalog/datacenters", get(anyToken, (*Server).catalogDatacenters)},
		{"/v1/catalog/nodes", get(inside, (*Server).catalogNodes)},
		{"/v1/catalog/services", get(inside, (*Server).catalogServices)},
		{"/v1/catalog/service/", get(inside, (*Server).catalogService)},
		{"/v1/catalog/node/", get(inside, (*Server).catalogNode)},
		{"/v1/catalog/node-services/", get(inside, (*Server).catalogNodeServices)},
		{"/v1/catalog/register", put(Write, inside, (*Server).catalogRegister)},
		{"/v1/catalog/deregister", put(Write, inside, (*Server).catalogDeregister)},

		{"/v1/health/service/", get(inside, (*Server).healthService)},
		{"/v1/health/node/", get(inside, (*Server).healthNode)},
		{"/v1/health/checks/", get(inside, (*Server).healthChecks)},
		{"/v1/health/state/", get(inside, (*Server).healthState)},
	}
}

func storeRoutes() []route {
	return []route{
		{"/v1/kv/", methods{
			"GET":    {Read, inside, (*Server).kvGet},
			"PUT":    {Write, on(acl.Key, acl.Write), (*Server).kvPut},
			"DELETE": {Write, inside, (*Server).kvDelete},
		}},
		{"/v1/session/create", put(Write, inside, (*Server).sessionCreate)},
		{"/v1/session/destroy/", put(Write, onSession(acl.Write), (*Server).sessionDestroy)},
		{"/v1/session/renew/", put(Write, onSession(acl.Write), (*Server).sessionRenew)},
		{"/v1/session/info/", get(inside, (*Server).sessionInfo)},
		{"/v1/session/node/", get(inside, (*Server).sessionNode)},
		{"/v1/session/list", get(inside, (*Server).sessionList)},
		{"/v1/txn", put(Write, inside, (*Server).txn)},
	}
}

func operatorRoutes() []route {
	look, change := to(acl.Operator, acl.Read), to(acl.Operator, acl.Write)
	keys := endpoint{Operate, to(acl.Keyring, acl.Write), (*Server).keyring}
	transfer := endpoint{Operate, to(acl.Operator, acl.Write), (*Server).raftTransferLeader}
	return []route{
		{"/v1/status/leader", get(anyToken, (*Server).statusLeader)},
		{"/v1/status/peers", get(anyToken, (*Server).statusPeers)},

		{"/v1/operator/raft/configuration", get(to(acl.Operator, acl.Read), (*Server).raftConfiguration)},
		{"/v1/operator/raft/peer", methods{"DELETE": {Operate, to(acl.Operator, acl.Write), (*Server).raftRemovePeer}}},
		{"/v1/operator/raft/transfer-leader", methods{"POST": transfer, "PUT": transfer}},
		{"/v1/operator/autopilot/configuration", methods{
			"GET": {Read, look, (*Server).autopilotConfiguration}, "PUT": {Operate, change, (*Server).autopilotConfigure},
		}},
		{"/v1/operator/autopilot/health", get(look, (*Server).autopilotHealth)},
		{"/v1/operator/autopilot/state", get(look, (*Server).autopilotState)},
		{"/v1/operator/usage", get(look, (*Server).operatorUsage)},
		{"/v1/operator/keyring", methods{
			"GET":  {Operate, to(acl.Keyring, acl.Read), (*Server).keyring},
			"POST": keys, "PUT": keys, "DELETE": keys,
		}},
		{"/v1/snapshot", methods{
			"GET": {Operate, to(acl.ACL, acl.Write), (*Server).snapshotSave}, // it holds everything
			"PUT": {Operate, to(acl.ACL, acl.Write), (*Server).snapshotRestore},
		}},
	}
}

// aclRoutes are open to who may do everything, and to tokens that say so: a
// program of this machine that may write keys must not make tokens.
func aclRoutes() []route {
	read, write := to(acl.ACL, acl.Read), to(acl.ACL, acl.Write)
	return []route{
		{"/v1/acl/bootstrap", methods{"PUT": {Operate, write, (*Server).aclBootstrap}}},
		{"/v1/acl/token/self", get(anyToken, (*Server).aclTokenSelf)},
		{"/v1/acl/tokens", methods{"GET": {Operate, read, (*Server).aclTokens}}},
		{"/v1/acl/token", methods{"PUT": {Operate, write, (*Server).aclTokenCreate}}},
		{"/v1/acl/token/", methods{
			"GET":    {Operate, read, (*Server).aclTokenRead},
			"PUT":    {Operate, write, (*Server).aclTokenUpdate},
			"DELETE": {Operate, write, (*Server).aclTokenDelete},
		}},
		{"/v1/acl/policies", methods{"GET": {Operate, read, (*Server).aclPolicies}}},
		{"/v1/acl/policy", methods{"PUT": {Operate, write, (*Server).aclPolicyCreate}}},
		{"/v1/acl/policy/name/", methods{"GET": {Operate, read, (*Server).aclPolicyByName}}},
		{"/v1/acl/policy/", methods{
			"GET":    {Operate, read, (*Server).aclPolicyRead},
			"PUT":    {Operate, write, (*Server).aclPolicyUpdate},
			"DELETE": {Operate, write, (*Server).aclPolicyDelete},
		}},
	}
}

func ownRoutes() []route {
	look, change := to(acl.Operator, acl.Read), to(acl.Operator, acl.Write)
	return []route{
		{"/v1/holdfast/status", get(look, (*Server).holdfastStatus)},
		{"/v1/holdfast/raft", get(look, (*Server).holdfastRaft)},
		{"/v1/holdfast/conditions", get(onThis(acl.Agent, acl.Read), (*Server).holdfastConditions)},
		{"/v1/holdfast/config", get(onThis(acl.Agent, acl.Read), (*Server).holdfastConfig)},
		{recentLogPath, methods{"GET": {Operate, onThis(acl.Agent, acl.Read), (*Server).recentLog}}},
		{pprofPath, methods{"GET": {Operate, onThis(acl.Agent, acl.Write), (*Server).profile}}},
		{explainPath, get(on(acl.Service, acl.Read), (*Server).explain)},
		{joinPath, methods{"POST": {None, anyToken, (*Server).joinNode}}},
		{joinCAPath, methods{"GET": {None, anyToken, (*Server).joinCA}}},
		{joinTokensPath, methods{
			"GET":  {Operate, to(acl.ACL, acl.Read), (*Server).joinTokens},
			"POST": {Operate, to(acl.ACL, acl.Write), (*Server).joinTokenCreate},
		}},
		{joinTokensPath + "/", methods{"DELETE": {Operate, to(acl.ACL, acl.Write), (*Server).joinTokenDelete}}},
		{storePath, methods{"GET": {Read, look, (*Server).storeOperation}, "POST": {Operate, change, (*Server).storeOperation}}},
		{vipHoldPath, methods{"POST": {Operate, change, (*Server).holdfastVIP}}},
		{vipLeavePath, methods{"POST": {Operate, change, (*Server).holdfastVIP}}},
		{vipPath, methods{"GET": {Read, look, (*Server).holdfastVIP}, "POST": {Operate, change, (*Server).holdfastVIP}}},
		{logsPath, methods{"GET": {Operate, look, (*Server).holdfastLogs}, "POST": {Operate, change, (*Server).holdfastLogs}}},
		{"/v1/holdfast/config/reload", methods{"POST": {Operate, onThis(acl.Agent, acl.Write), (*Server).holdfastReload}}},
	}
}

// withheld are the paths of what an agent that follows a server does not have.
func withheld() []string {
	return []string{"/v1/kv/", "/v1/session/", "/v1/txn", "/v1/snapshot", "/v1/acl/", "/v1/operator/raft/", "/v1/operator/autopilot/", joinPath, joinTokensPath, storePath}
}

// omission is what paths of Consul that begin so are not here for.
type omission struct{ prefix, why string }

// notOffered says why, for paths of Consul that we leave out.
func notOffered() []omission {
	return []omission{
		{"/v1/query", "prepared queries are not offered"},
		{"/v1/acl/", "of ACLs, tokens and policies are offered; roles, auth methods and binding rules are not"},
		{"/v1/connect/", "the service mesh is not offered"},
		{"/v1/agent/connect/", "the service mesh is not offered"},
		{"/v1/catalog/connect/", "the service mesh is not offered"},
		{"/v1/health/connect/", "the service mesh is not offered"},
		{"/v1/health/ingress/", "the service mesh is not offered"},
		{"/v1/catalog/gateway-services/", "the service mesh is not offered"},
		{"/v1/discovery-chain/", "the service mesh is not offered"},
		{"/v1/config", "configuration entries are not offered: the cluster file is the configuration"},
		{"/v1/peering", "cluster peering is not offered"},
		{"/v1/coordinate/", "network coordinates are not offered: a cluster is one room"},
		{"/v1/internal/", "Consul's own interface is not offered"},
		{"/v1/agent/token/", "the agent needs no token of its own: it has its certificate"},
		{"/v1/operator/area", "there is one cluster, and no areas"},
		{"/v1/operator/segment", "there is one network of the gossip"},
		{"/v1/operator/license", "there is no license to keep"},
		{"/v1/operator/feature", "feature levels are raised by holdfast operator feature-level raise"},
		{"/v1/operator/audit-hash", "there is no audit log of Consul's kind"},
		{"/v1/operator/utilization", "see /v1/operator/usage and /v1/agent/metrics"},
		{"/v1/exported-services", "cluster peering is not offered"},
		{"/v1/imported-services", "cluster peering is not offered"},
		{"/v1/namespace", "there is only the default namespace"},
		{"/v1/partition", "there is only the default partition"},
		{"/v1/resource", "Consul's resources are not offered"},
		{"/v1/exec", "remote execution is not offered"},
		{"/v1/agent/host", "what the machine is, is told by its own tools"},
		{"/v1/agent/version", "see /v1/agent/self"},
	}
}

// routeTable finds the route of a path.
type routeTable struct {
	exact    map[string]route
	prefixes []route // the longest first
	without  []omission
}

func newRouteTable(all []route) *routeTable {
	table := &routeTable{exact: map[string]route{}, without: notOffered()}
	for _, r := range all {
		if strings.HasSuffix(r.path, "/") {
			table.prefixes = append(table.prefixes, r)
		} else {
			table.exact[r.path] = r
		}
	}
	slices.SortStableFunc(table.prefixes, func(a, b route) int { return len(b.path) - len(a.path) })
	return table
}

// find does not clean the path as http.ServeMux does: "a//b" and "../c" are
// keys like any other.
func (t *routeTable) find(path string) (found route, rest string, ok bool) {
	if r, ok := t.exact[path]; ok {
		return r, "", true
	}
	for _, r := range t.prefixes {
		if rest, ok := strings.CutPrefix(path, r.path); ok {
			return r, rest, true
		}
	}
	return route{}, "", false
}

// handler answers the requests of one listener. stop ends blocking queries.
func (s *Server) handler(from origin, stop <-chan struct{}) http.Handler {
	return s.parking(from, stop, nil)
}

// parking is a handler whose blocking queries wait in a lot; nil: in the handler.
func (s *Server) parking(from origin, stop <-chan struct{}, waiting *lot) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{Request: r, w: &recorder{ResponseWriter: w, streams: r.ProtoMajor == 2}, from: from, stop: stop, lot: waiting}
		if back := served(r); back != nil {
			r.TLS, c.place = back.tls, back.resume()
		}
		s.dispatch(c)
	})
}

// dispatch finds the endpoint, lets it answer and counts.
func (s *Server) dispatch(c *call) {
	began := s.now()
	c.w.wait()
	if c.ContentLength != 0 {
		c.hurry(bodyTimeout) // also where nobody reads it
	}
	found, rest, known := s.routes.find(c.URL.Path)
	name := found.path
	if !known {
		name = "other"
	}
	c.rest = rest
	err := s.answer(c, found, known)
	if c.parked {
		return
	}
	defer c.w.extend(writeTimeout)
	c.place.leave("refused") // it came back, and did not get as far as to its answer
	code := "none"
	if !c.unanswerable(err) {
		if err != nil {
			s.fail(c, err)
		}
		code = strconv.Itoa(c.w.status())
	}
	if !c.blocked {
		s.metrics.duration.WithLabelValues(name).Observe(s.now().Sub(began).Seconds())
	}
	s.metrics.requests.WithLabelValues(name, methodLabel(c.Method), code).Inc()
	if code == "none" {
		panic(http.ErrAbortHandler) // net/http's way to break a connection off
	}
}

// answer checks what holds for every request, then calls the endpoint.
func (s *Server) answer(c *call, found route, known bool) error {
	if len(c.RequestURI) > maxURL {
		return s.refuse(&refusal{http.StatusRequestURITooLong, "url", fmt.Sprintf("the URL has %d bytes; at most %d", len(c.RequestURI), maxURL)})
	}
	who, refused := s.authorize(c.Request, c.from)
	if refused != nil && (s.fromNode(c, found) || s.fromServer(c, found)) {
		who, refused = caller{access: Operate}, nil
	}
	if refused != nil && s.open(c, found) {
		who, refused = caller{access: None}, nil
	}
	if refused != nil {
		return s.refuse(refused)
	}
	if err := s.routes.missing(c.URL.Path, found, known); err != nil {
		return err
	}
	if s.config.Elsewhere != "" && slices.ContainsFunc(withheld(), func(p string) bool { return strings.HasPrefix(c.URL.Path, p) }) {
		return fault(http.StatusNotImplemented, "%s", s.config.Elsewhere)
	}
	method := c.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	e, ok := found.methods[method]
	if !ok {
		allowed := strings.Join(sortedKeys(found.methods), ",")
		c.w.Header().Set("Allow", allowed)
		return fault(http.StatusMethodNotAllowed, "method %s not allowed: this path takes %s", c.Method, allowed)
	}
	if who.rights == nil && who.access < e.needs {
		return s.refuse(&refusal{http.StatusForbidden, "access", fmt.Sprintf(
			"Permission denied: %s %s needs the right to %s: ask over the admin socket, or show the token", method, found.path, e.needs)})
	}
	if err := c.parse(s.config.Datacenter); err != nil {
		return err
	}
	c.who, c.rule = who, e.rule
	if err := s.ask(c, e); err != nil {
		return err
	}
	var err error
	if c.filter, err = parseFilter(c.args.Get("filter"), found.path); err != nil {
		return err
	}
	return e.serve(s, c)
}

// ask puts an endpoint's rule to a caller with a token.
func (s *Server) ask(c *call, e endpoint) error {
	switch {
	case c.who.rights == nil:
		return nil
	case e.rule == nil:
		return s.refuse(&refusal{http.StatusForbidden, "acl", "Permission denied: tokens have no way here"})
	default:
		return e.rule(s, c)
	}
}

// refuse counts a refusal and makes the error of it.
func (s *Server) refuse(r *refusal) error {
	s.metrics.refused.WithLabelValues(r.reason).Inc()
	return &statusError{status: r.status, text: r.text}
}

// missing makes the error for a path that is not offered: one that no route
// takes, or that stands out of a route's ("maintenance/" of "service/").
func (t *routeTable) missing(path string, found route, known bool) error {
	for _, m := range t.without {
		if strings.HasPrefix(path, m.prefix) && len(m.prefix) > len(found.path) {
			return fault(http.StatusNotFound, "%s: %s", path, m.why)
		}
	}
	if !known {
		return fault(http.StatusNotFound, "Invalid URL path: not a recognized HTTP API endpoint")
	}
	return nil
}

// methodLabel bounds the metric's label to methods that exist.
func methodLabel(method string) string {
	switch method {
	case "GET", "PUT", "POST", "DELETE", "HEAD":
		return method
	default:
		return "other"
	}
}
