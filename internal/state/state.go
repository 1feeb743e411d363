package state

import (
	"strings"
)

// Reader is how consumers see the state: an immutable snapshot, and a signal
// when there is a newer one. A consumer that keeps something compiled from the
// state goes round like this:
//
//	for {
//		changed := store.Changed()
//		snap := store.Snapshot()
//		keys, ok := store.Since(seen)
//		... rebuild what keys name, or everything when !ok, from snap
//		seen = snap.Version()
//		<-changed
//	}
type Reader interface {
	// Snapshot never blocks and is safe to keep.
	Snapshot() *Snapshot
	// Changed is closed at the first change after the call: take it before
	// the Snapshot it belongs to. A command that changed nothing moves
	// Snapshot.Index and is no change.
	Changed() <-chan struct{}
	// Since lists what changed after version (see Snapshot.Version), each
	// key once. Not ok: too much or too long ago; rebuild from a Snapshot.
	Since(version uint64) (keys []Key, ok bool)
}

// Key names one thing that changed. The names of nodes, services and members
// are folded (see Fold), because they are compared without regard to case.
type Key struct {
	Table Table
	Name  string // node, service name, KV key, "kind/key" of a document
}

// Table is one table of the schema.
type Table string

// The tables. Members is this node's own gossip.
const (
	TableNode     Table = "nodes"
	TableService  Table = "services" // Name: the service's name; also when a check or the node of an instance changed
	TableCheck    Table = "checks"   // Name: the node's; any check of the node changed
	TableKV       Table = "kv"
	TableDocument Table = "documents"
	TableCluster  Table = "cluster" // Name: empty
	TableMember   Table = "members" // Name: the member's

	TableSession Table = "sessions"    // Name: the session's ID; also when it was renewed
	TableDelay   Table = "lock-delays" // Name: the key
)

// Fold returns the form in which the names of nodes, services and members are
// compared: ASCII letters in lower case (as RFC 4343 does for DNS), all other
// bytes as they are. It does not change with the Unicode tables of a Go
// release, so that replicas of different builds agree.
func Fold(name string) string {
	for i := 0; i < len(name); i++ {
		if 'A' <= name[i] && name[i] <= 'Z' {
			return foldFrom(name, i)
		}
	}
	return name
}

func foldFrom(name string, first int) string {
	var b strings.Builder
	b.Grow(len(name))
	b.WriteString(name[:first])
	for i := first; i < len(name); i++ {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b.WriteByte(c)
	}
	return b.String()
}
