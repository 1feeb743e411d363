package api

import (
	"net/http"
	"slices"

	"holdfast/api/acl"
	"holdfast/internal/state"
)

// caller is who makes a request, by what it may do: everything up to a level,
// or, with a token of its own, what the token's policies say.
type caller struct {
	access Access
	rights *acl.Authorizer // nil: access counts
	sum    string          // of the token's secret
}

// rule is what an endpoint asks of a caller with a token: nil when it may go
// on. An endpoint without a rule is closed to tokens.
type rule func(*Server, *call) error

// inside is the rule of endpoints that ask themselves, by what is in the body,
// or that leave out of the answer what the token may not see.
func inside(*Server, *call) error { return nil }

// anyToken is the rule of what every token may see.
func anyToken(*Server, *call) error { return nil }

// on is the rule of a path that ends with the name of the resource.
func on(r acl.Resource, level acl.Level) rule {
	return func(s *Server, c *call) error { return s.permit(c, r, c.rest, level) }
}

// onThis is the rule of what is done to this node.
func onThis(r acl.Resource, level acl.Level) rule {
	return func(s *Server, c *call) error { return s.permit(c, r, s.config.Node, level) }
}

// to is the rule of a resource without names.
func to(r acl.Resource, level acl.Level) rule {
	return func(s *Server, c *call) error { return s.permit(c, r, "", level) }
}

// onService and onCheck are the rules of what is done to a service or check of
// this agent, by its ID. What is not there is for the endpoint to say.
func onService(level acl.Level) rule {
	return func(s *Server, c *call) error {
		svc, err := s.findLocal(c.rest)
		if err != nil {
			return err
		}
		return s.permit(c, acl.Service, svc.Name, level)
	}
}

func onCheck(s *Server, c *call) error {
	for _, chk := range s.agent.LocalChecks() {
		if chk.ID == c.rest {
			return s.permitCheck(c, chk.ServiceID)
		}
	}
	return s.findCheck(c.rest)
}

// permitCheck asks for the right to write a check: its service's, or this
// node's.
func (s *Server) permitCheck(c *call, serviceID string) error {
	if serviceID == "" {
		return s.permit(c, acl.Node, s.config.Node, acl.Write)
	}
	svc, err := s.findLocal(serviceID)
	if err != nil {
		return nil // for the endpoint to say
	}
	return s.permit(c, acl.Service, svc.Name, acl.Write)
}

// permitReplaced asks for the right to write the check that a registration
// would replace: it may be another service's.
func (s *Server) permitReplaced(c *call, id string) error {
	for _, had := range s.agent.LocalChecks() {
		if had.ID == id {
			return s.permitCheck(c, had.ServiceID)
		}
	}
	return nil
}

// permit refuses a token that may not do something. Others were looked at
// before.
func (s *Server) permit(c *call, r acl.Resource, name string, level acl.Level) error {
	if c.may(r, name, level) {
		return nil
	}
	return s.deny(r, name, level)
}

func (s *Server) deny(r acl.Resource, name string, level acl.Level) error {
	text := "Permission denied: the token lacks permission '" + string(r) + ":" + level.String() + "'"
	if name != "" {
		text += " on \"" + name + "\""
	}
	return s.refuse(&refusal{http.StatusForbidden, "acl", text})
}

// may tells whether the caller has a right, as far as tokens go.
func (c *call) may(r acl.Resource, name string, level acl.Level) bool {
	return c.who.rights == nil || c.who.rights.May(r, name, level)
}

// sees is may for what is left out of an answer otherwise; the answer then
// says that something is missing.
func (c *call) sees(r acl.Resource, name string) bool {
	if c.may(r, name, acl.Read) {
		return true
	}
	c.hidden = true
	return false
}

// seesInstance and seesCheck want the right to read both the service and the
// node.
func (c *call) seesInstance(i state.Instance) bool {
	return c.sees(acl.Service, i.Service.Name) && c.sees(acl.Node, i.Node.Name)
}

func (c *call) seesCheck(chk *state.Check) bool {
	if chk.ServiceName != "" && !c.sees(acl.Service, chk.ServiceName) {
		return false
	}
	return c.sees(acl.Node, chk.Node)
}

func (c *call) seesService(svc *state.Service) bool { return c.sees(acl.Service, svc.Name) }

// permitRegister asks for every right that a registration from outside needs:
// the node's, unless only what is on it is changed, each service's, and each
// check's by its service or node.
func (s *Server) permitRegister(c *call, command state.Register, skipNode bool) error {
	snap := s.state.Snapshot()
	known, _ := snap.Node(nil, command.Node.Name)
	if known == nil || !skipNode {
		if err := s.permit(c, acl.Node, command.Node.Name, acl.Write); err != nil {
			return err
		}
	}
	for _, svc := range command.Services {
		if err := s.permit(c, acl.Service, svc.Name, acl.Write); err != nil {
			return err
		}
		// Under its ID there may be a service of another name: it is replaced.
		if err := s.permitStored(c, snap, command.Node.Name, svc.ID); err != nil {
			return err
		}
	}
	for _, chk := range command.Checks {
		ofThese := slices.ContainsFunc(command.Services, func(svc state.Service) bool { return svc.ID == chk.ServiceID })
		if !ofThese {
			if err := s.permitStored(c, snap, command.Node.Name, chk.ServiceID); err != nil {
				return err
			}
		}
		if err := s.permitStoredCheck(c, snap, command.Node.Name, chk.ID); err != nil {
			return err
		}
	}
	return nil
}

// permitStored asks for the right to write the service that is stored under an
// ID of a node, or, without an ID, the node.
func (s *Server) permitStored(c *call, snap *state.Snapshot, node, id string) error {
	if id == "" {
		return s.permit(c, acl.Node, node, acl.Write)
	}
	services, _ := snap.NodeServices(nil, node)
	for _, svc := range services {
		if svc.ID == id {
			return s.permit(c, acl.Service, svc.Name, acl.Write)
		}
	}
	return nil
}

func (s *Server) permitStoredCheck(c *call, snap *state.Snapshot, node, id string) error {
	checks, _ := snap.NodeChecks(nil, node)
	for _, chk := range checks {
		if chk.ID == id {
			return s.permitStored(c, snap, node, chk.ServiceID)
		}
	}
	return nil
}

// permitDeregister asks for the rights to take something out of the catalog.
func (s *Server) permitDeregister(c *call, command state.Deregister) error {
	if c.who.rights == nil || c.may(acl.Node, command.Node, acl.Write) {
		return nil
	}
	snap := s.state.Snapshot()
	switch {
	case len(command.Services) > 0:
		if err := s.permitStored(c, snap, command.Node, command.Services[0]); err != nil {
			return err
		}
	case len(command.Checks) > 0:
		if err := s.permitStoredCheck(c, snap, command.Node, command.Checks[0]); err != nil {
			return err
		}
	default:
		return s.deny(acl.Node, command.Node, acl.Write)
	}
	return nil
}

// onSession is the rule of a session: the right to sessions of its node.
func onSession(level acl.Level) rule {
	return func(s *Server, c *call) error {
		found, _ := s.state.Snapshot().Session(nil, c.rest)
		if found == nil {
			return nil // for the endpoint to say
		}
		return s.permit(c, acl.Session, found.Node, level)
	}
}

func (c *call) seesSession(found *state.Session) bool { return c.sees(acl.Session, found.Node) }

// visible leaves out the elements of a list that the caller may not see.
func visible[T any](all []T, sees func(T) bool) []T {
	found := make([]T, 0, len(all))
	for _, element := range all {
		if sees(element) {
			found = append(found, element)
		}
	}
	return found
}

// still looks again at what the caller's token may do: a query that waits for
// minutes must not answer with the rights of when it came.
func (s *Server) still(c *call, snap *state.Snapshot, ws state.WatchSet) error {
	if c.who.rights == nil {
		return nil
	}
	rights, ok := s.tokens.of(snap, ws, c.who.sum, s.now())
	if !ok {
		return s.refuse(unknownToken())
	}
	c.who.rights, c.hidden = rights, false
	if c.rule == nil {
		return nil
	}
	return c.rule(s, c)
}

func unknownToken() *refusal {
	return &refusal{http.StatusForbidden, "token", "ACL not found: the token is not this cluster's, or its time is over"}
}
