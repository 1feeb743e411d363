package cluster

import "errors"

// maxReferences bounds what the node sets of a file expand to together.
const maxReferences = 1 << 19

// nodeRefs reads a node set, or a list of them, whose members must be nodes of
// the file, and at least one.
func (p *problems) nodeRefs(v *value, f *File) ([]string, bool) {
	if v == nil || v.broken || p.refs > maxReferences {
		return nil, false
	}
	sets := []*value{v}
	if v.kind == list {
		sets = v.items
	}
	all := newNodes(nil)
	for _, one := range sets {
		set, ok := p.folded(one, "a node set such as \"fbservice[1-4]\" or \"@service\"")
		if !ok {
			return nil, false
		}
		names, err := Expand(set, f.group)
		if err != nil {
			if unknown := (*unknownName)(nil); !errors.As(err, &unknown) || !f.partial {
				p.at(one.pos, one.path, "%v", err)
			}
			return nil, false
		}
		if !p.knownNodes(one, names, f) {
			return nil, false
		}
		if p.refs += len(names); p.refs > maxReferences {
			p.at(one.pos, one.path, "the node sets of the file name more than %d nodes together", maxReferences)
			return nil, false
		}
		for _, name := range names {
			all.add(name)
		}
	}
	if len(all.list()) == 0 && !f.partial {
		p.at(v.pos, v.path, "the node set is empty; name at least one node")
		return nil, false
	}
	return all.list(), true
}

func (p *problems) knownNodes(v *value, names []string, f *File) bool {
	if f.partial {
		return true
	}
	var unknown []string
	for _, name := range names {
		if f.Node(name) == nil {
			unknown = append(unknown, name)
		}
	}
	switch len(unknown) {
	case 0:
		return true
	case 1:
		known := nodeNames(f.Nodes)
		p.at(v.pos, v.path, "unknown node %q; %s", clip(unknown[0]), suggest(unknown[0], known))
	default:
		p.at(v.pos, v.path, "unknown nodes %s; there are %s", clip(Fold(unknown)), clipTo(Fold(nodeNames(f.Nodes)), 160))
	}
	return false
}

// group resolves the "@name" of a node set: a role, or every node for "@*".
func (f *File) group(name string) ([]string, error) {
	if name == "*" {
		return nodeNames(f.Nodes), nil
	}
	if f.Role(name) == nil {
		known := make([]string, len(f.Roles))
		for i := range f.Roles {
			known[i] = "@" + f.Roles[i].Name
		}
		return nil, &unknownName{"role", "@" + name, known}
	}
	var names []string
	for i := range f.Nodes {
		if f.Nodes[i].Role == name {
			names = append(names, f.Nodes[i].Name)
		}
	}
	return names, nil
}

func nodeNames(list []Node) []string {
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	return names
}

// unknownName is a reference to something that the file does not have.
type unknownName struct {
	what, name string
	known      []string
}

func (e *unknownName) Error() string {
	return "unknown " + e.what + " " + clip(e.name) + "; " + suggest(e.name, e.known)
}
