// Package stream carries the state from the unit core to the units beside it:
// a part of it (state.Part) as it is, and then every command on that part, as
// it was committed, with this node's view of the gossip.
//
// A Source answers on a Unix socket of core's, and on the RPC port of every
// server, where nodes that are no servers follow one of them. A Replica follows
// in another process, keeps a state.Store equal, and its last content on the
// disk: when its source is gone it goes on with what it has and says its age, and
// it starts with it when no source is there yet.
//
// A Replica that has several sources goes on with another as soon as the one
// that it follows ends, falls silent, is dead by the gossip, or hears of no leader
// while another does. It never goes back: a snapshot that is older than what it
// has is refused, unless a leader has confirmed it since, as after a recovery
// that lost the end of the log.
//
// On the wire a stream is an HTTP response without an end, made of frames: a
// type byte, the length of the body as uint32 (big-endian), and the body.
//
//	W  a Where, in JSON: the state of the snapshot that comes next
//	S  what follows replaces everything; body empty
//	s  a piece of a snapshot, as state.Snapshot.WritePart writes it
//	e  the end of the snapshot
//	C  a command: index uint64, then state.Encode's bytes
//	M  the members of the gossip, in JSON, whenever they changed
//	B  a Beat, in JSON: at least once a second, and behind all commands of a moment
package stream
