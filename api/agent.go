package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"holdfast/api/acl"
	"holdfast/internal/state"
)

func (s *Server) agentSelf(c *call) error {
	snap := s.state.Snapshot()
	own, ok := snap.Member(s.config.Node)
	if !ok {
		own = state.Member{Name: s.config.Node, ID: s.config.NodeID, Version: s.config.Version, Server: s.config.Server}
	}
	meta := map[string]string{}
	if node, _ := snap.Node(nil, s.config.Node); node != nil {
		meta = orEmpty(node.Meta)
	}
	return s.reply(c, map[string]any{
		"Config": map[string]any{
			"Datacenter":        s.config.Datacenter,
			"PrimaryDatacenter": s.config.Datacenter,
			"NodeName":          s.config.Node,
			"NodeID":            s.config.NodeID,
			"Server":            s.config.Server,
			"Version":           s.config.Version,
			"Revision":          "",
			"SessionTTLMin":     s.config.SessionTTLMin, // Patroni reads it when its TTL was refused
		},
		"DebugConfig": map[string]any{"SessionTTLMin": s.config.SessionTTLMin},
		"Member":      s.memberOf(own),
		"Meta":        meta,
		"Stats":       s.stats(snap),
	})
}

// stats is the part of Consul's that scripts read: who leads and how far Raft
// is.
func (s *Server) stats(snap *state.Snapshot) map[string]map[string]string {
	status := s.raft.Status()
	raft := map[string]string{}
	for key, value := range status.Stats {
		raft[key] = value
	}
	raft["state"] = status.State
	raft["term"] = fmt.Sprint(status.Term)
	raft["last_log_index"] = fmt.Sprint(status.LastIndex)
	raft["commit_index"] = fmt.Sprint(status.CommitIndex)
	raft["applied_index"] = fmt.Sprint(status.AppliedIndex)
	name, address, known := s.raft.Leader()
	consul := map[string]string{"server": fmt.Sprint(s.config.Server), "leader": fmt.Sprint(known && strings.EqualFold(name, s.config.Node))}
	if known {
		consul["leader_addr"] = address.String()
	}
	return map[string]map[string]string{
		"agent": {
			"services": fmt.Sprint(len(s.agent.LocalServices())),
			"checks":   fmt.Sprint(len(s.agent.LocalChecks())),
		},
		"consul":   consul,
		"raft":     raft,
		"serf_lan": {"members": fmt.Sprint(len(snap.Members()))},
		"build":    {"version": s.config.Version},
	}
}

func (s *Server) agentMembers(c *call) error {
	found := []memberJSON{}
	if c.args.Get("wan") == "" { // there is one pool
		for _, m := range s.state.Snapshot().Members() {
			if !c.sees(acl.Node, m.Name) {
				continue
			}
			found = append(found, s.memberOf(m))
		}
	}
	return s.replyKept(c, kept(c.filter, found))
}

func (s *Server) agentServices(c *call) error {
	found := map[string]serviceJSON{}
	for _, svc := range s.agent.LocalServices() {
		if !c.seesService(&svc) {
			continue
		}
		found[svc.ID] = s.localService(svc)
	}
	return s.replyKept(c, keptIn(c.filter, found))
}

func (s *Server) localService(svc state.Service) serviceJSON {
	out := serviceOf(&svc)
	out.Datacenter = s.config.Datacenter
	out.CreateIndex, out.ModifyIndex = 0, 0 // the catalog's, not the agent's
	return out
}

// findLocal looks for a service of this node; the error is Consul's.
func (s *Server) findLocal(id string) (state.Service, error) {
	for _, svc := range s.agent.LocalServices() {
		if svc.ID == id {
			return svc, nil
		}
	}
	return state.Service{}, fault(http.StatusNotFound, "Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id)
}

func (s *Server) agentService(c *call) error {
	id, err := c.name("service ID")
	if err != nil {
		return err
	}
	svc, err := s.findLocal(id)
	if err != nil {
		return err
	}
	out := s.localService(svc)
	data, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("encode service %s: %w", id, err)
	}
	sum := sha256.Sum256(data)
	hash := hex.EncodeToString(sum[:8])
	c.w.Header().Set("X-Consul-ContentHash", hash)
	return s.reply(c, struct {
		serviceJSON
		ContentHash string
	}{out, hash})
}

func (s *Server) agentChecks(c *call) error {
	found := map[string]checkJSON{}
	for _, chk := range s.agent.LocalChecks() {
		chk.Node = s.config.Node
		if !c.seesCheck(&chk) {
			continue
		}
		found[chk.ID] = s.localCheck(chk)
	}
	return s.replyKept(c, keptIn(c.filter, found))
}

func (s *Server) localCheck(chk state.Check) checkJSON {
	out := checkOf(&chk)
	out.Node = s.config.Node
	out.CreateIndex, out.ModifyIndex = 0, 0
	return out
}

func (s *Server) registerService(c *call) error {
	var body serviceRegistration
	if err := s.decode(c, &body); err != nil {
		return err
	}
	svc, checks, err := body.service()
	if err != nil {
		return err
	}
	if err := s.permit(c, acl.Service, svc.Name, acl.Write); err != nil {
		return err
	}
	if had, err := s.findLocal(svc.ID); err == nil { // it may have another name
		if err := s.permit(c, acl.Service, had.Name, acl.Write); err != nil {
			return err
		}
	}
	for _, definition := range checks {
		if err := s.permitReplaced(c, definition.ID); err != nil {
			return err
		}
	}
	if err := s.agent.RegisterService(svc, checks); err != nil {
		return err
	}
	return s.done(c)
}

func (s *Server) deregisterService(c *call) error {
	id, err := c.name("service ID")
	if err != nil {
		return err
	}
	if _, err := s.findLocal(id); err != nil {
		return err
	}
	if err := s.agent.DeregisterService(id); err != nil {
		return err
	}
	return s.done(c)
}

func (s *Server) registerCheck(c *call) error {
	var body checkRegistration
	if err := s.decode(c, &body); err != nil {
		return err
	}
	if body.Name == "" {
		return fault(http.StatusBadRequest, "Missing check name")
	}
	definition, err := body.definition()
	if err != nil {
		return err
	}
	if definition.ServiceID != "" {
		if _, err := s.findLocal(definition.ServiceID); err != nil {
			return fault(http.StatusBadRequest, "Invalid check: ServiceID %q does not exist", definition.ServiceID)
		}
	}
	if err := s.permitCheck(c, definition.ServiceID); err != nil {
		return err
	}
	if err := s.permitReplaced(c, definition.ID); err != nil {
		return err
	}
	if err := s.agent.RegisterCheck(definition); err != nil {
		return err
	}
	return s.done(c)
}

// findCheck looks for a check of this node; the error is Consul's.
func (s *Server) findCheck(id string) error {
	has := func(chk state.Check) bool { return chk.ID == id }
	if slices.ContainsFunc(s.agent.LocalChecks(), has) {
		return nil
	}
	return fault(http.StatusNotFound, "Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id)
}

func (s *Server) deregisterCheck(c *call) error {
	id, err := c.name("check ID")
	if err != nil {
		return err
	}
	if err := s.findCheck(id); err != nil {
		return err
	}
	if err := s.agent.DeregisterCheck(id); err != nil {
		return err
	}
	return s.done(c)
}

func (s *Server) passCheck(c *call) error { return s.report(c, state.Passing, c.args.Get("note")) }
func (s *Server) warnCheck(c *call) error { return s.report(c, state.Warning, c.args.Get("note")) }
func (s *Server) failCheck(c *call) error { return s.report(c, state.Critical, c.args.Get("note")) }

func (s *Server) updateCheck(c *call) error {
	var body struct{ Status, Output string }
	if err := s.decode(c, &body); err != nil {
		return err
	}
	status, err := parseStatus(body.Status, "")
	if err != nil || status == "" {
		return fault(http.StatusBadRequest, "Invalid check status: '%s'", body.Status)
	}
	return s.report(c, status, body.Output)
}

// report passes on what a program says of its TTL check.
func (s *Server) report(c *call, status state.Status, output string) error {
	id, err := c.name("check ID")
	if err != nil {
		return err
	}
	if err := s.findCheck(id); err != nil {
		return err
	}
	if err := s.agent.UpdateTTL(id, status, output); err != nil {
		return fmt.Errorf("update check %s: %w", id, err)
	}
	return s.done(c)
}

func (s *Server) join(c *call) error {
	address, err := c.name("address")
	if err != nil {
		return err
	}
	if c.args.Get("wan") != "" {
		return fault(http.StatusBadRequest, "there is no WAN pool: a cluster is one room")
	}
	joined, err := s.agent.Join(c.Context(), []string{address})
	if err != nil {
		return err
	}
	if joined == 0 {
		return fault(http.StatusInternalServerError, "join %s: nobody answered", address)
	}
	return s.done(c)
}

func (s *Server) leave(c *call) error {
	s.log.Info("leaving the cluster on an admin's request")
	ctx, cancel := c.carriedOut()
	defer cancel()
	if err := s.agent.Leave(ctx); err != nil {
		return err
	}
	return s.done(c)
}

func (s *Server) forceLeave(c *call) error {
	node, err := c.name("node name")
	if err != nil {
		return err
	}
	s.log.Info("forcing a member out on an admin's request", "node", node)
	ctx, cancel := c.carriedOut()
	defer cancel()
	if err := s.agent.ForceLeave(ctx, node); err != nil {
		return err
	}
	return s.done(c)
}

// agentReload is Consul's spelling of /v1/holdfast/config/reload.
func (s *Server) agentReload(c *call) error {
	if _, err := s.reload(c); err != nil {
		return err
	}
	return s.done(c)
}
