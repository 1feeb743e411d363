// Package cluster reads the cluster file: one YAML document, the same on every
// node, that says what the cluster is. It knows names, nodes, networks and
// addresses; what a service makes of its section is the service's own.
package cluster

import (
	"net/netip"
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

	// unexported: sections, indexes by name
}

// Network is a layer-3 network of the cluster. The first network of the file
// is the main one: a node's own name and FQDN live there.
type Network struct {
	Name      string
	Prefix    netip.Prefix // masked
	Hostname  string       // pattern such as "mgt{node}"; "{node}" for the main network
	Interface string       // "" means the one that holds the node's address
	Gateway   netip.Addr   // zero: none
}

// Node is one machine.
type Node struct {
	Name      string
	Role      string
	Addresses map[string]netip.Addr // by network
	Hostnames map[string]string     // by network, expanded
	MAC       map[string]string     // by network
	BMC       *BMC
}

// BMC is a node's management controller.
type BMC struct {
	Address     netip.Addr
	Hostname    string
	Credentials SecretRef
}

// SecretRef points at a secret; secrets never stand in the cluster file.
type SecretRef struct{ File string }

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

// Main is the main network.
func (f *File) Main() *Network { panic("being built") }

// Node finds a node by name; nil when absent.
func (f *File) Node(name string) *Node { panic("being built") }

// Role finds a role by name; nil when absent.
func (f *File) Role(name string) *Role { panic("being built") }

// Servers lists the nodes whose role has voters, in the order of the file.
func (f *File) Servers() []Node { panic("being built") }

// Voters is how many of the servers vote.
func (f *File) Voters() int { panic("being built") }

// ServicesOn lists the services of a node.
func (f *File) ServicesOn(node string) []Service { panic("being built") }

// Section returns a top-level key that cluster itself does not know ("dns",
// "lb" ...); the zero Section when the file has none.
func (f *File) Section(name string) Section { panic("being built") }

// Section is a part of the file that its owner decodes.
type Section struct{ _ int }

// IsZero tells whether the file lacks the section.
func (s Section) IsZero() bool { panic("being built") }

// Decode fills v, a pointer to a struct with yaml tags, strictly: an unknown
// key or a wrong type is an Errors with positions. Durations ("10s"), sizes, netip types
// and []string for node sets are understood.
func (s Section) Decode(v any) error { panic("being built") }

// Errorf makes an error that stands at a key of the section ("" the section
// itself, "forward" or "records[2].name" below it).
func (s Section) Errorf(key, format string, args ...any) *Error { panic("being built") }

// Error is one mistake in a cluster file.
type Error struct {
	File         string
	Line, Column int // from 1; 0 unknown
	Message      string
}

// Error gives "file:line:column: message".
func (e *Error) Error() string { panic("being built") }

// Errors is every mistake found, in the order of the file.
type Errors []*Error

// Error gives one line a mistake.
func (e Errors) Error() string { panic("being built") }

// SectionValidator checks the section of one service.
type SectionValidator func(*File, Section) error

// Parse reads a cluster file. sections names the top-level keys that belong
// to services; every other key is an error. All mistakes are returned at
// once, as Errors.
func Parse(path string, data []byte, sections map[string]SectionValidator) (*File, error) {
	panic("being built")
}

// Load reads and parses the file at path.
func Load(path string, sections map[string]SectionValidator) (*File, error) {
	panic("being built")
}

// Single is the cluster of one node with no file at all: the embedded default.
func Single(node string, addr netip.Addr) *File { panic("being built") }
