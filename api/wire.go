package api

import (
	"net/netip"

	"holdfast/internal/state"
)

// The JSON of Consul's API (the structs of its api package). Lists and maps
// are never null: clients in other languages trip over that.

type nodeJSON struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	CreateIndex     uint64
	ModifyIndex     uint64
}

type weightsJSON struct {
	Passing int
	Warning int
}

type serviceJSON struct {
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Address           string
	TaggedAddresses   map[string]addressJSON
	Weights           weightsJSON
	EnableTagOverride bool
	Datacenter        string `json:",omitempty"` // of the agent's own services
	CreateIndex       uint64 `json:",omitempty"`
	ModifyIndex       uint64 `json:",omitempty"`
}

type addressJSON struct {
	Address string
	Port    int
}

type checkJSON struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  struct{}
	CreateIndex uint64
	ModifyIndex uint64
}

type catalogServiceJSON struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceID                string
	ServiceName              string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]addressJSON
	ServiceTags              []string
	ServiceMeta              map[string]string
	ServicePort              int
	ServiceWeights           weightsJSON
	ServiceEnableTagOverride bool
	CreateIndex              uint64
	ModifyIndex              uint64
}

// instanceJSON is an element of /v1/health/service.
type instanceJSON struct {
	Node    nodeJSON
	Service serviceJSON
	Checks  []checkJSON
}

type memberJSON struct {
	Name        string
	Addr        string
	Port        uint16
	Tags        map[string]string
	Status      int
	ProtocolMin uint8
	ProtocolMax uint8
	ProtocolCur uint8
	DelegateMin uint8
	DelegateMax uint8
	DelegateCur uint8
}

func (s *Server) nodeJSON(n *state.Node) nodeJSON {
	return nodeJSON{
		ID: n.ID, Node: n.Name, Address: addressText(n.Address), Datacenter: s.config.Datacenter,
		TaggedAddresses: taggedAddresses(n.Address), Meta: orEmpty(n.Meta),
		CreateIndex: n.CreateIndex, ModifyIndex: n.ModifyIndex,
	}
}

func addressText(address netip.Addr) string {
	if !address.IsValid() {
		return ""
	}
	return address.String()
}

// taggedAddresses are what clients look for that can choose a network.
func taggedAddresses(address netip.Addr) map[string]string {
	if !address.IsValid() {
		return map[string]string{}
	}
	family := "lan_ipv4"
	if address.Unmap().Is6() {
		family = "lan_ipv6"
	}
	text := address.String()
	return map[string]string{"lan": text, "wan": text, family: text}
}

func serviceOf(svc *state.Service) serviceJSON {
	return serviceJSON{
		ID: svc.ID, Service: svc.Name, Tags: list(svc.Tags), Meta: orEmpty(svc.Meta),
		Port: int(svc.Port), Address: addressText(svc.Address),
		TaggedAddresses: map[string]addressJSON{}, Weights: weightsOf(svc.Weights),
		CreateIndex: svc.CreateIndex, ModifyIndex: svc.ModifyIndex,
	}
}

func weightsOf(w state.Weights) weightsJSON {
	return weightsJSON{Passing: max(int(w.Passing), 1), Warning: max(int(w.Warning), 1)}
}

func checkOf(c *state.Check) checkJSON {
	return checkJSON{
		Node: c.Node, CheckID: c.ID, Name: c.Name, Status: string(c.Status), Notes: c.Notes, Output: c.Output,
		ServiceID: c.ServiceID, ServiceName: c.ServiceName, ServiceTags: list(c.ServiceTags), Type: c.Type,
		CreateIndex: c.CreateIndex, ModifyIndex: c.ModifyIndex,
	}
}

func checksOf(all []*state.Check) []checkJSON {
	found := make([]checkJSON, 0, len(all))
	for _, c := range all {
		found = append(found, checkOf(c))
	}
	return found
}

func (s *Server) instanceOf(i state.Instance) instanceJSON {
	return instanceJSON{Node: s.nodeJSON(i.Node), Service: serviceOf(i.Service), Checks: checksOf(i.Checks)}
}

func (s *Server) catalogServiceOf(i state.Instance) catalogServiceJSON {
	return catalogServiceJSON{
		ID: i.Node.ID, Node: i.Node.Name, Address: addressText(i.Node.Address), Datacenter: s.config.Datacenter,
		TaggedAddresses: taggedAddresses(i.Node.Address), NodeMeta: orEmpty(i.Node.Meta),
		ServiceID: i.Service.ID, ServiceName: i.Service.Name, ServiceAddress: addressText(i.Service.Address),
		ServiceTaggedAddresses: map[string]addressJSON{}, ServiceTags: list(i.Service.Tags),
		ServiceMeta: orEmpty(i.Service.Meta), ServicePort: int(i.Service.Port), ServiceWeights: weightsOf(i.Service.Weights),
		CreateIndex: i.Service.CreateIndex, ModifyIndex: i.Service.ModifyIndex,
	}
}

// serfStatus gives a member's state its number in Serf's and so Consul's API.
func serfStatus(l state.Liveness) int {
	switch l {
	case state.Alive:
		return 1
	case state.Leaving:
		return 2
	case state.Left:
		return 3
	case state.Failed:
		return 4
	default:
		return 0
	}
}

func (s *Server) memberOf(m state.Member) memberJSON {
	tags := make(map[string]string, len(m.Tags)+6)
	for key, value := range m.Tags {
		tags[key] = value
	}
	tags["role"] = "node"
	if m.Server {
		tags["role"] = "consul" // how clients tell servers
	}
	tags["dc"], tags["id"], tags["build"] = s.config.Datacenter, m.ID, m.Version
	if m.RPC.IsValid() {
		tags["rpc_addr"] = m.RPC.String()
	}
	if m.ConfigSum != "" {
		tags["config_sum"] = m.ConfigSum
	}
	return memberJSON{
		Name: m.Name, Addr: addressText(m.Address), Port: s.config.GossipPort, Tags: tags, Status: serfStatus(m.Liveness),
		ProtocolMin: 1, ProtocolMax: 5, ProtocolCur: 2, DelegateMin: 2, DelegateMax: 5, DelegateCur: 4,
	}
}

// list is never nil.
func list[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}

// orEmpty is never nil.
func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
