package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"holdfast/api/acl"
	"holdfast/internal/state"
)

type policyJSON struct {
	ID          string
	Name        string
	Description string
	Rules       string `json:",omitempty"`
	Datacenters []string
	CreateIndex uint64
	ModifyIndex uint64
}

type policyBody struct {
	ID, Name, Description, Rules string
	Datacenters                  []string
	Namespace, Partition         string
}

func policyOf(p policy, rules bool) policyJSON {
	out := policyJSON{ID: p.ID, Name: p.Name, Description: p.Description, Datacenters: []string{}, CreateIndex: p.create, ModifyIndex: p.index}
	if rules {
		out.Rules = p.Rules
	}
	return out
}

func (s *Server) aclPolicies(c *call) error {
	if err := s.fresh(c); err != nil {
		return err
	}
	snap := s.state.Snapshot()
	found := []policyJSON{}
	for _, p := range policies(snap) {
		found = append(found, policyOf(p, false))
	}
	s.describe(c, snap.Index())
	return s.reply(c, found)
}

func (s *Server) aclPolicyRead(c *call) error { return s.sendPolicy(c, c.rest, "") }

func (s *Server) aclPolicyByName(c *call) error {
	name, err := url.QueryUnescape(c.rest) // Consul's client escapes it twice
	if err != nil || name == "" {
		return fault(http.StatusBadRequest, "Bad request: Missing policy Name")
	}
	return s.sendPolicy(c, "", name)
}

func (s *Server) sendPolicy(c *call, id, name string) error {
	if err := s.fresh(c); err != nil {
		return err
	}
	snap := s.state.Snapshot()
	found, ok := policyBy(snap, id, name)
	if !ok {
		return noPolicy(id + name)
	}
	s.describe(c, snap.Index())
	return s.reply(c, policyOf(found, true))
}

func noPolicy(what string) error {
	return fault(http.StatusNotFound, "ACL not found: there is no policy %.64q", what)
}

func (s *Server) aclPolicyCreate(c *call) error {
	var body policyBody
	if err := s.decode(c, &body); err != nil {
		return err
	}
	if body.ID != "" {
		return fault(http.StatusBadRequest, "Cannot specify the ID when creating a new policy")
	}
	id, err := s.newID()
	if err != nil {
		return err
	}
	return s.storePolicy(c, policy{ID: id}, body)
}

func (s *Server) aclPolicyUpdate(c *call) error {
	var body policyBody
	if err := s.decode(c, &body); err != nil {
		return err
	}
	if err := s.barrier(c); err != nil {
		return err
	}
	found, ok := policyBy(s.state.Snapshot(), c.rest, "")
	switch {
	case !ok:
		return noPolicy(c.rest)
	case isBuiltin(found.ID):
		return fault(http.StatusBadRequest, "Changing the Rules for the builtin %s policy is not permitted", found.Name)
	case body.ID != "" && body.ID != c.rest:
		return fault(http.StatusBadRequest, "Policy ID in URL and payload do not match")
	}
	return s.storePolicy(c, found, body)
}

func (b policyBody) check() error {
	switch {
	case b.Name == "" || len(b.Name) > 128 || strings.Trim(b.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "":
		return fault(http.StatusBadRequest, "Invalid Policy: invalid Name. Only alphanumeric characters, '-' and '_' are allowed, at most 128")
	case len(b.Description) > 1024:
		return fault(http.StatusBadRequest, "Invalid Policy: the description has %d bytes; at most 1024", len(b.Description))
	case len(b.Datacenters) > 0:
		return fault(http.StatusBadRequest, "Invalid Policy: Datacenters are not offered: there is one")
	case otherThanDefault(b.Namespace) || otherThanDefault(b.Partition):
		return fault(http.StatusBadRequest, "Invalid Policy: there is only the default namespace and partition")
	}
	if _, err := acl.Parse(b.Rules); err != nil {
		return fault(http.StatusBadRequest, "Failed to parse ACL rules: %v", err)
	}
	return nil
}

// storePolicy writes a policy. Two policies of one name are refused as far as
// this node can see; tokens go by IDs, so that two which slip through harm
// nobody.
func (s *Server) storePolicy(c *call, p policy, body policyBody) error {
	if err := body.check(); err != nil {
		return err
	}
	if err := s.barrier(c); err != nil {
		return err
	}
	if other, taken := policyBy(s.state.Snapshot(), "", body.Name); taken && other.ID != p.ID {
		return fault(http.StatusBadRequest, "Invalid Policy: A Policy with Name %q already exists", body.Name)
	}
	p.Name, p.Description, p.Rules = body.Name, body.Description, body.Rules
	value, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode policy %s: %w", p.ID, err)
	}
	document := state.Document{Kind: policyKind, Key: p.ID, Value: value, ModifyIndex: p.index}
	if _, err := s.propose(c, state.PutDocument{Verb: state.CAS, Document: document}); err != nil {
		return err
	}
	s.log.Info("access policy stored", "id", p.ID, "name", p.Name)
	stored, _ := policyBy(s.state.Snapshot(), p.ID, "")
	return s.reply(c, policyOf(stored, true))
}

func (s *Server) aclPolicyDelete(c *call) error {
	if err := s.barrier(c); err != nil {
		return err
	}
	found, ok := policyBy(s.state.Snapshot(), c.rest, "")
	switch {
	case !ok:
		return noPolicy(c.rest)
	case isBuiltin(found.ID):
		return fault(http.StatusBadRequest, "Delete operation not permitted on the builtin %s policy", found.Name)
	}
	if _, err := s.propose(c, state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: policyKind, Key: found.ID}}); err != nil {
		return err
	}
	s.log.Info("access policy removed", "id", found.ID, "name", found.Name)
	return s.reply(c, true)
}
