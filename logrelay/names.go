package logrelay

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"holdfast/cluster"
)

// maxName is the greatest length of a host's name in a file's name.
const maxName = 128

// overflow is the name of all hosts that came after there were too many.
const overflow = "others"

// names decides which host a line belongs to. Anybody can write any name into
// a line; what counts is who sent it, unless the sender is a relay. It belongs
// to one goroutine, but for the table, which all have in common.
type names struct {
	table  *atomic.Pointer[table]
	relays []netip.Prefix // whose word is taken
	node   string         // this one
	most   int

	known map[string]bool
	safe  map[string]string // of claimed names, so that a line costs no new one
	over  int               // lines of hosts beyond the most
}

// table is what the cluster file says of nodes. It is never changed: a reload
// makes another.
type table struct {
	file  *cluster.File
	nodes map[netip.Addr]string // their names, safe in a file's name
	own   map[string]bool       // their names, in files
	logs  map[string]bool       // those that run logs, and so may bring lines of theirs
	self  netip.Addr            // of this node: its own lines have it as their source, so that other nodes know whose they are
}

func newTable(file *cluster.File, node string) *table {
	t := &table{file: file, nodes: map[netip.Addr]string{}, logs: map[string]bool{}, own: map[string]bool{}}
	for _, member := range file.Nodes {
		t.own[safeName(member.Name)] = true
		role := file.Role(member.Role)
		t.logs[safeName(member.Name)] = role != nil && slices.Contains(role.Run, "logs")
		for _, addr := range member.Addresses {
			t.nodes[addr.Unmap()] = safeName(member.Name)
		}
		if member.Name == node {
			t.self = member.Addresses[file.Main().Name]
		}
	}
	return t
}

func newNames(file *cluster.File, node string, relays []netip.Prefix, most int) *names {
	n := &names{table: &atomic.Pointer[table]{}, relays: relays, node: node, most: most, known: map[string]bool{}}
	n.table.Store(newTable(file, node))
	return n
}

// SetFile takes over who the nodes are and which addresses they have, for the
// lines that outputs and queries read from then on, whenever they came, and for
// the node sets of queries. It does not block. The section `logs` itself takes
// effect at the next start.
func (s *Server) SetFile(file *cluster.File) { s.table.Store(newTable(file, s.config.Node)) }

// ownAddress is this node's in the cluster file.
func (s *Server) ownAddress() netip.Addr { return s.table.Load().self }

// host is the host that a line of source, which claims to be of claimed,
// belongs to: a name that is safe in a file's name.
func (n *names) host(source netip.Addr, claimed []byte) string {
	return n.admit(n.judge(source, claimed))
}

// admit bounds the names that are in use: name, or overflow.
func (n *names) admit(name string) string {
	if n.known[name] {
		return name
	}
	// A node of the cluster that is a relay can name as many as a stranger.
	if !n.table.Load().own[name] && len(n.known) >= n.most {
		n.over++
		return overflow
	}
	n.known[name] = true
	return name
}

func (n *names) judge(source netip.Addr, claimed []byte) string {
	if !source.IsValid() {
		return safeName(n.node)
	}
	if len(claimed) > 0 && n.relayed(source) {
		if name := n.safeClaim(claimed); name != "" {
			return name
		}
	}
	if name, ok := n.table.Load().nodes[source]; ok {
		return name
	}
	return safeName(source.String())
}

// mostClaims is how many claimed names are remembered.
const mostClaims = 4096

// safeClaim is safeName of a claimed name.
func (n *names) safeClaim(claimed []byte) string {
	if name, ok := n.safe[string(claimed)]; ok {
		return name
	}
	name := safeName(string(claimed))
	if len(claimed) > maxName {
		return name // nobody has such a name
	}
	if n.safe == nil || len(n.safe) >= mostClaims {
		n.safe = map[string]string{}
	}
	n.safe[string(claimed)] = name
	return name
}

func (n *names) relayed(source netip.Addr) bool {
	if source.IsLoopback() {
		return true
	}
	for _, p := range n.relays {
		if p.Contains(source) {
			return true
		}
	}
	return false
}

// safeName makes a name of a file of it: letters, digits, '.', '_' and '-', in
// lower case, with no dot in front. "" if nothing is left.
func safeName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r >= utf8.RuneSelf {
			return '_'
		}
		return rune(safeByte(byte(r)))
	}, name[:min(len(name), maxName)])
	return strings.TrimLeft(name, ".")
}

// safeByte is what stands for a byte in a name of a file.
func safeByte(c byte) byte {
	switch {
	case c >= 'A' && c <= 'Z':
		return c + 'a' - 'A'
	case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		return c
	}
	return '_'
}
