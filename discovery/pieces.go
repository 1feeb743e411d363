package discovery

import "holdfast/internal/state"

// maxPiece is about how many bytes one command of anti-entropy takes: far less
// than the store allows (state.MaxCommand), so that a node with much to say
// holds up neither its own news nor the others' log.
const maxPiece = 256 << 10

// inPieces cuts what is too big for one command into several. A service comes
// with its checks, for without them it would be as healthy as its node; those
// for which there is no room come right after it.
func inPieces(plan []state.Command, most int) []state.Command {
	var pieces []state.Command
	for _, c := range plan {
		switch c := c.(type) {
		case state.Register:
			pieces = append(pieces, splitRegister(c, most)...)
		case state.UpdateCheck:
			pieces = append(pieces, splitUpdate(c, most)...)
		default:
			pieces = append(pieces, c)
		}
	}
	return pieces
}

func splitUpdate(c state.UpdateCheck, most int) []state.Command {
	var pieces []state.Command
	from, size := 0, 0
	for i, u := range c.Updates {
		weight := rowOverhead + len(u.ID) + len(u.Output)
		if i > from && size+weight > most {
			pieces = append(pieces, state.UpdateCheck{Node: c.Node, Updates: c.Updates[from:i]})
			from, size = i, 0
		}
		size += weight
	}
	return append(pieces, state.UpdateCheck{Node: c.Node, Updates: c.Updates[from:]})
}

func splitRegister(c state.Register, most int) []state.Command {
	var pieces []state.Command
	piece, size := state.Register{Node: c.Node}, 0
	makeRoom := func(weight int) {
		if size > 0 && size+weight > most {
			pieces = append(pieces, piece)
			piece, size = state.Register{Node: c.Node}, 0
		}
	}
	addChecks := func(checks []state.Check) {
		for _, check := range checks {
			makeRoom(checkWeight(check))
			piece.Checks = append(piece.Checks, check)
			size += checkWeight(check)
		}
	}
	checks := map[string][]state.Check{} // by service
	for _, check := range c.Checks {
		checks[check.ServiceID] = append(checks[check.ServiceID], check)
	}
	for _, s := range c.Services {
		whole := serviceWeight(s)
		for _, check := range checks[s.ID] {
			whole += checkWeight(check)
		}
		makeRoom(whole)
		piece.Services = append(piece.Services, s)
		size += serviceWeight(s)
		addChecks(checks[s.ID])
	}
	addChecks(checks[""]) // of the node
	return append(pieces, piece)
}

// rowOverhead is more than what surrounds the texts of a row.
const rowOverhead = 256

func serviceWeight(s state.Service) int {
	weight := rowOverhead + len(s.ID) + len(s.Name)
	for _, tag := range s.Tags {
		weight += len(tag) + 4
	}
	for key, value := range s.Meta {
		weight += len(key) + len(value) + 8
	}
	return weight
}

func checkWeight(c state.Check) int {
	weight := rowOverhead + len(c.ID) + len(c.Name) + len(c.Notes) + len(c.Output) + len(c.ServiceID) + len(c.ServiceName)
	for _, tag := range c.ServiceTags {
		weight += len(tag) + 4
	}
	return weight
}
