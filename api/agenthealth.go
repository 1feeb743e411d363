package api

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"holdfast/internal/state"
)

// localHealth is an element of /v1/agent/health/service: what this agent
// knows of a service of its own, without asking the catalog.
type localHealth struct {
	AggregatedStatus string
	Service          serviceJSON
	Checks           []checkJSON
}

func (s *Server) agentHealthByName(c *call) error {
	name, err := c.name("service name")
	if err != nil {
		return err
	}
	found := []localHealth{}
	worst := state.Passing
	for _, svc := range s.agent.LocalServices() {
		if !strings.EqualFold(svc.Name, name) {
			continue
		}
		own, status := s.localHealth(svc)
		found = append(found, own)
		worst = worse(worst, status)
	}
	if len(found) == 0 {
		return s.sendHealth(c, http.StatusNotFound, state.Critical, found)
	}
	return s.sendHealth(c, healthCode(worst), worst, found)
}

func (s *Server) agentHealthByID(c *call) error {
	id, err := c.name("service ID")
	if err != nil {
		return err
	}
	svc, err := s.findLocal(id)
	if err != nil {
		return err
	}
	own, status := s.localHealth(svc)
	return s.sendHealth(c, healthCode(status), status, own)
}

// localHealth takes the service's own checks and the node's.
func (s *Server) localHealth(svc state.Service) (localHealth, state.Status) {
	worst := state.Passing
	checks := []checkJSON{}
	for _, chk := range s.agent.LocalChecks() {
		if chk.ServiceID == svc.ID || chk.ServiceID == "" {
			checks = append(checks, s.localCheck(chk))
			worst = worse(worst, chk.Status)
		}
	}
	return localHealth{AggregatedStatus: string(worst), Service: s.localService(svc), Checks: checks}, worst
}

func worse(a, b state.Status) state.Status {
	switch {
	case a == state.Critical || b == state.Critical:
		return state.Critical
	case a == state.Warning || b == state.Warning:
		return state.Warning
	default:
		return state.Passing
	}
}

// healthCode is how Consul tells a load balancer the state of a service.
func healthCode(status state.Status) int {
	switch status {
	case state.Passing:
		return http.StatusOK
	case state.Warning:
		return http.StatusTooManyRequests
	default:
		return http.StatusServiceUnavailable
	}
}

// sendHealth answers with the state as a word, or with everything as JSON.
func (s *Server) sendHealth(c *call, code int, status state.Status, v any) error {
	c.w.extend(writeTimeout)
	if c.args.Get("format") == "text" {
		c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		c.w.WriteHeader(code)
		if _, err := io.WriteString(c.w, string(status)); err != nil {
			return errGone
		}
		return nil
	}
	data, err := encode(v, c.args.Has("pretty"))
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(code)
	if _, err := c.w.Write(data); err != nil {
		return errGone
	}
	return nil
}
