package discovery

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/hashicorp/serf/serf"

	"holdfast/internal/state"
)

// What a member says of itself, as Serf's tags. Another version of the program
// may say more or less: what is missing or can't be read is left zero.
const (
	tagCluster = "cluster" // name
	tagID      = "id"      // node's UUID
	tagServer  = "server"  // "1": takes part in Raft
	tagRPC     = "rpc"     // address:port of a server
	tagStore   = "store"   // UUID of the store it belongs to
	tagVersion = "version" // of the program
	tagFeature = "feature" // highest level offered
	tagConfig  = "config"  // hex SHA-256 of the cluster file
)

// encodeTags makes the tags of m, a member of the named cluster.
func encodeTags(cluster string, m state.Member) map[string]string {
	tags := map[string]string{tagCluster: cluster}
	set := func(key, value string) {
		if value != "" {
			tags[key] = value
		}
	}
	set(tagID, m.ID)
	if m.Server {
		set(tagServer, "1")
	}
	if m.RPC.IsValid() {
		set(tagRPC, m.RPC.String())
	}
	set(tagStore, m.ClusterID)
	set(tagVersion, m.Version)
	if m.Feature > 0 {
		set(tagFeature, strconv.Itoa(m.Feature))
	}
	set(tagConfig, m.ConfigSum)
	return tags
}

// decodeTags fills in what tags say of a member.
func decodeTags(m *state.Member, tags map[string]string) {
	m.Tags = tags
	m.ID = tags[tagID]
	m.Server = tags[tagServer] == "1"
	if rpc, err := netip.ParseAddrPort(tags[tagRPC]); err == nil {
		m.RPC = rpc
	}
	m.ClusterID = tags[tagStore]
	m.Version = tags[tagVersion]
	if feature, err := strconv.Atoi(tags[tagFeature]); err == nil && feature > 0 {
		m.Feature = feature
	}
	m.ConfigSum = tags[tagConfig]
}

// member is what the gossip's member means to the rest of the program.
func member(m serf.Member) state.Member {
	address, _ := netip.AddrFromSlice(m.Addr) // zero when malformed; memberlist refuses those
	result := state.Member{Name: m.Name, Address: address.Unmap(), Liveness: liveness(m.Status)}
	decodeTags(&result, m.Tags)
	return result
}

// withoutFormerNames drops failed and left members whose node is alive under
// another name: after it was renamed, Serf remembers it under the old one for
// days, as if it were a node that is missing.
func withoutFormerNames(members []state.Member) []state.Member {
	names := namesOf(members)
	return slices.DeleteFunc(members, func(m state.Member) bool {
		return (m.Liveness == state.Failed || m.Liveness == state.Left) && len(names[m.ID]) > 0 && !slices.Contains(names[m.ID], m.Name)
	})
}

// namesOf gives the names under which each node is alive, by node ID. There is
// one, unless the nodes' data directories are copies of each other.
func namesOf(members []state.Member) map[string][]string {
	names := map[string][]string{}
	for _, m := range members {
		if m.Liveness == state.Alive && m.ID != "" {
			names[m.ID] = append(names[m.ID], m.Name)
		}
	}
	return names
}

func liveness(s serf.MemberStatus) state.Liveness {
	switch s {
	case serf.StatusAlive:
		return state.Alive
	case serf.StatusLeaving:
		return state.Leaving
	case serf.StatusLeft:
		return state.Left
	}
	return state.Failed
}
