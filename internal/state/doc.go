// Package state owns the replicated schema: what a cluster's store holds, the
// commands that change it, and the one function, Apply, that carries them out.
//
// Apply is deterministic: every replica that applies the same commands in the
// same order holds the same tables, down to the bytes of a snapshot. Raft orders
// the commands (raftstore), the gossip of this node is laid over them
// (SetMembers), and every consumer reads an immutable Snapshot.
//
// # How it hangs together
//
// A Store is a go-memdb database behind an atomic pointer to the latest
// Snapshot. A writer (Apply, ApplyBatch, Restore, SetMembers, Touch; one at a
// time) makes the next Snapshot, notes in a journal which keys changed, swaps the
// pointer and closes the channel of the one before. A reader never waits for a
// writer.
//
//	model.go, command.go  what there is, and what can be done to it
//	state.go, raft.go     the types that consumers share
//	apply.go, tables.go   a command, and the rows it writes
//	batch.go              commands that are published together
//	valid.go              what a row may be
//	index.go              the index of each answer; tombstones and their end
//	query.go, gossip.go   what a Snapshot answers
//	store.go              versions, Changed and Since
//	codec.go, msgpack.go  commands as bytes, errors across a connection
//	persist.go, restore.go  snapshots as a stream
//	part.go               what of it other units may see, and follow
//
// # Three ways to follow it
//
// Who answers one question and must answer again when the answer changes (a
// blocking query) passes a WatchSet and compares the index that the query
// returns. Who keeps something compiled from many rows (DNS, load balancing)
// waits on Changed and asks Since which keys to compile again. Who proposes and
// must see the effect waits for his Proposer, not for either of these: a command
// that changes nothing wakes nobody.
//
// # What must not change
//
// Objects that a Snapshot returns are shared and must not be changed. The codec
// tags in model.go and command.go, the kinds of commands, the tags of snapshot
// records and the aspects in schema.go are in the logs and snapshots of clusters
// that run: testdata holds golden bytes of each. A new field needs a new tag and
// a cluster feature level below which it is not written, because an older replica
// would leave it out and disagree.
package state
