package api

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/state"
)

// NodeMaintenance is the ID of the check that says that a node is in
// maintenance.
const NodeMaintenance = "_node_maintenance"

// Maintenance is a check that is critical for as long as it lasts, under the
// IDs that Consul gives it (api.NodeMaint, api.ServiceMaintPrefix). A TTL check
// that nobody reports stays critical, also over a restart.
const serviceMaintenance = "_service_maintenance:"

// evidence is what a check's status stands on: what it saw, or, of one that
// says that something is in maintenance, the reason that was given.
func evidence(c *state.Check) string {
	if c.ID == NodeMaintenance || strings.HasPrefix(c.ID, serviceMaintenance) {
		return c.Notes
	}
	return c.Output
}

func (s *Server) agentMaintenance(c *call) error {
	return s.maintain(c, check.Definition{ID: NodeMaintenance, Name: "Node Maintenance Mode"},
		"Maintenance mode is enabled for this node, but no reason was provided. This is a default message.")
}

func (s *Server) agentServiceMaintenance(c *call) error {
	id, err := c.name("service ID")
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(s.agent.LocalServices(), func(svc state.Service) bool { return svc.ID == id }) {
		return fault(http.StatusNotFound, "Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id)
	}
	return s.maintain(c, check.Definition{ID: serviceMaintenance + id, Name: "Service Maintenance Mode", ServiceID: id},
		"Maintenance mode is enabled for this service, but no reason was provided. This is a default message.")
}

// maintain puts the check in place or takes it away, by ?enable.
func (s *Server) maintain(c *call, marker check.Definition, reason string) error {
	if c.args.Get("enable") == "" {
		return fault(http.StatusBadRequest, "Missing value for enable")
	}
	enable, err := c.flag("enable")
	if err != nil {
		return err
	}
	present := slices.ContainsFunc(s.agent.LocalChecks(), func(k state.Check) bool { return k.ID == marker.ID })
	switch {
	case enable == present:
	case enable:
		if given := c.args.Get("reason"); given != "" {
			reason = given
		}
		marker.Notes, marker.Initial, marker.TTL = reason, state.Critical, 24*time.Hour
		if err := marker.Validate(); err != nil {
			return fault(http.StatusBadRequest, "Invalid reason: %v", err)
		}
		if err := s.agent.RegisterCheck(marker); err != nil {
			return err
		}
		s.log.Info("maintenance begins", "check", marker.ID, "reason", reason)
	default:
		if err := s.agent.DeregisterCheck(marker.ID); err != nil {
			return err
		}
		s.log.Info("maintenance ends", "check", marker.ID)
	}
	return s.done(c)
}
