// Package discovery knows who is there and what works. Serf's gossip tells
// which nodes are alive; checks tell which services of this node work; both
// become the catalog in the replicated state, which anti-entropy keeps equal
// to what the nodes themselves know.
package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"holdfast/internal/check"
	"holdfast/internal/state"
)

// DefaultPort is where gossip listens, TCP and UDP: Consul's Serf LAN port.
const DefaultPort = 8301

// KeySize is the length of the gossip key in bytes (AES-256).
const KeySize = 32

// Bounds of what goes into the gossip. A member's tags together must fit into
// memberlist's 512 bytes.
const (
	maxClusterName = 63
	maxVersion     = 64
)

// Config says who this node is and whom it looks for.
type Config struct {
	Node    string     // name, unique in the cluster
	NodeID  string     // UUID, see NodeID
	Address netip.Addr // where gossip listens and how others reach it; the node's address in the catalog
	Port    uint16     // DefaultPort unless said

	Server bool           // takes part in Raft
	RPC    netip.AddrPort // a server's RPC address

	Cluster string           // name; members of other clusters are refused
	Join    []netip.AddrPort // whom to look for; this node's own address among them is ignored
	Key     []byte           // gossip key, KeySize bytes; nil only with Insecure
	// Insecure allows gossip in plain text, for labs on one machine.
	Insecure bool

	DataDir   string // exists; discovery keeps its files in it
	Version   string // of the program
	Feature   int    // highest feature level the program offers
	ConfigSum string // hex SHA-256 of the cluster file
	// Timing multiplies all of the gossip's times; 1 unless said, 0.1 to 100.
	Timing float64

	Meta     map[string]string   // of the node, in the catalog
	Services []ServiceDefinition // of the cluster file, for this node
}

// ServiceDefinition is a service of this node and how it is checked.
type ServiceDefinition struct {
	Service state.Service
	Checks  []check.Definition
}

// withDefaults fills in what was not said.
func (c Config) withDefaults() Config {
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.Timing == 0 {
		c.Timing = 1
	}
	c.Address = c.Address.Unmap()
	return c
}

// Validate says everything that is wrong (errors.Join).
func (c Config) Validate() error {
	var wrong []error
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if c.Node == "" || strings.ContainsAny(c.Node, "/ ") {
		add("node name %q: must not be empty nor contain a slash or a space", c.Node)
	}
	if !validUUID(c.NodeID) {
		add("node ID %q: must be a UUID", c.NodeID)
	}
	if !c.Address.IsValid() || c.Address.IsUnspecified() || c.Address.Zone() != "" {
		add("address %s: must be one that the other nodes can reach", c.Address)
	}
	if c.Server && (!c.RPC.IsValid() || c.RPC.Port() == 0) {
		add("RPC address %s: a server needs one, with a port", c.RPC)
	}
	if c.Cluster == "" || len(c.Cluster) > maxClusterName {
		add("cluster name %q: must have 1 to %d bytes", c.Cluster, maxClusterName)
	}
	switch {
	case len(c.Key) == 0 && !c.Insecure:
		add("gossip key: none was given; plain text must be asked for (insecure)")
	case len(c.Key) != 0 && len(c.Key) != KeySize:
		add("gossip key: has %d bytes, must have %d", len(c.Key), KeySize)
	}
	if !filepath.IsAbs(c.DataDir) {
		add("data directory %q: must be an absolute path", c.DataDir)
	}
	if len(c.Version) > maxVersion {
		add("version %q: must have at most %d bytes", c.Version, maxVersion)
	}
	if c.Timing < 0.1 || c.Timing > 100 {
		add("timing %g: must be 0.1 to 100", c.Timing)
	}
	return errors.Join(wrong...)
}

// node is this node's row in the catalog.
func (c Config) node() state.Node {
	return state.Node{ID: c.NodeID, Name: c.Node, Address: c.Address, Meta: c.Meta}
}
