// Package state owns the replicated schema: what a cluster's store holds, the
// commands that change it, and the one function, Apply, that carries them out.
//
// Apply is deterministic: every replica that applies the same commands in the
// same order holds the same tables. Raft orders the commands (raftstore), the
// gossip of this node is laid over them (SetMembers), and every consumer reads
// an immutable Snapshot.
//
// Objects that a Snapshot returns are shared and must not be changed.
package state
