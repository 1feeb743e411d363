package state

import "time"

// RaftStatus is what a server knows of the consensus at this moment. The
// store's Raft fills it in and the API serves it; it is here so that neither
// needs to know the other. It is always available, leader or not, and may be
// behind on a server that is cut off.
type RaftStatus struct {
	Node         string            `json:"node"`          // who says so
	State        string            `json:"state"`         // "leader", "follower", "candidate", "shutdown"
	Term         uint64            `json:"term"`          // current Raft term
	LastIndex    uint64            `json:"last_index"`    // last entry in this server's log
	CommitIndex  uint64            `json:"commit_index"`  // last entry known to be on a quorum
	AppliedIndex uint64            `json:"applied_index"` // last entry in this server's state
	Leader       RaftServer        `json:"leader"`        // zero when none is known
	Servers      []RaftServer      `json:"servers"`       // the latest configuration, in its order
	Stats        map[string]string `json:"stats,omitempty"`
}

// RaftServer is one server of the Raft configuration.
type RaftServer struct {
	ID      string `json:"id"`      // UUID of the server's data directory
	Name    string `json:"name"`    // node name; "" when no gossip or certificate told it
	Address string `json:"address"` // host:port of its RPC listener
	Voter   bool   `json:"voter"`   // false: receives the log, has no vote
	Leader  bool   `json:"leader"`

	// What follows only the leader measures; Known says whether it did.
	Known       bool          `json:"known"`
	LastContact time.Duration `json:"last_contact_ns"` // since the server last answered; 0 for the leader itself
	LastIndex   uint64        `json:"last_index"`      // newest entry known to be in its log
}
