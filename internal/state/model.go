package state

import "net/netip"

// The codec tags name fields in the log and in snapshots. They never change; a
// field that goes leaves its tag unused.

// Status is the health of a check, in Consul's words.
type Status string

// The states of a check, from best to worst.
const (
	Passing  Status = "passing"
	Warning  Status = "warning"
	Critical Status = "critical"
)

// SerfHealth is the CheckID of the check that the leader keeps for every
// member of the gossip: passing while the member is alive, critical once it
// has failed.
const SerfHealth = "serfHealth"

// Node is a machine in the catalog.
type Node struct {
	ID      string            `codec:"id"`   // UUID of the agent's data directory; "" for a node registered from outside
	Name    string            `codec:"name"` // unique, compared without regard to case; the first spelling stays
	Address netip.Addr        `codec:"addr"` // required
	Meta    map[string]string `codec:"meta,omitempty"`

	CreateIndex uint64 `codec:"create,omitempty"`
	ModifyIndex uint64 `codec:"modify,omitempty"`
}

// Service is one instance of a service: ID is unique on its node, Name is
// what users ask for.
type Service struct {
	Node    string            `codec:"node"`
	ID      string            `codec:"id"` // unless said: Name
	Name    string            `codec:"name"`
	Tags    []string          `codec:"tags,omitempty"`
	Address netip.Addr        `codec:"addr"` // zero: the node's address
	Port    uint16            `codec:"port"`
	Meta    map[string]string `codec:"meta,omitempty"`
	Weights Weights           `codec:"weights"`

	CreateIndex uint64 `codec:"create,omitempty"`
	ModifyIndex uint64 `codec:"modify,omitempty"`
}

// Weights are the SRV weights (RFC 2782) of an instance, by its health.
// Zero values mean 1.
type Weights struct {
	Passing uint16 `codec:"passing,omitempty"`
	Warning uint16 `codec:"warning,omitempty"`
}

// Check is what the catalog knows of a check. A check with an empty
// ServiceID speaks of its whole node.
type Check struct {
	Node        string   `codec:"node"`
	ID          string   `codec:"id"` // unique on its node; unless said: Name
	Name        string   `codec:"name"`
	Status      Status   `codec:"status"` // unless said: Critical
	Notes       string   `codec:"notes,omitempty"`
	Output      string   `codec:"output,omitempty"` // at most MaxOutput bytes; cut by Apply
	ServiceID   string   `codec:"service,omitempty"`
	ServiceName string   `codec:"service_name,omitempty"` // filled by Apply from the service
	ServiceTags []string `codec:"service_tags,omitempty"` // likewise
	Type        string   `codec:"type,omitempty"`         // "http", "tcp", "ntp", "script", "ttl", "process"; "" unknown

	CreateIndex uint64 `codec:"create,omitempty"`
	ModifyIndex uint64 `codec:"modify,omitempty"`
}

// MaxOutput is the most bytes of a check's output that the catalog keeps.
const MaxOutput = 4 << 10

// Instance is a service on its node with every check that speaks of it:
// the node's own and the service's.
type Instance struct {
	Node    *Node
	Service *Service
	Checks  []*Check
}

// Status is the worst status among the instance's checks; Passing without any.
func (i Instance) Status() Status {
	worst := Passing
	for _, c := range i.Checks {
		switch c.Status {
		case Passing:
		case Warning:
			if worst == Passing {
				worst = Warning
			}
		default:
			return Critical
		}
	}
	return worst
}

// Addr is the address at which the instance is reached.
func (i Instance) Addr() netip.Addr {
	if i.Service.Address.IsValid() {
		return i.Service.Address
	}
	return i.Node.Address
}

// Entry is a key with its value.
type Entry struct {
	Key       string `codec:"key"`   // 1 to MaxKey bytes, of any kind
	Value     []byte `codec:"value"` // at most MaxValue bytes
	Flags     uint64 `codec:"flags,omitempty"`
	LockIndex uint64 `codec:"lock_index,omitempty"`
	Session   string `codec:"session,omitempty"`

	CreateIndex uint64 `codec:"create,omitempty"`
	ModifyIndex uint64 `codec:"modify,omitempty"`
}

// Document is a service's own record: opaque bytes under compare-and-set.
type Document struct {
	Kind  string `codec:"kind"`  // "vrrp/hold", "dns/record" ...
	Key   string `codec:"key"`   // 1 to MaxKey bytes
	Value []byte `codec:"value"` // at most MaxValue bytes

	CreateIndex uint64 `codec:"create,omitempty"`
	ModifyIndex uint64 `codec:"modify,omitempty"`
}

// Liveness is what this node's gossip says of a member at this moment.
type Liveness string

// The states of a member, in Serf's words.
const (
	Alive   Liveness = "alive"
	Leaving Liveness = "leaving"
	Left    Liveness = "left"
	Failed  Liveness = "failed"
)

// Member is one node as this node's own gossip sees it. It is local: no two
// nodes need agree on it, and no index orders it.
type Member struct {
	Name      string
	ID        string // the agent's UUID, new after its disk was wiped
	Address   netip.Addr
	Liveness  Liveness
	Server    bool           // takes part in Raft
	RPC       netip.AddrPort // a server's RPC port
	ClusterID string         // UUID of the store the server belongs to; "" until one was formed or joined
	Version   string         // of the program
	Feature   int            // highest feature level the server offers
	ConfigSum string         // hex SHA-256 of the cluster file it runs
	Tags      map[string]string
}

// Cluster is the one record about the store itself.
type Cluster struct {
	ID      string `codec:"id"`                // UUID given when the store was formed
	Name    string `codec:"name"`              // the cluster file's name when it was formed
	Feature int    `codec:"feature,omitempty"` // the level every command in the log is bound by; never sinks

	CreateIndex uint64 `codec:"create,omitempty"`
	ModifyIndex uint64 `codec:"modify,omitempty"`
}
