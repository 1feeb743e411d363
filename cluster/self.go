package cluster

import (
	"fmt"
	"strings"
)

// Self finds the node that a host is, by its short name or its FQDN.
func (f *File) Self(hostname string) (*Node, error) {
	if f.single {
		return &f.Nodes[0], nil
	}
	name := strings.TrimSuffix(strings.ToLower(hostname), ".")
	short, domain, qualified := strings.Cut(name, ".")
	n := f.Node(short)
	switch {
	case n == nil:
		return nil, fmt.Errorf("host %q is no node of cluster %s (%s): %s; name the node with --node if the host is called otherwise",
			hostname, f.Name, f.Path, suggest(short, nodeNames(f.Nodes)))
	case qualified && domain != f.Domain:
		return nil, fmt.Errorf("host %q is not in the domain %s of cluster %s (%s); set the host's domain right, or name the node with --node %s",
			hostname, f.Domain, f.Name, f.Path, short)
	}
	return n, nil
}
