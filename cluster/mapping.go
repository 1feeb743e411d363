package cluster

// mapping reads the keys of one mapping; done reports the keys that nobody
// asked for. So the list of known keys is the code that reads them.
type mapping struct {
	*problems
	v     *value
	known []string
}

// mapping begins to read v as a mapping; nothing is as good as an empty one.
func (p *problems) mapping(v *value) (*mapping, bool) {
	m := &mapping{problems: p, v: v}
	if v == nil || v.broken {
		return m, false
	}
	if v.kind != object && v.kind != null {
		p.wrongKind(v, "a mapping (key: value)")
		return m, false
	}
	return m, true
}

// get finds the value of a key; nil when absent.
func (m *mapping) get(key string) *value {
	m.known = append(m.known, key)
	if m.asked != nil {
		m.asked[key] = true
	}
	return m.v.child(key)
}

// need is get for a key that must be there; example shows what to write.
func (m *mapping) need(key, example string) *value {
	v := m.get(key)
	if v == nil {
		m.at(m.v.pos, m.v.path, "%s is missing; write %s", key, example)
	}
	return v
}

// done reports the keys that were not asked for.
func (m *mapping) done() {
	asked := make(map[string]bool, len(m.known))
	for _, key := range m.known {
		asked[key] = true
	}
	for _, e := range m.v.entries {
		if !asked[e.key] {
			m.at(e.pos, join(m.v.path, e.key), "unknown key; %s", suggest(e.key, m.known))
		}
	}
}

// filled tells whether a mapping that must be there has anything in it, and
// notes it when it is there but empty.
func (p *problems) filled(v *value) bool {
	if v == nil || v.broken {
		return false
	}
	if v.kind == null || v.kind == object && len(v.entries) == 0 {
		p.at(v.pos, v.path, "is empty; a cluster has at least one")
		return false
	}
	return v.kind == object
}

// each calls f for every key of a mapping whose keys are the admin's names.
func (p *problems) each(v *value, f func(e entry)) {
	m, ok := p.mapping(v)
	if !ok {
		return
	}
	for _, e := range m.v.entries {
		f(e)
	}
}
