// Package cluster reads the cluster file: one YAML document, the same on every
// node, that says what the cluster is. It knows names, nodes, networks and
// addresses; what a service makes of its section is the service's own.
package cluster

import (
	"net/netip"
	"slices"
	"time"
)

// File is a cluster file that was read, expanded and found valid. It is
// immutable.
type File struct {
	Path          string // where it was read from, for messages
	Sum           string // hex SHA-256 of its bytes
	Schema        int
	Name          string // of the cluster
	Domain        string // the cluster's DNS zone, lower case, no trailing dot
	VirtualDomain string // where service.VirtualDomain lives; "virtual" unless said
	Networks      []Network
	Nodes         []Node // in the order of the file, node sets expanded
	Roles         []Role
	VIPs          []VIP
	Services      []Service

	NamePrefix string // every node's name begins with it; "" no convention

	sections     map[string]*value
	sectionNames []string       // in the order of the file
	nodeAt       map[string]int // index into Nodes
	partial      bool           // nodes or roles were lost to mistakes
	single       bool           // made by Single: its node is this host
}

// Network is a layer-3 network of the cluster. The first network of the file
// is the main one: a node's own name and FQDN live there.
type Network struct {
	Name      string
	Prefix    netip.Prefix // masked
	Hostname  string       // pattern such as "mgt{node}"; "{node}" for the main network; "" no names
	Interface string       // "" means the one that holds the node's address
	Gateway   netip.Addr   // zero: none
}

// Node is one machine.
type Node struct {
	Name      string
	Role      string
	Addresses map[string]netip.Addr // by network
	Hostnames map[string]string     // by network, expanded; only where it has an address and a name
	MAC       map[string]string     // by network; lower case, colons
	BMC       *BMC
}

// BMC is a node's management controller.
type BMC struct {
	Address     netip.Addr
	Hostname    string
	Credentials SecretRef
}

// SecretRef points at a secret; secrets never stand in the cluster file.
type SecretRef struct {
	File string `yaml:"file" json:"file"` // absolute path
}

// Role is what the nodes of a role run.
type Role struct {
	Name     string
	Voters   int      // > 0: its nodes are servers (take part in Raft), so many of them vote; odd
	Run      []string // units beside core
	Agent    bool     // false: clients only, no daemon; true unless said
	Diskless bool
}

// VIP is a virtual IP address.
type VIP struct {
	Name         string
	Network      string
	Address      netip.Addr
	Hostname     string // in DNS; "" none
	VRID         int    // 1–255
	Prefer       string // node; "" none
	Members      []string
	Version      int           // 2 or 3; 3 unless said
	Advertise    time.Duration // 10 ms – 40.95 s; 1 s unless said
	PreemptDelay time.Duration
	Track        []string
	VRRP         Section // for vrrp, which decodes it: the VIP's own keys over those of vip_defaults; zero: none
}

// Service is what VirtualDomain answers beside Holdfast's own services. Its
// check stands undecoded in Check, for internal/check by way of discovery.
type Service struct {
	Name    string
	On      []string // node names, expanded
	Port    uint16
	Tags    []string
	Address netip.Addr // zero: the node's
	TTL     time.Duration
	Check   Section // zero: none
}

// Main is the main network. It is never nil.
func (f *File) Main() *Network {
	if len(f.Networks) == 0 {
		return &Network{}
	}
	return &f.Networks[0]
}

// Node finds a node by name; nil when absent.
func (f *File) Node(name string) *Node {
	if f.nodeAt != nil {
		if i, ok := f.nodeAt[name]; ok {
			return &f.Nodes[i]
		}
		return nil
	}
	for i := range f.Nodes {
		if f.Nodes[i].Name == name {
			return &f.Nodes[i]
		}
	}
	return nil
}

// Network finds a network by name; nil when absent.
func (f *File) Network(name string) *Network {
	for i := range f.Networks {
		if f.Networks[i].Name == name {
			return &f.Networks[i]
		}
	}
	return nil
}

// Role finds a role by name; nil when absent.
func (f *File) Role(name string) *Role {
	for i := range f.Roles {
		if f.Roles[i].Name == name {
			return &f.Roles[i]
		}
	}
	return nil
}

// VIP finds a virtual IP address by name; nil when absent.
func (f *File) VIP(name string) *VIP {
	for i := range f.VIPs {
		if f.VIPs[i].Name == name {
			return &f.VIPs[i]
		}
	}
	return nil
}

// serverRole is the role whose nodes are the servers; nil when none is.
func (f *File) serverRole() *Role {
	for i := range f.Roles {
		if f.Roles[i].Voters > 0 {
			return &f.Roles[i]
		}
	}
	return nil
}

// Servers lists the nodes whose role has voters, in the order of the file.
func (f *File) Servers() []Node {
	role := f.serverRole()
	if role == nil {
		return nil
	}
	var servers []Node
	for _, n := range f.Nodes {
		if n.Role == role.Name {
			servers = append(servers, n)
		}
	}
	return servers
}

// Voters is how many of the servers vote.
func (f *File) Voters() int {
	if role := f.serverRole(); role != nil {
		return role.Voters
	}
	return 0
}

// ServicesOn lists the services of a node.
func (f *File) ServicesOn(node string) []Service {
	var services []Service
	for _, svc := range f.Services {
		if slices.Contains(svc.On, node) {
			services = append(services, svc)
		}
	}
	return services
}

// Expand lists the nodes of a node set, in which "@role" stands for the nodes
// of a role and "@*" for every node. A name that is no node is an error.
func (f *File) Expand(set string) ([]string, error) {
	names, err := Expand(set, f.group)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if f.Node(name) == nil {
			return nil, &unknownName{"node", name, nodeNames(f.Nodes)}
		}
	}
	return names, nil
}

// Section returns a top-level key that cluster itself does not know ("dns",
// "lb" ...); the zero Section when the file has none.
func (f *File) Section(name string) Section {
	v := f.sections[name]
	if v == nil {
		return Section{}
	}
	return Section{v: v, f: f}
}
