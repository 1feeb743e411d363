package logrelay

import (
	"net/netip"
	"strings"

	"holdfast/cluster"
)

// maxName is the greatest length of a host's name in a file's name.
const maxName = 128

// overflow is the name of all hosts that came after there were too many.
const overflow = "others"

// names decides which host a line belongs to. Anybody can write any name into
// a line; what counts is who sent it, unless the sender is a relay.
type names struct {
	nodes  map[netip.Addr]string // of the cluster file
	own    map[string]bool       // their names, in files
	relays []netip.Prefix        // whose word is taken
	node   string                // this one
	most   int

	known map[string]bool
	over  int // lines of hosts beyond the most
}

func newNames(file *cluster.File, node string, relays []netip.Prefix, most int) *names {
	n := &names{nodes: map[netip.Addr]string{}, own: map[string]bool{}, relays: relays, node: node, most: most, known: map[string]bool{}}
	for _, member := range file.Nodes {
		n.own[safeName(member.Name)] = true
		for _, addr := range member.Addresses {
			n.nodes[addr.Unmap()] = member.Name
		}
	}
	return n
}

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
	if !n.own[name] && len(n.known) >= n.most {
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
		if name := safeName(string(claimed)); name != "" {
			return name
		}
	}
	if name, ok := n.nodes[source]; ok {
		return safeName(name)
	}
	return safeName(source.String())
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
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '_'
	}, name[:min(len(name), maxName)])
	return strings.TrimLeft(name, ".")
}
