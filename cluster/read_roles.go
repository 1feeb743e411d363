package cluster

import "slices"

// Units are the units of Holdfast that a role may run beside core.
func Units() []string { return []string{"dns", "ntp", "apt", "logs"} }

func (l *loader) readRoles(v *value) {
	l.lostRoles = !l.filled(v)
	l.each(v, func(e entry) {
		l.nameError(e.pos, e.value.path, label(e.key))
		l.roleNames = append(l.roleNames, e.key)
		role := Role{Name: e.key, Agent: true}
		if m, ok := l.mapping(e.value); ok {
			l.readRole(m, &role)
			m.done()
		}
		l.f.Roles = append(l.f.Roles, role)
	})
}

func (l *loader) readRole(m *mapping, role *Role) {
	voters := m.get("voters")
	if n, ok := l.integer(voters, 1, 9, " voters"); ok {
		role.Voters = int(n)
	}
	run := m.get("run")
	for _, unit := range l.textList(run) {
		if !slices.Contains(Units(), unit.text) {
			l.at(unit.pos, unit.path, "unknown unit %q; %s", clip(unit.text), suggest(unit.text, Units()))
			continue
		}
		role.Run = append(role.Run, unit.text)
	}
	if b, ok := l.boolean(m.get("agent")); ok {
		role.Agent = b
	}
	if b, ok := l.boolean(m.get("diskless")); ok {
		role.Diskless = b
	}
	switch {
	case role.Voters > 0 && role.Diskless:
		l.at(voters.pos, voters.path, "a diskless role has no voters: a vote must survive a reboot; drop voters or diskless")
	case role.Voters > 0 && !role.Agent:
		l.at(voters.pos, voters.path, "a role without an agent has no voters; drop voters or agent: false")
	case len(role.Run) > 0 && !role.Agent:
		l.at(run.pos, run.path, "a role without an agent runs nothing; drop run or agent: false")
	}
}

// textList reads a list of texts and gives the values that are.
func (l *loader) textList(v *value) []*value {
	if v == nil || v.broken {
		return nil
	}
	if v.kind != list {
		l.wrongKind(v, "a list such as [a, b]")
		return nil
	}
	var texts []*value
	for _, item := range v.items {
		if _, ok := l.text(item); ok {
			texts = append(texts, item)
		}
	}
	return texts
}

// checkServers checks the roles against the nodes: one role has the servers,
// and enough of them, and an odd number votes.
func (l *loader) checkServers() {
	roles := l.root.v.child("roles")
	first := ""
	for i := range l.f.Roles {
		role := &l.f.Roles[i]
		if role.Voters == 0 {
			continue
		}
		at := roles.child(role.Name).child("voters")
		if first != "" {
			l.at(at.pos, at.path, "a second role with voters; the servers are the nodes of one role, and %s has voters already", first)
			continue
		}
		first = role.Name
		l.checkVoters(role, at)
	}
	if first == "" && !l.lostRoles && !l.anyVoters(roles) {
		l.at(roles.pos, roles.path, "no role has voters, so that no node could lead; write voters: 3 at the role of the service nodes (1 for a single one)")
	}
}

// anyVoters tells whether a role tries to have voters, rightly spelt or not.
func (l *loader) anyVoters(roles *value) bool {
	return slices.ContainsFunc(roles.entries, func(e entry) bool {
		return slices.ContainsFunc(e.value.entries, func(e entry) bool {
			near, ok := nearest(e.key, []string{"voters"})
			return ok && near == "voters"
		})
	})
}

func (l *loader) checkVoters(role *Role, at *value) {
	n, have := role.Voters, len(l.inRole[role.Name])
	if n%2 == 0 {
		better := n - 1
		if n+1 <= have {
			better = n + 1
		}
		l.at(at.pos, at.path, "%d voters bear no more failures than %d; write %d, an odd number", n, n-1, better)
		return
	}
	if n > have && !l.lostNodes {
		l.at(at.pos, at.path, "%s, but the role has %s; write at most %d", count(n, "voter"), count(have, "node"), max(1, have-(have+1)%2))
	}
}
