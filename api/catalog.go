package api

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"holdfast/api/acl"
	"holdfast/internal/state"
)

func (s *Server) catalogDatacenters(c *call) error {
	return s.reply(c, []string{s.config.Datacenter})
}

func (s *Server) catalogNodes(c *call) error {
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		nodes, index := snap.Nodes(ws)
		found := []nodeJSON{}
		for _, n := range nodes {
			if hasMeta(n, c.read.nodeMeta) && c.sees(acl.Node, n.Name) {
				found = append(found, s.nodeJSON(n))
			}
		}
		return answer{value: kept(c.filter, found), index: index}
	})
}

func (s *Server) catalogServices(c *call) error {
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		if c.filter != nil {
			return s.filteredServices(c, snap, ws)
		}
		names, index := snap.ServiceNames(ws)
		if len(c.read.nodeMeta) == 0 {
			return answer{value: c.visibleNames(names), index: index}
		}
		nodes, moved := snap.Nodes(ws)
		found := map[string][]string{}
		for _, n := range nodes {
			if !hasMeta(n, c.read.nodeMeta) {
				continue
			}
			services, _ := snap.NodeServices(nil, n.Name) // ServiceNames watches them all
			for _, svc := range services {
				tags := append(list(found[svc.Name]), svc.Tags...)
				slices.Sort(tags)
				found[svc.Name] = slices.Compact(tags)
			}
		}
		return answer{value: c.visibleNames(found), index: max(index, moved)}
	})
}

// visibleNames leaves out the services that the caller may not see. names is
// shared and not changed.
func (c *call) visibleNames(names map[string][]string) map[string][]string {
	if c.who.rights == nil {
		return names
	}
	found := map[string][]string{}
	for name, tags := range names {
		if c.sees(acl.Service, name) {
			found[name] = tags
		}
	}
	return found
}

func (s *Server) catalogService(c *call) error {
	name, err := c.name("service name")
	if err != nil {
		return err
	}
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		instances, index := snap.Instances(ws, name)
		found := []catalogServiceJSON{}
		for _, i := range instances {
			if c.wants(i) {
				found = append(found, s.catalogServiceOf(i))
			}
		}
		return answer{value: kept(c.filter, found), index: index}
	})
}

// wants applies the filters that service queries share: ?node-meta and ?tag,
// all of which an instance must have, and what the caller may see.
func (c *call) wants(i state.Instance) bool {
	if !hasMeta(i.Node, c.read.nodeMeta) || !c.seesInstance(i) {
		return false
	}
	for _, tag := range c.args["tag"] {
		has := func(own string) bool { return strings.EqualFold(own, tag) }
		if tag != "" && !slices.ContainsFunc(i.Service.Tags, has) {
			return false
		}
	}
	return true
}

func hasMeta(n *state.Node, wanted map[string]string) bool {
	for key, value := range wanted {
		if n.Meta[key] != value {
			return false
		}
	}
	return true
}

func (s *Server) catalogNode(c *call) error {
	name, err := c.name("node name")
	if err != nil {
		return err
	}
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		node, services, index := nodeAndServices(snap, ws, name)
		if node == nil || !c.sees(acl.Node, node.Name) {
			return answer{value: nil, index: index} // Consul's answer, too, is 200 with null
		}
		byID := map[string]serviceJSON{}
		for _, svc := range visible(services, c.seesService) {
			byID[svc.ID] = serviceOf(svc)
		}
		return answer{index: index, value: struct {
			Node     nodeJSON
			Services map[string]serviceJSON
		}{s.nodeJSON(node), keptIn(c.filter, byID)}}
	})
}

func (s *Server) catalogNodeServices(c *call) error {
	name, err := c.name("node name")
	if err != nil {
		return err
	}
	type listJSON struct {
		Node     *nodeJSON
		Services []serviceJSON
	}
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		node, services, index := nodeAndServices(snap, ws, name)
		found := listJSON{Services: []serviceJSON{}}
		if node == nil || !c.sees(acl.Node, node.Name) {
			return answer{value: found, index: index}
		}
		own := s.nodeJSON(node)
		found.Node = &own
		for _, svc := range visible(services, c.seesService) {
			found.Services = append(found.Services, serviceOf(svc))
		}
		found.Services = kept(c.filter, found.Services)
		return answer{value: found, index: index}
	})
}

func nodeAndServices(snap *state.Snapshot, ws state.WatchSet, name string) (*state.Node, []*state.Service, uint64) {
	node, index := snap.Node(ws, name)
	services, moved := snap.NodeServices(ws, name)
	return node, services, max(index, moved)
}

// catalogRegistration is the body of /v1/catalog/register: a node from
// outside, whose checks somebody else makes.
type catalogRegistration struct {
	ID             string
	Node           string
	Address        string
	NodeMeta       map[string]string
	Datacenter     string
	SkipNodeUpdate bool
	Service        *catalogServiceBody
	Check          *catalogCheckBody
	Checks         []catalogCheckBody
}

type catalogServiceBody struct {
	ID      string
	Service string
	Tags    []string
	Address string
	Port    int
	Meta    map[string]string
	Weights *weightsJSON
	Kind    string
}

type catalogCheckBody struct {
	Node      string
	CheckID   string
	Name      string
	Status    string
	Notes     string
	Output    string
	ServiceID string
	Type      string
}

func (s *Server) catalogRegister(c *call) error {
	var body catalogRegistration
	if err := s.decode(c, &body); err != nil {
		return err
	}
	if err := s.ownDatacenter(body.Datacenter); err != nil {
		return err
	}
	command, err := body.command(s.state.Snapshot())
	if err != nil {
		return err
	}
	if err := s.permitRegister(c, command, body.SkipNodeUpdate); err != nil {
		return err
	}
	if _, err := s.propose(c, command); err != nil {
		return err
	}
	return s.reply(c, true)
}

func (s *Server) ownDatacenter(given string) error {
	if given != "" && !strings.EqualFold(given, s.config.Datacenter) {
		return fault(http.StatusInternalServerError, "No path to datacenter")
	}
	return nil
}

// command translates the registration. The node is taken from the snapshot
// where the caller doesn't want it changed.
func (b *catalogRegistration) command(snap *state.Snapshot) (state.Register, error) {
	var command state.Register
	if b.Node == "" {
		return command, fault(http.StatusBadRequest, "Must provide node name")
	}
	known, _ := snap.Node(nil, b.Node)
	switch {
	case b.SkipNodeUpdate && known != nil:
		command.Node = *known
	case b.Address == "":
		return command, fault(http.StatusBadRequest, "Must provide address if SkipNodeUpdate is not set")
	default:
		address, err := parseAddress(b.Address)
		if err != nil {
			return command, err
		}
		command.Node = state.Node{ID: b.ID, Name: b.Node, Address: address, Meta: b.NodeMeta}
		if b.ID == "" && known != nil {
			command.Node.ID = known.ID // a registration without an ID doesn't take it away
		}
	}
	if b.Service != nil {
		svc, err := b.Service.service()
		if err != nil {
			return command, err
		}
		command.Services = []state.Service{svc}
	}
	checks := b.Checks
	if b.Check != nil {
		checks = append(slices.Clone(checks), *b.Check)
	}
	for _, body := range checks {
		chk, err := body.check(b.Node)
		if err != nil {
			return command, err
		}
		command.Checks = append(command.Checks, chk)
	}
	return command, nil
}

func (b *catalogServiceBody) service() (state.Service, error) {
	if b.Kind != "" {
		return state.Service{}, fault(http.StatusBadRequest, "Service kind %q: the service mesh is not offered", b.Kind)
	}
	return buildService(b.ID, b.Service, b.Tags, b.Address, b.Port, b.Meta, b.Weights)
}

func (b *catalogCheckBody) check(node string) (state.Check, error) {
	if b.Node != "" && !strings.EqualFold(b.Node, node) {
		return state.Check{}, fault(http.StatusBadRequest, "check node %q does not match node %q", b.Node, node)
	}
	status, err := parseStatus(b.Status, state.Critical)
	if err != nil {
		return state.Check{}, err
	}
	id := b.CheckID
	if id == "" {
		id = b.Name
	}
	name := b.Name
	if name == "" {
		name = id
	}
	if id == "" {
		return state.Check{}, fault(http.StatusBadRequest, "Must provide a CheckID or a Name for the check")
	}
	return state.Check{
		ID: id, Name: name, Status: status, Notes: b.Notes, Output: b.Output, ServiceID: b.ServiceID, Type: b.Type,
	}, nil
}

// buildService checks what both kinds of registration say of a service.
func buildService(id, name string, tags []string, address string, port int, meta map[string]string, weights *weightsJSON) (state.Service, error) {
	if name == "" {
		return state.Service{}, fault(http.StatusBadRequest, "Missing service name")
	}
	if id == "" {
		id = name
	}
	if port < 0 || port > 65535 {
		return state.Service{}, fault(http.StatusBadRequest, "Invalid port %d: 0 to 65535", port)
	}
	svc := state.Service{ID: id, Name: name, Tags: tags, Port: uint16(port), Meta: meta}
	if address != "" {
		parsed, err := parseAddress(address)
		if err != nil {
			return state.Service{}, err
		}
		svc.Address = parsed
	}
	if weights != nil {
		if weights.Passing < 0 || weights.Passing > 65535 || weights.Warning < 0 || weights.Warning > 65535 {
			return state.Service{}, fault(http.StatusBadRequest, "Invalid weights %d and %d: 0 to 65535", weights.Passing, weights.Warning)
		}
		svc.Weights = state.Weights{Passing: uint16(weights.Passing), Warning: uint16(weights.Warning)}
	}
	return svc, nil
}

func parseAddress(text string) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err != nil || address.IsUnspecified() || address.Zone() != "" {
		return netip.Addr{}, fault(http.StatusBadRequest, "Invalid service address: %q is not an IP address that others can reach", text)
	}
	return address.Unmap(), nil
}

func parseStatus(text string, otherwise state.Status) (state.Status, error) {
	switch status := state.Status(text); status {
	case "":
		return otherwise, nil
	case state.Passing, state.Warning, state.Critical:
		return status, nil
	default:
		return "", fault(http.StatusBadRequest, "Invalid check status %q: passing, warning or critical", text)
	}
}

func (s *Server) catalogDeregister(c *call) error {
	var body struct{ Node, Datacenter, ServiceID, CheckID string }
	if err := s.decode(c, &body); err != nil {
		return err
	}
	if err := s.ownDatacenter(body.Datacenter); err != nil {
		return err
	}
	if body.Node == "" {
		return fault(http.StatusBadRequest, "Must provide node")
	}
	command := state.Deregister{Node: body.Node}
	switch {
	case body.ServiceID != "":
		command.Services = []string{body.ServiceID}
	case body.CheckID != "":
		command.Checks = []string{body.CheckID}
	}
	if err := s.permitDeregister(c, command); err != nil {
		return err
	}
	if _, err := s.propose(c, command); err != nil {
		return err
	}
	return s.reply(c, true)
}
