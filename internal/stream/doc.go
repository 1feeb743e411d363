// Package stream carries the state from the unit core to the units beside it:
// a part of it (state.Part) as it is, and then every command on that part, as
// it was committed, with this node's view of the gossip.
//
// A Source answers on a Unix socket of core's. A Replica follows one in another
// process, keeps a state.Store equal, and its last content on the disk: when
// core is gone the units beside it go on with what they have and say its age,
// and they start with it when core is not there yet.
//
// On the wire a stream is an HTTP response without an end, made of frames: a
// type byte, the length of the body as uint32 (big-endian), and the body.
//
//	S  what follows replaces everything; body empty
//	s  a piece of a snapshot, as state.Snapshot.WritePart writes it
//	e  the end of the snapshot
//	C  a command: index uint64, then state.Encode's bytes
//	M  the members of the gossip, in JSON, whenever they changed
//	B  a Beat, in JSON: at least once a second, and behind all commands of a moment
package stream
